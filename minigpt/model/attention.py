"""Causal self-attention, with as many heads for keys and values as asked for, and its cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minigpt.model.backends import Backend
from minigpt.model.scores import Scores

if TYPE_CHECKING:
    from minigpt.model.gpt import ModelConfig

NOWHERE = 2**40  # the position of an unused slot: after every query, so that no mask shows it


class KVCache:
    """Keys and values of earlier tokens: slot p of a row holds the row's token at position p.

    Rows may have seen different numbers of tokens. A short prompt is padded at its end: its
    padding stands later than every token, so that none sees it, until tokens take its slots.
    Memory: 2 n_layer batch capacity n_kv_head head_size numbers.
    """

    def __init__(self, batch: int, capacity: int, device: torch.device) -> None:
        self.capacity = capacity
        self.positions = torch.full((batch, capacity), NOWHERE, device=device)
        self.end = 0  # of the used slots
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def place(self, positions: Tensor, last: int) -> Tensor:
        """Take the slots of new tokens at `positions` (b or 1, t), none after `last`.

        Returns the positions (b, s) of all slots in use.
        """
        assert last < self.capacity, f"position {last} in a cache of {self.capacity} slots"
        positions = positions.expand(len(self.positions), -1)
        self.positions.scatter_(1, positions, positions)
        self.end = max(self.end, last + 1)
        return self.positions[:, : self.end]

    def grow(self, capacity: int) -> None:
        """Make room for more positions."""
        more = capacity - self.capacity
        self.positions = F.pad(self.positions, (0, more), value=NOWHERE)
        self.keys = [F.pad(keys, (0, 0, 0, more)) for keys in self.keys]
        self.values = [F.pad(values, (0, 0, 0, more)) for values in self.values]
        self.capacity += more

    def write(self, layer: int, k: Tensor, v: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Keep a layer's new keys and values (b, h, t, e); returns those of all slots in use."""
        if layer == len(self.keys):
            b, h, _, e = k.shape
            self.keys.append(k.new_zeros(b, h, self.capacity, e))
            self.values.append(v.new_zeros(b, h, self.capacity, e))
        slots = positions[:, None, :, None].expand_as(k)
        keys = self.keys[layer].scatter_(2, slots, k)
        values = self.values[layer].scatter_(2, slots, v)
        return keys[:, :, : self.end], values[:, :, : self.end]


@dataclass
class Pass:
    """What the layers of one forward pass share."""

    scores: Scores
    backend: Backend
    cache: KVCache | None
    first_values: Tensor | None = None  # (b, h, t, e) of the first layer, for value residuals


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
        self.queries_a_key = config.n_head // config.kv_heads
        self.qk_norm, self.dropout = config.qk_norm, config.dropout
        kv_width = config.kv_heads * config.head_size
        self.widths = (config.n_embd, kv_width, kv_width)
        self.qkv = nn.Linear(config.n_embd, sum(self.widths), bias=config.bias)
        self.out = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.value_residual = config.value_residual
        if config.value_residual and layer > 0:
            self.value_parts = nn.Parameter(torch.full((2,), 0.5))  # own, first layer's

    def forward(self, x: Tensor, shared: Pass) -> Tensor:
        scores = shared.scores
        scheme, positions = scores.scheme, scores.q_positions
        x = scheme.block_input(x, positions, self.layer)
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
        q, k = scheme.rotate(q, k, positions, self.layer)
        if shared.cache is not None:
            k, v = shared.cache.write(self.layer, k, v, positions)
        if self.queries_a_key > 1:
            k, v = (part.repeat_interleave(self.queries_a_key, dim=1) for part in (k, v))
        y = shared.backend(q, k, v, scores, self.layer, self.dropout if self.training else 0.0)
        return self.out(rearrange(y, "b h t e -> b t (h e)"))
