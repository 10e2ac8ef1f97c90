"""Cross-attention: the tokens of a decoder attend to the output of an encoder."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from minigpt.model.bias import AttentionBias
from minigpt.model.context import ForwardContext
from minigpt.model.linear import Linear, linear_flops
from minigpt.model.memory import KeysValues, Memory
from minigpt.model.norm import NormConfig
from minigpt.model.positional import POSITIONAL
from minigpt.model.positional.base import PositionalConfig
from minigpt.model.qk_norm import QKNorm
from minigpt.model.shape import ModelShape


class CrossAttention(QKNorm):
    """Softmax attention to all states of an encoder (Vaswani et al. 2017, section 3.2.3).

    Positions enter through the two sequences alone: there is no rotation and no bias, as in T5
    (Raffel et al. 2020). The norms of queries and keys, `score_scale` and the soft-cap of the
    scores are those of self-attention.
    """

    def __init__(self, shape: ModelShape, norm: NormConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_size, self.n_head = layer, shape.head_size, shape.n_head
        self.dropout = shape.dropout
        self.no_positions = POSITIONAL.build(PositionalConfig("nope"), shape)
        self.q = Linear(shape.n_embd, shape.attention_width, bias=shape.qkv_bias)
        self.kv = Linear(shape.n_embd, 2 * shape.n_kv_head * shape.head_size, bias=shape.qkv_bias)
        self.out = Linear(shape.attention_width, shape.n_embd, bias=shape.bias)
        self.add_qk_norm(shape, norm)

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """Return the output (b, t, d) for hidden states x (b, t, d)."""
        return self.out(rearrange(self.attend(*self.heads(x, ctx), ctx), "b h t e -> b t (h e)"))

    def heads(self, x: Tensor, ctx: ForwardContext) -> tuple[Tensor, Tensor, Tensor]:
        """Return the queries (b, h, t, e) of x (b, t, d), and the keys and values of the source."""
        assert ctx.memory is not None, "a decoder with cross-attention needs a source"
        q = self.normed_queries(rearrange(self.q(x), "b t (h e) -> b h t e", e=self.head_size))
        return q, *ctx.memory.keys_values(self.layer, self.keys_values)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, ctx: ForwardContext) -> Tensor:
        """Return the values (b, h or fewer, s, e), weighted for each query: (b, h, t, e)."""
        memory = ctx.memory
        assert memory is not None
        bias = ctx.once(CrossAttention, lambda: self.bias(ctx, memory))
        return ctx.backend(q, k, v, bias, self.layer, self.dropout if self.training else 0.0)

    def flops_per_query(self, n_keys: int) -> float:
        """Return the training FLOPs of a query, without those of the keys and values."""
        linear = linear_flops(self.q) + linear_flops(self.out)
        return linear + 12 * self.n_head * self.head_size * n_keys

    def keys_values(self, hidden: Tensor) -> KeysValues:
        """Return the keys and values (b, h, s, e) of hidden states (b, s, d)."""
        k, v = rearrange(self.kv(hidden), "b s (two h e) -> two b h s e", two=2, e=self.head_size)
        return self.normed_keys(k), v

    def bias(self, ctx: ForwardContext, memory: Memory) -> AttentionBias:
        """Return the mask of the padding after a source, and no bias."""
        positions = torch.arange(memory.hidden.shape[1], device=memory.hidden.device)[None]
        return AttentionBias(
            *(self.no_positions, self.n_head, ctx.positions, positions, False),
            logit_softcap=ctx.logit_softcap,
            visible=memory.visible,
        )
