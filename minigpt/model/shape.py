"""Sizes that the parts of a model share."""

from __future__ import annotations

import math
from dataclasses import dataclass

INIT_STD = 0.02  # of weights and embeddings (Radford et al. 2019, GPT-2)


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a model, and switches that apply to all layers.

    `n_kv_head`: number of key-value heads. `block_size`: tokens per training window. `bias`:
    biases in linear layers and LayerNorms. `qk_norm`, `value_residual`, `head_gates`: see
    `SelfAttention`.
    `first_input_rms`: initial RMS of the input of the first block's projections, 1 after a norm.
    """

    n_layer: int
    n_head: int
    n_kv_head: int
    n_embd: int
    block_size: int
    dropout: float = 0.0
    bias: bool = False
    qk_norm: bool | str = False
    value_residual: bool | str = False
    head_gates: bool = False
    first_input_rms: float = 1.0

    @property
    def head_size(self) -> int:
        """Channels per head."""
        return self.n_embd // self.n_head

    @property
    def input_rms(self) -> list[float]:
        """Initial RMS, per layer, of the channels of the input of the q, k and v projections."""
        return [self.first_input_rms if layer == 0 else 1.0 for layer in range(self.n_layer)]

    @property
    def key_rms(self) -> list[float]:
        """Initial RMS, per layer, of the channels of queries and keys."""
        projected = INIT_STD * math.sqrt(self.n_embd)
        return [1.0 if self.qk_norm else projected * rms for rms in self.input_rms]
