"""A Transformer block: attention, then a feed-forward layer, each with a norm and a residual."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from minigpt.model.attention import Attention, Pass
from minigpt.model.ffn import FFN
from minigpt.model.norm import PLACEMENTS
from minigpt.model.self_attention import SelfAttention

if TYPE_CHECKING:
    from minigpt.model.gpt import ModelConfig


class Block(nn.Module):
    """One layer. x (b, t, d) -> (b, t, d)."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        placement = PLACEMENTS[config.norm.placement]
        self.around = placement.around

        def make_norm() -> nn.Module:
            return config.norm.make(config.n_embd, config.bias)

        def result_norm() -> nn.Module:
            return make_norm() if placement.result else nn.Identity()

        self.attention_norm = make_norm()
        self.attention = SelfAttention(config, layer)
        self.attention_result_norm = result_norm()
        self.ffn_norm = make_norm()
        self.ffn = FFN.build(config.ffn, config)
        self.ffn_result_norm = result_norm()
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, attention: Attention, shared: Pass) -> Tensor:
        def attend(x: Tensor) -> Tensor:
            return self.dropout(self.attention_result_norm(self.attention(x, attention, shared)))

        def feed_forward(x: Tensor) -> Tensor:
            return self.dropout(self.ffn_result_norm(self.ffn(x, shared)))

        x = self.around(x, self.attention_norm, attend)
        return self.around(x, self.ffn_norm, feed_forward)
