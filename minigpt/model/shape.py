"""Sizes that the parts of a model share."""

from __future__ import annotations

import math
from dataclasses import dataclass

INIT_STD = 0.02  # of weights and embeddings (Radford et al. 2019, GPT-2)


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a model, and switches that apply to all layers.

    `n_kv_head`: number of key-value heads. `head_size`: channels per head. `block_size`: tokens per
    training window. `bias`: biases in linear layers and LayerNorms; `qkv_bias`: in the projections
    to q, k and v. `block`: see `Block`. `qk_norm`, `score_scale`, `value_residual`, `head_gates`:
    see `SelfAttention`.
    `two_sided`: whether some queries see keys after them. `reads_source`: whether blocks attend to
    the output of an encoder.
    `embedding_rms`: initial RMS of the token embeddings. `input_rms`: initial RMS, per layer, of
    the channels of the input of the q, k and v projections.
    """

    n_layer: int
    n_head: int
    n_kv_head: int
    n_embd: int
    head_size: int
    block_size: int
    dropout: float
    bias: bool
    qkv_bias: bool
    block: str
    qk_norm: bool | str
    score_scale: float | None
    value_residual: bool | str
    head_gates: bool
    embedding_rms: float
    input_rms: list[float]
    two_sided: bool = False
    reads_source: bool = False

    @property
    def attention_width(self) -> int:
        """Channels of all heads together."""
        return self.n_head * self.head_size

    @property
    def key_rms(self) -> list[float]:
        """Initial RMS, per layer, of the channels of queries and keys."""
        projected = INIT_STD * math.sqrt(self.n_embd)
        return [1.0 if self.qk_norm else projected * rms for rms in self.input_rms]
