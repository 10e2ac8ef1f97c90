"""Chunks: a query sees the keys of its own stretch of text."""

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
class ChunkedConfig(LayersConfig):
    """`chunk`: positions of a stretch; None for a quarter of block_size."""

    chunk: int | None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole_or_none("chunk", self.chunk)


@ATTENTION.register("chunked", ChunkedConfig)
class Chunked(Attention):
    """Keys of the query's chunk of positions (Child et al. 2019's blocks; Llama 4, Meta 2025).

    Nothing passes from one chunk to the next, in no layer: let `layers` alternate with full. Time
    and memory are linear in the length, and a cache holds a chunk.
    """

    def __init__(self, config: ChunkedConfig, model: ModelConfig) -> None:
        super().__init__(config, model)
        self.chunk = self.horizon = span("chunk", config.chunk, model, 4)

    def sees(self, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return i // self.chunk == j // self.chunk

    def keys(self, length: int) -> float:
        return min(length, self.chunk)
