"""Chunks: a query attends to the keys of its own chunk of the text."""

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
class ChunkedConfig(AlternatingAttentionConfig):
    """`chunk`: positions per chunk; None for block_size / 4."""

    chunk: int | None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, "model.attention", self, "chunk", or_null=True)


@ATTENTION.register("chunked", ChunkedConfig)
class Chunked(Attention):
    """A query attends to the keys of its own chunk (Child et al. 2019; Llama 4, Meta 2025).

    No information crosses chunk boundaries in these layers; `layers` can alternate with `full`.
    Time and memory are linear in the length, and a cache stores one chunk.
    """

    def __init__(self, config: ChunkedConfig, shape: ModelShape) -> None:
        super().__init__(config, shape)
        self.chunk = self.horizon = fraction_of_block(config.chunk, shape, 4)

    def mask_mod(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return q_idx // self.chunk == kv_idx // self.chunk

    def keys_per_query(self, length: int) -> float:
        return min(length, self.chunk)
