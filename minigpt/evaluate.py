"""Evaluation: one deterministic pass over a split."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.data.tokens import Split
from minigpt.model import GPT
from minigpt.train.device import Compute

# Of a batch's logits, and of its scores; a scheme may hold several like them.
NUMBERS_AT_ONCE = 2**25


@dataclass(frozen=True)
class Evaluation:
    """`loss`: mean nats a token. `bits_per_byte`, which compares tokenizers: bits over bytes.

    `by_position`: the loss of tokens with 1, 2, ... tokens of context.
    """

    loss: float
    bits_per_byte: float
    by_position: list[float]

    @property
    def perplexity(self) -> float:
        """exp(loss): over tokens, so it compares runs of one tokenizer only."""
        return perplexity(self.loss)

    def metrics(self, split: str) -> dict[str, float]:
        """Numbers named after a split: val_loss, val_perplexity, val_bits_per_byte."""
        return {
            f"{split}_loss": self.loss,
            f"{split}_perplexity": self.perplexity,
            f"{split}_bits_per_byte": self.bits_per_byte,
        }


def perplexity(loss: float) -> float:
    """exp(loss), infinite where that overflows."""
    return math.inf if loss > 700 else math.exp(loss)


def evaluate(model: GPT, split: Split, compute: Compute, length: int | None = None) -> Evaluation:
    """Loss of every token of a split but the first, in windows that do not overlap.

    `length` tokens a window, None for block_size. Each window starts without context. Leaves the
    model's train/eval mode as it was. Raises UserError past the scheme's `max_length`.
    """
    length = model.config.block_size if length is None else length
    nats, counts = nats_by_position(model, split, compute, length)
    total = math.fsum(nats)
    return Evaluation(
        loss=total / (len(split.tokens) - 1),
        bits_per_byte=total / math.log(2) / split.target_bytes,
        by_position=[total / count for total, count in zip(nats, counts, strict=True)],
    )


def nats_by_position(
    model: GPT, split: Split, compute: Compute, length: int
) -> tuple[list[float], list[int]]:
    """Summed cross-entropy at each place of windows of `length`, and the number of tokens there."""
    at_once = (length * model.n_vocab, length * length * model.config.n_head)
    batch_size = max(1, min(128, NUMBERS_AT_ONCE // max(at_once)))
    sums: list[Tensor] = []
    counts = [0] * length
    with model.evaluating(), compute.autocast():
        for window in split.windows(length, batch_size):
            rows, n = window[:, 1:].shape
            losses = model.loss(window[:, :-1], window[:, 1:], reduction="none").view(rows, n)
            sums.append(F.pad(losses.sum(0), (0, length - n)))
            counts[:n] = [count + rows for count in counts[:n]]
    n_seen = sum(count > 0 for count in counts)  # fewer than length where the text is shorter
    return torch.stack(sums).cpu().double().sum(0)[:n_seen].tolist(), counts[:n_seen]
