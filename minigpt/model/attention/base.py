"""The base class of attentions: which keys a query attends to, and how values are combined.

Most attentions are patterns: they define a `mask_mod`, and a backend computes the masked softmax.
The others override `forward`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minigpt.errors import require, require_one_of
from minigpt.model.bias import AttentionBias
from minigpt.model.context import ForwardContext
from minigpt.model.kv_cache import EMPTY
from minigpt.model.shape import ModelShape
from minigpt.model.visibility import earlier
from minigpt.registry import Registry

# Minimum number of queries per block: matmuls of this size run at full speed on a CPU.
MIN_BLOCK_QUERIES = 128


@dataclass
class AttentionConfig:
    """Options of every attention."""

    name: str

    def by_layer(self, n_layer: int) -> list[bool]:
        """Return, per layer, whether it uses this attention rather than full attention."""
        return [True] * n_layer


@dataclass
class AlternatingAttentionConfig(AttentionConfig):
    """`layers`: names of attentions, this one or `full`; the list is repeated over the layers."""

    layers: list[str]

    def __post_init__(self) -> None:
        key = "model.attention.layers"
        require(bool(self.layers), key, "[]", f"give names, such as [{self.name},full]")
        for name in self.layers:
            require_one_of(key, name, (self.name, "full"))
        why = f"no layer uses it; add {self.name}, or use attention=full"
        require(self.name in self.layers, key, self.layers, why)

    def by_layer(self, n_layer: int) -> list[bool]:
        names = self.layers
        return [names[layer % len(names)] == self.name for layer in range(n_layer)]


def fraction_of_block(value: int | None, shape: ModelShape, divisor: int) -> int:
    """Return `value`, or block_size / divisor if it is None."""
    assert value is None or value <= shape.block_size, "`compatibility` should have rejected this"
    return max(1, shape.block_size // divisor) if value is None else value


@dataclass(frozen=True)
class QueryBlocks:
    """A sequence split into blocks of `n` queries, each with the keys that its queries attend to.

    The keys of a block are at its own and the `reach` preceding positions. Blocks become rows of a
    larger batch (b p), with p blocks per sequence, so time and memory are linear in the length.
    """

    length: int
    n: int
    reach: int

    @property
    def n_blocks(self) -> int:
        """Blocks per sequence."""
        return -(-self.length // self.n)

    def queries(self, x: Tensor) -> Tensor:
        """(b, h, t, e) -> (b p, h, n, e); the last block is padded with copies of its last row."""
        more = self.n_blocks * self.n - self.length
        x = torch.cat((x, x[:, :, -1:].expand(-1, -1, more, -1)), 2)
        return rearrange(x, "b h (p n) e -> (b p) h n e", n=self.n)

    def keys(self, x: Tensor, fill: int = 0) -> Tensor:
        """(b, h, t, e) -> (b p, h, reach + n, e); `fill` outside the sequence."""
        more = self.n_blocks * self.n - self.length
        x = F.pad(x, (0, 0, self.reach, more), value=fill).unfold(2, self.reach + self.n, self.n)
        return rearrange(x, "b h p e j -> (b p) h j e")

    def merge(self, y: Tensor) -> Tensor:
        """(b p, h, n, e) -> (b, h, t, e)."""
        y = rearrange(y, "(b p) h n e -> b h (p n) e", p=self.n_blocks)
        return y[:, :, : self.length]


ATTENTION: Registry[Attention] = Registry("attention", "model.attention", "minigpt.model.attention")


@ATTENTION.register("full", AttentionConfig)
class Attention(nn.Module):
    """Softmax attention (Vaswani et al. 2017), and the base class of its variants.

    A query attends to the keys that it can see (see `visibility`), of those that `mask_mod` allows.
    One module is used in all layers.

    The first axis of per-layer parameters and buffers is the layer. An option that is None has its
    default value in an attribute of the same name.

    `horizon`: maximum number of positions a query attends to, including its own, which a cache must
    store; None for all. `rows_per_token`: rows of x per token, to count FLOPs. `mask_by_head`:
    whether the mask differs between heads. `uses_backend`: whether a backend computes it.
    `supports_documents`: whether it can mask other documents. `two_sided`: see `ModelShape`.
    `without_two_sided`, `without_prefix`: why it is not defined for queries that see all keys, or
    those of a prefix; None if it is.
    """

    horizon: int | None = None
    rows_per_token: float = 1.0
    mask_by_head: ClassVar[bool] = False
    uses_backend: ClassVar[bool] = True
    supports_documents: ClassVar[bool] = True
    without_two_sided: ClassVar[str | None] = None
    without_prefix: ClassVar[str | None] = None

    def __init__(self, config: AttentionConfig, shape: ModelShape) -> None:
        super().__init__()
        self.width, self.two_sided = shape.attention_width, shape.two_sided

    def mask_mod(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        """Return True where head h of the query at q_idx attends to the key at kv_idx.

        A FlexAttention mask_mod whose indices are absolute positions, given as broadcastable
        tensors. It is combined with what is visible to the query. By default: all keys.
        """
        return torch.ones_like(q_idx - kv_idx, dtype=torch.bool)

    def resolved(self, options: AttentionConfig) -> AttentionConfig:
        """Return the options with each None replaced by its default."""
        unset = [f.name for f in fields(options) if getattr(options, f.name) is None]
        return replace(options, **{name: getattr(self, name) for name in unset})

    def keys_per_query(self, length: int) -> float:
        """Return the number of keys per query in a sequence of `length` tokens, to count FLOPs."""
        return length

    def flops_per_query(self, length: int) -> float:
        """Return the training FLOPs of a query's products in a sequence of `length` tokens.

        q_i . k_j and w_ij v_j: 4 head_size per key and head in the forward pass, times 3. Without a
        discount for the causal mask; keys outside the pattern are not counted.
        """
        return 12 * self.width * self.keys_per_query(length)

    def extend_sequence(
        self, x: Tensor, positions: Tensor, in_order: bool
    ) -> tuple[Tensor, Tensor]:
        """Append embeddings of other than tokens to (b, t, d), and positions to (b or 1, t)."""
        return x, positions

    def bias_of(self, ctx: ForwardContext, q: Tensor, k: Tensor, in_order: bool) -> AttentionBias:
        """Return the bias and this attention's mask for queries and keys at positions q and k."""
        is_full = type(self).mask_mod is Attention.mask_mod
        return AttentionBias(
            *(ctx.positional, ctx.n_head, q, k, in_order, ctx.logit_softcap),
            *(None if is_full else self.mask_mod, self.mask_by_head, ctx.document_ids),
            ctx.visible,
        )

    def bias_and_blocks(
        self, ctx: ForwardContext, batch: int
    ) -> tuple[AttentionBias, QueryBlocks | None]:
        """Return the bias of the new tokens, and the query blocks to compute it in, if any.

        Sequences with documents, or whose queries see later keys, are not split into blocks.
        """
        cached = None if ctx.cache is None else ctx.cache.reserve(self.horizon)
        positions, in_order = ctx.positions, ctx.in_order
        by_block = in_order and ctx.query_blocks and ctx.visible is earlier
        if self.horizon is not None and by_block:
            n, length = max(self.horizon, MIN_BLOCK_QUERIES), positions.shape[1]
            if length > 2 * n:
                blocks = QueryBlocks(length, n, self.horizon - 1)
                by_row = positions.expand(batch, -1)[:, None, :, None]
                q, k = blocks.queries(by_row), blocks.keys(by_row, fill=EMPTY)
                return self.bias_of(ctx, q[:, 0, :, 0], k[:, 0, :, 0], False), blocks
        k_positions = positions if cached is None or in_order else cached
        return self.bias_of(ctx, positions, k_positions, in_order), None

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, ctx: ForwardContext, layer: int, dropout: float
    ) -> Tensor:
        """Compute attention: q (b, h, t, e), k and v (b, h or fewer, t, e) -> (b, h, t, e)."""
        q, k = ctx.positional.rotate(q, k, ctx.positions, layer)
        bias, blocks = ctx.once(self, lambda: self.bias_and_blocks(ctx, len(q)))
        if ctx.cache is not None:
            cached = ctx.cache.write(self.horizon, layer, k, v)
            k, v = (k, v) if ctx.in_order else cached
        if blocks is None:
            return ctx.backend(q, k, v, bias, layer, dropout)
        q, k, v = blocks.queries(q), blocks.keys(k), blocks.keys(v)
        return blocks.merge(ctx.backend(q, k, v, bias, layer, dropout))
