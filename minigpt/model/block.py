"""A Transformer block: attention, then a feed-forward layer, each with a norm and a residual."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from minigpt.model.attention import Pass, SelfAttention
from minigpt.model.ffn import FFN
from minigpt.model.norm import KINDS, PLACEMENTS

if TYPE_CHECKING:
    from minigpt.model.gpt import ModelConfig


class Block(nn.Module):
    """One layer. x (b, t, d) -> (b, t, d)."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        make_norm = KINDS[config.norm.kind]
        self.place = PLACEMENTS[config.norm.placement]
        self.attention_norm = make_norm(config.n_embd, config.bias)
        self.attention = SelfAttention(config, layer)
        self.ffn_norm = make_norm(config.n_embd, config.bias)
        self.ffn = FFN.build(config.ffn, config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, shared: Pass) -> Tensor:
        def attend(x: Tensor) -> Tensor:
            return self.dropout(self.attention(x, shared))

        x = self.place(x, self.attention_norm, attend)
        return self.place(x, self.ffn_norm, lambda x: self.dropout(self.ffn(x)))
