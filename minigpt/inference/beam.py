"""Beam search."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from minigpt.console import Advance, ignore_progress
from minigpt.errors import require
from minigpt.inference.generate import (
    Context,
    Decoder,
    apply_repetition_penalty,
    decoding_runtime,
    max_context,
    require_repetition_penalty,
)
from minigpt.model import GPT
from minigpt.runtime import Runtime


@dataclass(frozen=True)
class BeamSearch:
    """Options of beam search: the number of `beams`, and the `length_penalty` of `score`.

    A repetition penalty changes the log-probabilities as it does in sampling.
    """

    beams: int
    length_penalty: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        require(self.beams >= 1, "--beams", self.beams, "must be 1 or more")
        penalty, why = self.length_penalty, "must be 0 or more; 0 disables it"
        require(0 <= penalty < math.inf, "--length-penalty", penalty, why)
        require_repetition_penalty(self.repetition_penalty)

    def score(self, log_probability: float, length: int) -> float:
        """Return log-probability / length^length_penalty; the search maximizes it.

        With 1 it is the mean over tokens; larger penalties favor longer sequences.
        """
        return log_probability / length**self.length_penalty


@dataclass(frozen=True)
class Hypothesis:
    """New tokens, their total log-probability in nats, and their score."""

    tokens: list[int]
    log_probability: float
    score: float


def beam_search(
    model: GPT,
    prompt: list[int],
    n_tokens: int,
    search: BeamSearch,
    is_finished: Callable[[list[int]], bool] = lambda tokens: False,
    *,
    runtime: Runtime | None = None,
    context: Context = None,
    source: list[int] | None = None,
    progress: Advance = ignore_progress,
) -> Hypothesis:
    """Return the best continuation of a prompt that is finished or has `n_tokens` tokens.

    `source`: what the encoder reads, if there is one.
    Each step keeps the `beams` most likely sequences; finished ones leave the beam (Sutskever et
    al. 2014). The search stops early if no unfinished sequence can reach the best score. A step
    computes one position per beam while the sequences fit into the context, see `Decoder`, and
    calls `progress` with 1. Restores the model's train/eval mode. Raises UserError for a context
    beyond the scheme's `max_length`.
    """
    best: Hypothesis | None = None
    with model.evaluating(), decoding_runtime(model, runtime).autocast():
        sources = None if source is None else [source]
        decoder = Decoder(model, [prompt], max_context(model, context), sources=sources)
        totals = torch.zeros(1, device=decoder.device)  # log-probability of each beam
        for length in range(1, n_tokens + 1):
            progress(1)
            penalty, sequences = search.repetition_penalty, decoder.sequences
            logits = apply_repetition_penalty(decoder.next_logits, sequences, penalty)
            dtype = torch.promote_types(logits.dtype, torch.float32)
            candidates = totals[:, None] + logits.to(dtype).log_softmax(dim=-1)
            totals, indices = candidates.flatten().topk(min(search.beams, candidates.numel()))
            rows, tokens = (indices // model.n_vocab).tolist(), (indices % model.n_vocab).tolist()
            unfinished: list[int] = []
            for beam, (row, token) in enumerate(zip(rows, tokens, strict=True)):
                new = [*decoder.sequences[row][len(prompt) :], token]
                if length < n_tokens and not is_finished(new):
                    unfinished.append(beam)
                    continue
                total = totals[beam].item()
                score = search.score(total, length)
                if best is None or score > best.score:
                    best = Hypothesis(new, total, score)
            if not unfinished:
                break
            # Totals only decrease, and dividing by length^penalty helps most at n_tokens.
            bound = search.score(totals[unfinished[0]].item(), n_tokens)
            if best is not None and best.score >= bound:
                break
            totals = totals[unfinished]
            decoder.select([rows[beam] for beam in unfinished])
            decoder.append([tokens[beam] for beam in unfinished])
    assert best is not None, "every sequence ends at n_tokens"
    return best
