"""Text generation with a trained run: sampled, by beam search, or with a draft model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from minigpt.console import Advance, ignore_progress
from minigpt.errors import UserError
from minigpt.inference.beam import BeamSearch, beam_search
from minigpt.inference.generate import (
    DEFAULT_SAMPLING,
    Context,
    Sampling,
    generate_from,
    stop_at,
    stream_text,
)
from minigpt.inference.speculative import Draft, DraftStatistics, speculate
from minigpt.run.load import TrainedRun

T = TypeVar("T")


@dataclass(frozen=True)
class Continuation:
    """The continuation of a prompt, in pieces of text, and scores set after the last piece."""

    pieces: Iterable[str]
    numbers: Callable[[], dict[str, Any]] = dict


def default_stops(trained: TrainedRun) -> list[str]:
    """Return the document separator of the run's data, if it has one."""
    separator = trained.config.data.separator
    return [] if separator is None else [separator]


def load_draft(name: str, trained: TrainedRun, n_tokens: int, context: Context) -> Draft:
    """Load a run as the draft model of another. Raises UserError if their tokenizers differ."""
    try:
        draft = TrainedRun.load(name, device=trained.runtime.device)
    except UserError as error:
        raise UserError(f"--draft: {str(error).removeprefix('RUN=')}") from None
    if draft.tokenizer.fingerprint != trained.tokenizer.fingerprint:
        why = f"its tokenizer differs from that of {trained.run.path}"
        remedy = "use a draft trained with the same tokenizer on the same text"
        raise UserError(f"--draft={draft.run.path}: {why}; {remedy}")
    for run in (trained, draft):
        name, encoder = run.config.objective.name, run.model.config.architecture
        if "encoder" in encoder:
            why = f"{run.run.path} has objective={name}, whose tokens no draft can propose"
            raise UserError(f"--draft: {why}; leave it out")
    return Draft(draft.model, n_tokens, context)


@dataclass
class TextGenerator:
    """Generates up to `n_tokens` tokens after each prompt (token ids) with a trained run.

    A text ends before the first of `stops`. `search`: use beam search. `draft`: use speculative
    decoding; `statistics` then has one entry per text. `progress`: called with the number of
    tokens of each step of a text (of a beam search: 1, in each step).
    """

    trained: TrainedRun
    prompts: list[list[int]]
    n_tokens: int
    sampling: Sampling = DEFAULT_SAMPLING
    context: Context = None
    stops: Sequence[str] = ()
    search: BeamSearch | None = None
    draft: Draft | None = None
    statistics: list[DraftStatistics] = field(default_factory=list)
    progress: Advance = ignore_progress

    def __post_init__(self) -> None:
        self.beginnings = list(map(self.trained.objective.beginning, self.prompts))

    @property
    def n_steps(self) -> int:
        """The sum of what `progress` is called with for all texts of one seed, if none stops."""
        return self.n_tokens * len(self.prompts)

    def texts(self, seed: int) -> Iterator[Continuation]:
        """Yield a continuation of each prompt, all sampled with the same seed."""
        if self.search is not None:
            return self._searched(self.search)
        if self.draft is not None:
            return self._drafted(self.draft, seed)
        return self._sampled(seed)

    @property
    def _options(self) -> dict[str, Any]:
        return {"runtime": self.trained.runtime, "context": self.context}

    def seconds_without_draft(self, n_tokens: int) -> float:
        """Return the seconds to sample `n_tokens` after the first prompt without the draft."""
        parts = (self.beginnings[:1], n_tokens, self.sampling)
        tokens = generate_from(self.trained.model, *parts, **self._options)
        start = time.perf_counter()
        for _ in tokens:
            pass
        return time.perf_counter() - start

    def _decode(self, tokens: Iterable[int]) -> Iterator[str]:
        return stop_at(stream_text(self.trained.tokenizer, tokens), self.stops)

    def _counted(self, steps: Iterable[T]) -> Iterator[T]:
        """Yield each step, which has one token of each prompt in it or one token of one prompt."""
        for step in steps:
            self.progress(len(step) if isinstance(step, list) else 1)
            yield step

    def _sampled(self, seed: int) -> Iterator[Continuation]:
        """Sample all prompts as one batch. Only a single prompt is streamed."""
        model, options = self.trained.model, self._options
        rows = self._counted(
            generate_from(
                model, self.beginnings, self.n_tokens, self.sampling, seed=seed, **options
            )
        )
        if len(self.prompts) == 1:
            yield Continuation(self._decode(row[0] for row in rows))
        else:
            for tokens in zip(*rows, strict=True):
                yield Continuation(self._decode(tokens))

    def _searched(self, search: BeamSearch) -> Iterator[Continuation]:
        stops = [stop.encode("utf-8", errors="surrogatepass") for stop in self.stops]
        longest = max(map(len, stops), default=1)  # in bytes; a token has at least one

        def is_finished(tokens: list[int]) -> bool:
            end = b"".join(map(self.trained.tokenizer.token_bytes, tokens[-longest:]))
            return any(stop in end for stop in stops)

        for start in self.beginnings:
            model, options = self.trained.model, self._options
            options |= {"progress": self.progress, "source": start.source}
            result = beam_search(model, start.tokens, self.n_tokens, search, is_finished, **options)
            numbers = {"log_probability": result.log_probability, "score": result.score}
            yield Continuation(self._decode(result.tokens), lambda numbers=numbers: numbers)

    def _drafted(self, draft: Draft, seed: int) -> Iterator[Continuation]:
        for prompt in self.prompts:
            self.statistics.append(statistics := DraftStatistics())
            options = {**self._options, "seed": seed, "statistics": statistics}
            model = self.trained.model
            tokens = speculate(model, draft, prompt, self.n_tokens, self.sampling, **options)
            yield Continuation(
                self._decode(self._counted(tokens)),
                lambda statistics=statistics: {"acceptance_rate": statistics.acceptance_rate},
            )
