"""Beam search: the likeliest text that a narrow search finds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from minigpt.errors import require
from minigpt.inference.generate import Decoder, for_decoding, penalised, require_repetition_penalty
from minigpt.model import GPT
from minigpt.runtime import Runtime


@dataclass(frozen=True)
class BeamSearch:
    """`beams`: texts that grow together. `length_penalty`: see `score`.

    Under a repetition penalty a text's probability is that of drawing it with this penalty.
    """

    beams: int
    length_penalty: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        require(self.beams >= 1, "--beams", self.beams, "must be 1 or more")
        penalty, why = self.length_penalty, "must be 0 or more; 0 is none"
        require(0 <= penalty < math.inf, "--length-penalty", penalty, why)
        require_repetition_penalty(self.repetition_penalty)

    def score(self, log_probability: float, length: int) -> float:
        """What is best when highest: the log-probability over length^length_penalty.

        1 makes it the mean of a token; larger values favour longer texts.
        """
        return log_probability / length**self.length_penalty


@dataclass(frozen=True)
class Found:
    """New tokens, the sum of their log-probabilities in nats, and their score."""

    tokens: list[int]
    log_probability: float
    score: float


def beam_search(
    model: GPT,
    prompt: list[int],
    n_tokens: int,
    search: BeamSearch,
    ended: Callable[[list[int]], bool],
    runtime: Runtime,
    context: int | None,
) -> Found:
    """The best continuation of a prompt: one `ended` says is over, or one of `n_tokens` tokens.

    Each step keeps the likeliest `beams` texts of one token more; of these the ended ones are kept
    aside, and the rest go on (Sutskever et al. 2014). It stops early where none that goes on could
    still be better. A step costs one position a beam while the context holds the texts, see
    `Decoder`. Leaves the model's train/eval mode as it was. Raises UserError for a context the
    model has not.
    """
    best: Found | None = None
    with model.evaluating(), for_decoding(runtime).autocast():
        decoder = Decoder(model, [prompt], context)
        totals = torch.zeros(1, device=decoder.device)  # log-probabilities, of one length
        for length in range(1, n_tokens + 1):
            logits = penalised(decoder.next, decoder.texts, search.repetition_penalty)
            wide = torch.promote_types(logits.dtype, torch.float32)
            candidates = totals[:, None] + logits.to(wide).log_softmax(dim=-1)
            totals, chosen = candidates.flatten().topk(min(search.beams, candidates.numel()))
            rows, tokens = (chosen // model.n_vocab).tolist(), (chosen % model.n_vocab).tolist()
            going_on: list[int] = []
            for place, (row, token) in enumerate(zip(rows, tokens, strict=True)):
                text = [*decoder.texts[row][len(prompt) :], token]
                if length < n_tokens and not ended(text):
                    going_on.append(place)
                    continue
                total = totals[place].item()
                score = search.score(total, length)
                if best is None or score > best.score:
                    best = Found(text, total, score)
            if not going_on:
                break
            # More tokens make a text less likely, and the most of them make that count least.
            bound = search.score(totals[going_on[0]].item(), n_tokens)
            if best is not None and best.score >= bound:
                break
            totals = totals[going_on]
            decoder.select([rows[place] for place in going_on])
            decoder.append([tokens[place] for place in going_on])
    assert best is not None, "a text of n_tokens tokens is an end"
    return best
