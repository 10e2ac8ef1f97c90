"""Speculative decoding: a draft model proposes tokens that the model verifies in one pass."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.inference.generate import (
    DEFAULT_SAMPLING,
    Context,
    Decoder,
    Sampling,
    apply_repetition_penalty,
    decoding_runtime,
    max_context,
)
from minigpt.model import GPT
from minigpt.runtime import Runtime

DRAFT_TOKENS = 4
TIMED_TOKENS = 128  # maximum number of timed tokens, enough to estimate the speed-up


@dataclass(frozen=True)
class Draft:
    """A draft model and the number of tokens it proposes at a time.

    A `context` beyond its positions is reduced, which affects only the acceptance rate.
    """

    model: GPT
    n_tokens: int = DRAFT_TOKENS
    context: Context = None

    @property
    def max_context(self) -> int | None:
        """The maximum context of the draft model in tokens, None if unlimited."""
        context, limit = max_context(self.model, self.context), self.model.positional.max_length
        return limit if context is None or limit is None else min(context, limit)


@dataclass
class DraftStatistics:
    """Counts of proposed and accepted tokens, new tokens, and forward passes of the model.

    `passes` includes the prefill. `timed`: number of tokens in the first rounds (at most
    TIMED_TOKENS), and their seconds without the prefill.
    """

    proposed: int = 0
    accepted: int = 0
    tokens: int = 0
    passes: int = 0
    timed: tuple[int, float] = (0, 0.0)

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted per proposed token; None if no token was proposed."""
        return self.accepted / self.proposed if self.proposed else None


def speculate(
    model: GPT,
    draft: Draft,
    prompt: list[int],
    n_tokens: int,
    sampling: Sampling = DEFAULT_SAMPLING,
    *,
    seed: int = 1,
    runtime: Runtime | None = None,
    context: Context = None,
    statistics: DraftStatistics | None = None,
) -> Iterator[int]:
    """Yield `n_tokens` new tokens with the distribution of `generate`.

    The draft changes the speed and the text for a given seed, but not the distribution
    (Leviathan et al. 2023; Chen et al. 2023). Both models need the same vocabulary. The prompt is
    prefilled before this returns; `statistics` are updated as tokens are yielded. Restores the
    models' train/eval mode. Raises UserError for a context beyond the scheme's `max_length`.
    """
    assert model.n_vocab == draft.model.n_vocab
    runtime = decoding_runtime(model, runtime)
    statistics = DraftStatistics() if statistics is None else statistics
    generator = torch.Generator(runtime.device).manual_seed(seed)
    with model.evaluating(), draft.model.evaluating(), runtime.autocast():
        decoder = _SpeculativeDecoder(model, draft, prompt, sampling, generator, context)
    statistics.passes += 1

    def tokens() -> Iterator[int]:
        left, seconds = n_tokens, 0.0
        while left > 0:
            start = time.perf_counter()
            with model.evaluating(), draft.model.evaluating(), runtime.autocast():
                first = left == n_tokens
                new = decoder.first() if first else decoder.next(left, statistics)
            left -= len(new)
            statistics.tokens += len(new)
            seconds += time.perf_counter() - start
            if statistics.tokens <= TIMED_TOKENS:
                statistics.timed = statistics.tokens, seconds
            yield from new

    return tokens()


def verify(p: Tensor, q: Tensor, tokens: list[int], generator: torch.Generator) -> list[int]:
    """Return the accepted prefix of t proposed tokens and one more token, distributed as p.

    q (t, n_vocab): the draft's distribution of each token. p (t + 1, n_vocab): the model's, also
    after the last. A token is accepted with probability min(1, p / q). The first rejected one is
    sampled again from max(0, p - q), renormalized. If all are accepted, one more is sampled from
    p. (Leviathan et al. 2023, algorithm 1)
    """
    proposed = torch.tensor(tokens, dtype=torch.long, device=p.device)[:, None]
    uniform = torch.rand(proposed.shape, generator=generator, device=p.device)
    accepted = uniform * q.gather(1, proposed) < p[:-1].gather(1, proposed)
    n_accepted = int(accepted.long().cumprod(dim=0).sum())
    residual = (p - F.pad(q, (0, 0, 0, 1)))[n_accepted].clamp(min=0)
    if not residual.any():  # p and q are equal up to rounding
        residual = p[n_accepted]
    return [*tokens[:n_accepted], int(torch.multinomial(residual, 1, generator=generator))]


class _SpeculativeDecoder:
    """A sequence extended in rounds. Between rounds, its last token is in neither KV cache."""

    def __init__(
        self,
        model: GPT,
        draft: Draft,
        prompt: list[int],
        sampling: Sampling,
        generator: torch.Generator,
        context: Context,
    ) -> None:
        self.sampling, self.generator, self.n_draft = sampling, generator, draft.n_tokens
        self.decoder = Decoder(model, [prompt], max_context(model, context))
        self.draft = Decoder(draft.model, [prompt], draft.max_context)
        self.sequence = list(prompt)

    def first(self) -> list[int]:
        """Sample the first token from the logits of the prefill."""
        p = self._distributions(self.decoder.next_logits, [self.sequence])
        self.sequence.append(self._sample(p))
        return self.sequence[-1:]

    def next(self, left: int, statistics: DraftStatistics) -> list[int]:
        """Run one round; return from 1 to `left` new tokens."""
        tokens, q = self._propose(min(self.n_draft, left - 1))
        uncached = self.sequence[len(self.decoder.sequences[0]) :]
        logits = self.decoder.extend([uncached + tokens])[0, len(uncached) - 1 :]
        sequences = [self.sequence + tokens[:n] for n in range(len(tokens) + 1)]
        new = verify(self._distributions(logits, sequences), q, tokens, self.generator)
        self.sequence += new
        for decoder in (self.decoder, self.draft):
            decoder.rewind(len(self.sequence) - 1)
        statistics.proposed += len(tokens)
        statistics.accepted += len(new) - 1
        statistics.passes += 1
        return new

    def _propose(self, n: int) -> tuple[list[int], Tensor]:
        """Return `n` tokens sampled by the draft, and their distributions (n, n_vocab)."""
        tokens: list[int] = []
        q: list[Tensor] = [self.decoder.next_logits[:0].float()]
        for _ in range(n):
            uncached = (self.sequence + tokens)[len(self.draft.sequences[0]) :]
            logits = self.draft.extend([uncached])[0, -1:]
            q.append(self._distributions(logits, [self.sequence + tokens]))
            tokens.append(self._sample(q[-1]))
        return tokens, torch.cat(q)

    def _distributions(self, logits: Tensor, sequences: list[list[int]]) -> Tensor:
        """Return the sampling distribution (t, n_vocab) after each sequence."""
        penalty = self.sampling.repetition_penalty
        return self.sampling.probabilities(apply_repetition_penalty(logits, sequences, penalty))

    def _sample(self, probabilities: Tensor) -> int:
        return int(torch.multinomial(probabilities, 1, generator=self.generator))
