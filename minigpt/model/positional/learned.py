"""A learned vector for each absolute position."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from minigpt.model.positional.base import POSITIONAL, PositionalConfig, PositionalScheme

if TYPE_CHECKING:
    from minigpt.model.gpt import ModelConfig


@POSITIONAL.register("learned", PositionalConfig)
class LearnedPositions(PositionalScheme):
    """x_t + P[t] (Radford et al. 2018). block_size * n_embd parameters; ends at block_size."""

    def __init__(self, config: PositionalConfig, model: ModelConfig) -> None:
        super().__init__(config, model)
        self.max_length = model.block_size
        self.table = nn.Embedding(model.block_size, model.n_embd)
        nn.init.normal_(self.table.weight, std=0.02)  # as GPT-2's other weights

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        return x + self.table(positions)
