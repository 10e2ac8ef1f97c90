"""Fill the gaps of a text: the tokens behind masks, or the spans behind sentinels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from minigpt.data.tokens import Split
from minigpt.errors import UserError, require
from minigpt.inference.generate import Decoder, decoding_runtime
from minigpt.model import GPT
from minigpt.objective.base import Objective
from minigpt.objective.denoise import Denoise
from minigpt.objective.masked import MARK, Masked
from minigpt.runtime import Runtime


@dataclass(frozen=True)
class Candidate:
    """A text for a gap, and its probability."""

    text: str
    probability: float


@dataclass(frozen=True)
class Filled:
    """A text without gaps, and the candidates of each gap, the likeliest first."""

    text: str
    gaps: list[list[Candidate]]


@dataclass(frozen=True)
class Filler:
    """Fills each `mark` in a text. The objective must be in FILLERS.

    An encoder fills a mark with one token, as if the others stayed masked, and returns the `top`
    likeliest ones. An encoder-decoder fills it with a span of at most `limit` tokens: the likeliest
    token each time, given the spans before.
    """

    model: GPT
    objective: Objective
    runtime: Runtime
    mark: str = MARK
    top: int = 5
    limit: int = 50

    def fill(self, text: str) -> Filled:
        """Return a filled text. Raises UserError for one without marks, or a longer one than the
        model reads."""
        parts = text.split(self.mark)
        require(len(parts) > 1, "gaps", 0, f"there is no {self.mark}; write one for each gap")
        encoded = [self.objective.tokenizer.encode(part) for part in parts]
        runtime = decoding_runtime(self.model, self.runtime)
        with self.model.evaluating(), runtime.autocast():
            gaps = FILLERS[type(self.objective)](self, encoded)
        best = [gap[0].text for gap in gaps]
        whole = "".join(part + gap for part, gap in zip(parts, [*best, ""], strict=True))
        return Filled(whole, gaps)

    def with_gaps(self, parts: list[list[int]]) -> list[int]:
        """Return the tokens of a text with a special token in each gap. Raises UserError."""
        tokens = [*parts[0]]
        for number, part in enumerate(parts[1:]):
            gap = self.objective.gap(number)
            assert gap is not None
            tokens += [gap, *part]
        limit = self.model.config.block_size
        why = f"more than model.block_size={limit}, which the model reads; shorten the text"
        require(len(tokens) <= limit, "tokens", f"{len(tokens):,}", why)
        return tokens

    def likeliest(self, logits: Tensor) -> list[Candidate]:
        """Return the likeliest ordinary tokens of logits (n_vocab,)."""
        probabilities = logits[: self.model.n_ordinary].float().softmax(-1)
        best = probabilities.topk(min(self.top, len(probabilities)))
        pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        decode = self.objective.tokenizer.decode
        return [Candidate(decode([token]), p) for p, token in pairs]


def filled_masks(filler: Filler, parts: list[list[int]]) -> list[list[Candidate]]:
    """Return the likeliest tokens of each gap, from one pass of an encoder."""
    objective = filler.objective
    assert isinstance(objective, Masked)
    tokens = filler.with_gaps(parts)
    inputs = torch.tensor([tokens], device=filler.model.head.weight.device)
    logits = filler.model(inputs)[0]
    return [filler.likeliest(logits[i]) for i, t in enumerate(tokens) if t == objective.mask]


def filled_spans(filler: Filler, parts: list[list[int]]) -> list[list[Candidate]]:
    """Return the span of each gap that a decoder writes, with its probability."""
    n_gaps = len(parts) - 1
    spans = written_spans(filler, filler.with_gaps(parts), n_gaps)
    decode = filler.objective.tokenizer.decode
    return [[Candidate(decode(tokens), math.exp(p))] for tokens, p in spans]


def written_spans(filler: Filler, source: list[int], n_gaps: int) -> list[tuple[list[int], float]]:
    """Return the tokens that a decoder writes into each gap of a source, with their log
    probability."""
    objective = filler.objective
    assert isinstance(objective, Denoise)
    most, why = objective.n_sentinels - 1, "gaps at most, as in training; fill fewer at once"
    require(n_gaps <= most, "gaps", n_gaps, f"the model knows {most} {why}")
    sentinels = [objective.gap(number) for number in range(n_gaps + 1)]
    written = 1 + n_gaps * (filler.limit + 1)
    limit = filler.model.positional.max_length
    context = written if limit is None else min(written, limit)
    decoder = Decoder(filler.model, [sentinels[:1]], context, sources=[source], may_end=True)
    spans: list[tuple[list[int], float]] = []
    for end in sentinels[1:]:
        tokens: list[int] = []
        log_probability = 0.0
        while True:
            logits = decoder.next_logits[0].float()
            allowed = torch.cat((logits[: filler.model.n_ordinary], logits[end : end + 1]))
            scores = allowed.log_softmax(-1)
            is_full = len(tokens) == filler.limit
            choice = len(scores) - 1 if is_full else int(scores.argmax())
            log_probability += float(scores[choice])
            token = end if choice == len(scores) - 1 else choice
            if end != sentinels[-1] or token != end:
                decoder.append([token])
            if token == end:
                break
            tokens.append(token)
        spans.append((tokens, log_probability))
    return spans


def filled_window(model: GPT, objective: Objective, split: Split, runtime: Runtime) -> str:
    """Return the first window of a split, in which each masked token is filled, in brackets.

    With the masks of an evaluation.
    """
    tokenizer, runtime = objective.tokenizer, decoding_runtime(model, runtime)
    length = min(model.config.block_size, len(split.tokens) - 1)
    device = split.tokens.device
    windows = split.windows_at(torch.zeros(1, 1, dtype=torch.int64, device=device), length)
    draws = objective.draws_of_evaluation(1, length, length, device)
    batch = objective.apply(windows, draws)
    with model.evaluating(), runtime.autocast():
        best = model(batch.inputs)[0, :, : model.n_ordinary].argmax(-1).tolist()
    assert batch.weights is not None
    chosen, tokens = (batch.weights[0] > 0).tolist(), windows.inputs[0].tolist()
    parts = [
        b"[" + tokenizer.token_bytes(filled) + b"]" if gap else tokenizer.token_bytes(token)
        for token, filled, gap in zip(tokens, best, chosen, strict=True)
    ]
    return b"".join(parts).decode("utf-8", errors="replace")


FILLERS: dict[type[Objective], Callable[[Filler, list[list[int]]], list[list[Candidate]]]] = {
    Masked: filled_masks,
    Denoise: filled_spans,
}
"""How gaps are filled, by objective."""


def require_filler(objective: Objective, name: str) -> None:
    """Raise UserError unless a run of an objective can fill gaps."""
    if type(objective) not in FILLERS:
        why = "predicts what follows a text, not what is missing in it; use minigpt sample"
        raise UserError(f"objective={name}: {why}")
