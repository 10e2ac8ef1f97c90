"""A Transformer block: self-attention, cross-attention to an encoder, a feed-forward layer."""

from __future__ import annotations

from torch import Tensor, nn

from minigpt.model.attention import Attention
from minigpt.model.context import ForwardContext
from minigpt.model.cross_attention import CrossAttention
from minigpt.model.ffn import FFN, FeedForwardConfig
from minigpt.model.norm import PLACEMENTS, NormConfig
from minigpt.model.self_attention import SelfAttention
from minigpt.model.shape import ModelShape


class Block(nn.Module):
    """One layer, each sublayer with a norm and a residual connection. (b, t, d) -> (b, t, d).

    `sequential`: the second sublayer reads what the first one has changed. `parallel`: both read
    the input, x + attention(norm(x)) + ffn(norm(x)), with a norm each (GPT-NeoX, Black et al. 2022)
    or, with `parallel_shared`, the same norm for both (GPT-J, 2021; PaLM, Chowdhery et al. 2022;
    Falcon). The blocks of a decoder that reads a source have cross-attention between both.
    """

    def __init__(
        self, shape: ModelShape, norm: NormConfig, ffn: FeedForwardConfig, layer: int
    ) -> None:
        super().__init__()
        placement = PLACEMENTS[norm.placement]
        self.residual, self.kind = placement.residual, shape.block
        self.attention_norm = norm.build(shape, placement.on_input)
        self.self_attention = SelfAttention(shape, norm, layer)
        self.attention_output_norm = norm.build(shape, placement.on_output)
        self.cross_attention: CrossAttention | None = None
        if shape.reads_source:
            self.cross_attention_norm = norm.build(shape, placement.on_input)
            self.cross_attention = CrossAttention(shape, norm, layer)
            self.cross_attention_output_norm = norm.build(shape, placement.on_output)
        own_norm = placement.on_input and shape.block != "parallel_shared"
        self.ffn_norm = norm.build(shape, own_norm)
        self.ffn = FFN.build(ffn, shape)
        self.ffn_output_norm = norm.build(shape, placement.on_output)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, x: Tensor, attention: Attention, ctx: ForwardContext) -> Tensor:
        def attend(x: Tensor) -> Tensor:
            return self.dropout(self.attention_output_norm(self.self_attention(x, attention, ctx)))

        def read_source(x: Tensor) -> Tensor:
            assert self.cross_attention is not None
            return self.dropout(self.cross_attention_output_norm(self.cross_attention(x, ctx)))

        def feed_forward(x: Tensor) -> Tensor:
            return self.dropout(self.ffn_output_norm(self.ffn(x, ctx)))

        if self.kind != "sequential":
            read = self.attention_norm(x)
            read_by_ffn = read if self.kind == "parallel_shared" else self.ffn_norm(x)
            return x + attend(read) + feed_forward(read_by_ffn)
        x = self.residual(x, self.attention_norm, attend)
        if self.cross_attention is not None:
            x = self.residual(x, self.cross_attention_norm, read_source)
        return self.residual(x, self.ffn_norm, feed_forward)
