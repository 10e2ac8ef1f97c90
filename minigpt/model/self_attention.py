"""Causal self-attention: queries, keys and values, and what comes of the mixed values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minigpt.model.attention import Attention, Pass

if TYPE_CHECKING:
    from minigpt.model.gpt import ModelConfig


class SelfAttention(nn.Module):
    """Causal self-attention with one fused projection for q, k and v.

    With fewer heads for keys and values than for queries, neighbouring queries share one:
    grouped-query attention (Ainslie et al. 2023), or multi-query with one (Shazeer 2019). With
    value residuals the values of each layer are mixed with the first layer's, in learned parts
    that start at a half (Zhou et al. 2024): 2 (n_layer - 1) parameters.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_size = layer, config.head_size
        self.qk_norm, self.dropout = config.qk_norm, config.dropout
        kv_width = config.kv_heads * config.head_size
        self.widths = (config.n_embd, kv_width, kv_width)
        self.qkv = nn.Linear(config.n_embd, sum(self.widths), bias=config.bias)
        self.out = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.value_residual = config.value_residual
        if config.value_residual and layer > 0:
            self.value_parts = nn.Parameter(torch.full((2,), 0.5))  # own, first layer's

    def forward(self, x: Tensor, attention: Attention, shared: Pass) -> Tensor:
        x = shared.scheme.block_input(x, shared.positions, self.layer)
        q, k, v = (
            rearrange(part, "b t (h e) -> b h t e", e=self.head_size)
            for part in self.qkv(x).split(self.widths, dim=-1)
        )
        if self.qk_norm:  # without parameters (Henry et al. 2020; Dehghani et al. 2023)
            q, k = (F.rms_norm(x, x.shape[-1:]).to(v.dtype) for x in (q, k))
        if self.value_residual:
            if shared.first_values is None:
                shared.first_values = v
            else:
                own, first = self.value_parts
                v = own * v + first * shared.first_values
        y = attention(q, k, v, shared, self.layer, self.dropout if self.training else 0.0)
        return self.out(rearrange(y, "b h t e -> b t (h e)"))
