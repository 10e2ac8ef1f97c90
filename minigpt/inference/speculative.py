"""Speculative decoding: a draft proposes tokens, and the model checks them in one pass."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.inference.generate import Decoder, Sampling, for_decoding, penalised
from minigpt.model import GPT
from minigpt.runtime import Runtime

TIMED = 128  # tokens; more would make a person wait for a speed-up known well enough


@dataclass(frozen=True)
class Draft:
    """A model that proposes `n_tokens` at a time, and sees `context` tokens, see `Decoder`."""

    model: GPT
    n_tokens: int
    context: int | None


@dataclass
class Tally:
    """What a draft was good for: tokens, and passes of the model with the one over the prompt.

    `timed`: how many tokens the first rounds gave, up to `TIMED`, and their seconds after the
    prompt was read.
    """

    proposed: int = 0
    accepted: int = 0
    tokens: int = 0
    passes: int = 0
    timed: tuple[int, float] = (0, 0.0)

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted of the proposed tokens; None where none was proposed."""
        return self.accepted / self.proposed if self.proposed else None


def speculate(
    model: GPT,
    draft: Draft,
    prompt: list[int],
    n_tokens: int,
    sampling: Sampling,
    generator: torch.Generator,
    runtime: Runtime,
    context: int | None,
    tally: Tally,
) -> Iterator[int]:
    """Yield `n_tokens` new tokens, distributed as `generate` draws them from the model alone.

    The draft changes the speed, whatever it is and sees, and which text belongs to a seed
    (Leviathan et al. 2023; Chen et al. 2023). Both models have one vocabulary. The prompt is read
    at once; `tally` counts on as tokens come. Leaves the models' train/eval mode as it was. Raises
    UserError for a context that one of them has not.
    """
    assert model.n_vocab == draft.model.n_vocab
    runtime = for_decoding(runtime)
    with model.evaluating(), draft.model.evaluating(), runtime.autocast():
        rounds = _Rounds(model, draft, prompt, sampling, generator, context)
    tally.passes += 1

    def tokens() -> Iterator[int]:
        left, seconds = n_tokens, 0.0
        while left > 0:
            start = time.perf_counter()
            with model.evaluating(), draft.model.evaluating(), runtime.autocast():
                new = rounds.first() if left == n_tokens else rounds.next(left, tally)
            left -= len(new)
            tally.tokens += len(new)
            seconds += time.perf_counter() - start
            if tally.tokens <= TIMED:
                tally.timed = tally.tokens, seconds
            yield from new

    return tokens()


def verify(p: Tensor, q: Tensor, tokens: list[int], generator: torch.Generator) -> list[int]:
    """Those of t tokens drawn from q (t, n) that are kept, and one more: all are as from p.

    p (t + 1, n) is what to draw from before each token, and after the last. A token is kept with
    probability min(1, p / q). The first that is not is drawn again from what p has beyond q; after
    the last that is all of p. (Leviathan et al. 2023, algorithm 1)
    """
    drawn = torch.tensor(tokens, dtype=torch.long, device=p.device)[:, None]
    chance = torch.rand(drawn.shape, generator=generator, device=p.device)
    kept = chance * q.gather(1, drawn) < p[:-1].gather(1, drawn)
    n_kept = int(kept.long().cumprod(dim=0).sum())
    beyond = (p - F.pad(q, (0, 0, 0, 1)))[n_kept].clamp(min=0)
    if not beyond.any():  # p and q are equal, but for rounding
        beyond = p[n_kept]
    return [*tokens[:n_kept], int(torch.multinomial(beyond, 1, generator=generator))]


class _Rounds:
    """A text that grows by rounds. Between them its last token is read by neither model."""

    def __init__(
        self,
        model: GPT,
        draft: Draft,
        prompt: list[int],
        sampling: Sampling,
        generator: torch.Generator,
        context: int | None,
    ) -> None:
        self.sampling, self.generator, self.n_draft = sampling, generator, draft.n_tokens
        self.decoder = Decoder(model, [prompt], context)
        self.draft = Decoder(draft.model, [prompt], draft.context)
        self.text = list(prompt)

    def first(self) -> list[int]:
        """The first token: the model has told it when it read the prompt."""
        p = self._distributions(self.decoder.next, [self.text])
        self.text.append(self._draw(p))
        return self.text[-1:]

    def next(self, left: int, tally: Tally) -> list[int]:
        """At least one token more, and at most `left`."""
        tokens, q = self._propose(min(self.n_draft, left - 1))
        unread = self.text[len(self.decoder.texts[0]) :]
        logits = self.decoder.extend([unread + tokens])[0, len(unread) - 1 :]
        texts = [self.text + tokens[:n] for n in range(len(tokens) + 1)]
        new = verify(self._distributions(logits, texts), q, tokens, self.generator)
        self.text += new
        for decoder in (self.decoder, self.draft):
            decoder.rewind(len(self.text) - 1)
        tally.proposed += len(tokens)
        tally.accepted += len(new) - 1
        tally.passes += 1
        return new

    def _propose(self, n: int) -> tuple[list[int], Tensor]:
        """`n` tokens drawn by the draft, and the distributions (n, n_vocab) they are from."""
        tokens: list[int] = []
        q: list[Tensor] = [self.decoder.next[:0].float()]
        for _ in range(n):
            unread = (self.text + tokens)[len(self.draft.texts[0]) :]
            logits = self.draft.extend([unread])[0, -1:]
            q.append(self._distributions(logits, [self.text + tokens]))
            tokens.append(self._draw(q[-1]))
        return tokens, torch.cat(q)

    def _distributions(self, logits: Tensor, texts: list[list[int]]) -> Tensor:
        """What is drawn from after each text, (t, n)."""
        return self.sampling.probabilities(
            penalised(logits, texts, self.sampling.repetition_penalty)
        )

    def _draw(self, probabilities: Tensor) -> int:
        return int(torch.multinomial(probabilities, 1, generator=self.generator))
