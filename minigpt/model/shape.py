"""Sizes that the parts of a model share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a model, and switches that apply to all layers.

    `n_kv_head`: number of key-value heads. `block_size`: tokens per training window. `bias`:
    biases in linear layers and LayerNorms. `qk_norm`, `value_residual`: see `SelfAttention`.
    """

    n_layer: int
    n_head: int
    n_kv_head: int
    n_embd: int
    block_size: int
    dropout: float = 0.0
    bias: bool = False
    qk_norm: bool = False
    value_residual: bool = False

    @property
    def head_size(self) -> int:
        """Channels per head."""
        return self.n_embd // self.n_head
