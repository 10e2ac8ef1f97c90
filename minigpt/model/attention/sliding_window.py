"""Sliding windows: a query attends to the most recent keys."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from minigpt.errors import require_at_least
from minigpt.model.attention.base import (
    ATTENTION,
    AlternatingAttentionConfig,
    Attention,
    fraction_of_block,
)
from minigpt.model.shape import ModelShape


@dataclass
class SlidingWindowConfig(AlternatingAttentionConfig):
    """`window`: keys per query, including its own; None for block_size / 4."""

    window: int | None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, "model.attention", self, "window", or_null=True)


@ATTENTION.register("sliding_window", SlidingWindowConfig)
class SlidingWindow(Attention):
    """Keys j with i - j < window (Longformer, Beltagy et al. 2020; Mistral, Jiang et al. 2023).

    Two-sided, |i - j| < window, up to 2 window - 1 keys.
    Information travels window - 1 positions per layer. Time and memory are linear in the length,
    and a cache stores the window.
    """

    def __init__(self, config: SlidingWindowConfig, shape: ModelShape) -> None:
        super().__init__(config, shape)
        self.window = self.horizon = fraction_of_block(config.window, shape, 4)

    def mask_mod(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return (q_idx - kv_idx < self.window) & (kv_idx - q_idx < self.window)

    def keys_per_query(self, length: int) -> float:
        return min(length, 2 * self.window - 1 if self.two_sided else self.window)
