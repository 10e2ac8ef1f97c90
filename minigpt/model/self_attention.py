"""Self-attention: the projections to queries, keys and values, and the output projection."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from minigpt.model.attention import Attention
from minigpt.model.context import ForwardContext
from minigpt.model.linear import Linear, ZeroLinear
from minigpt.model.norm import NormConfig
from minigpt.model.qk_norm import QKNorm
from minigpt.model.shape import ModelShape


class SelfAttention(QKNorm):
    """Self-attention with one fused projection for q, k and v.

    With n_kv_head < n_head, neighbouring query heads share a key-value head: grouped-query
    attention (Ainslie et al. 2023), or multi-query attention with one (Shazeer 2019).

    With value residuals, the values of each layer but the first are mixed with what earlier ones
    saw of their token. `first_layer`: with the values of the first layer, by learned weights that
    start at 1/2 (Zhou et al. 2024): 2 (n_layer - 1) parameters. `x0`: V += W x0 / rms(x0), where x0
    is the input of the first block and W starts at zero, a projection in place of the tables of
    value embeddings (Jordan et al. 2024, modded-nanogpt): n_embd n_kv_head head_size parameters per
    layer but the first. The division gives x0, which starts 50 times smaller, the scale of what
    other projections read.

    With head gates, the output of each head is multiplied by 2 sigmoid(W x), where x is the input
    of the projections and W starts at zero, so that a gate starts at 1 (Qiu et al. 2025, headwise
    gates after the attention): n_embd n_head parameters per layer.
    """

    def __init__(self, shape: ModelShape, norm: NormConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_size = layer, shape.head_size
        self.dropout = shape.dropout
        self.n_heads = (shape.n_head, shape.n_kv_head, shape.n_kv_head)  # of q, k and v
        self.qkv = Linear(shape.n_embd, sum(self.n_heads) * shape.head_size, bias=shape.qkv_bias)
        self.out = Linear(shape.attention_width, shape.n_embd, bias=shape.bias)
        self.add_qk_norm(shape, norm)
        self.value_residual = shape.value_residual
        self.value_weights, self.x0_values, self.head_gates = None, None, None
        if shape.value_residual == "first_layer" and layer > 0:
            self.value_weights = nn.Parameter(torch.full((2,), 0.5))  # this layer, first layer
        if shape.value_residual == "x0" and layer > 0:
            self.x0_values = ZeroLinear(shape.n_embd, shape.n_kv_head * shape.head_size)
        if shape.head_gates:
            self.head_gates = ZeroLinear(shape.n_embd, shape.n_head)

    def forward(self, x: Tensor, attention: Attention, ctx: ForwardContext) -> Tensor:
        x = ctx.positional.block_input(x, ctx.positions, self.layer)
        heads = rearrange(self.qkv(x), "b t (h e) -> b h t e", e=self.head_size)
        q, k, v = heads.split(self.n_heads, dim=1)
        q, k = self.normed_queries(q), self.normed_keys(k)
        v = self._with_residual(v, ctx)
        y = attention(q, k, v, ctx, self.layer, self.dropout if self.training else 0.0)
        if self.head_gates is not None:
            y = y * rearrange(2 * self.head_gates(x).sigmoid(), "b t h -> b h t 1")
        return self.out(rearrange(y, "b h t e -> b t (h e)"))

    def _with_residual(self, v: Tensor, ctx: ForwardContext) -> Tensor:
        """Return the values (b, h, t, e) of this layer with their value residual."""
        if self.x0_values is not None:
            assert ctx.x0 is not None
            return v + rearrange(self.x0_values(ctx.x0), "b t (h e) -> b h t e", e=self.head_size)
        if self.value_weights is not None:
            own, first = self.value_weights
            assert ctx.first_values is not None
            return own * v + first * ctx.first_values
        if self.value_residual == "first_layer":
            ctx.first_values = v
        return v
