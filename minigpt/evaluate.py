"""Evaluation: one deterministic pass over a split."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from minigpt.data.tokens import Split
from minigpt.model import GPT
from minigpt.train.device import Compute

LOGITS_AT_ONCE = 2**25  # bounds the memory of one evaluation batch's logits


@dataclass(frozen=True)
class Evaluation:
    """`loss`: mean nats a token. `bits_per_byte`, which compares tokenizers: bits over bytes."""

    loss: float
    bits_per_byte: float

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


def evaluate(model: GPT, split: Split, compute: Compute) -> Evaluation:
    """Loss of every token of a split but the first, in windows of block_size that do not overlap.

    Each window starts without context. Leaves the model's train/eval mode as it was.
    """
    nats = total_nats(model, split, compute)
    return Evaluation(
        loss=nats / (len(split.tokens) - 1),
        bits_per_byte=nats / math.log(2) / split.target_bytes,
    )


def mean_loss(model: GPT, split: Split, compute: Compute) -> float:
    """The loss alone, nats a token, by the same pass as `evaluate`."""
    return total_nats(model, split, compute) / (len(split.tokens) - 1)


@torch.inference_mode()
def total_nats(model: GPT, split: Split, compute: Compute) -> float:
    """Summed cross-entropy of every token of a split but the first."""
    was_training = model.training
    model.eval()
    block_size = model.config.block_size
    batch_size = max(1, min(128, LOGITS_AT_ONCE // (block_size * model.n_vocab)))
    losses: list[Tensor] = []
    for window in split.windows(block_size, batch_size):
        with compute.autocast():
            losses.append(model.loss(window[:, :-1], window[:, 1:], reduction="sum"))
    model.train(was_training)
    return math.fsum(torch.stack(losses).tolist())
