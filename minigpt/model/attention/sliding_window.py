"""Sliding windows: a query sees the keys closest behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from minigpt.model.attention.base import (
    ATTENTION,
    Attention,
    LayersConfig,
    require_whole_or_none,
    span,
)

if TYPE_CHECKING:
    from minigpt.model.gpt import ModelConfig


@dataclass
class SlidingWindowConfig(LayersConfig):
    """`window`: keys a query sees, its own included; None for a quarter of block_size."""

    window: int | None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole_or_none("window", self.window)


@ATTENTION.register("sliding_window", SlidingWindowConfig)
class SlidingWindow(Attention):
    """Keys j with i - j < window (Longformer, Beltagy et al. 2020; Mistral, Jiang et al. 2023).

    Information travels window - 1 positions a layer. Time and memory are linear in the length, and
    a cache holds the window.
    """

    def __init__(self, config: SlidingWindowConfig, model: ModelConfig) -> None:
        super().__init__(config, model)
        self.window = self.horizon = span("window", config.window, model, 4)

    def sees(self, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return i - j < self.window

    def keys(self, length: int) -> float:
        return min(length, self.window)
