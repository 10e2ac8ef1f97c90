"""A learned vector for each absolute position."""

from __future__ import annotations

from torch import Tensor, nn

from minigpt.model.positional.base import POSITIONAL, PositionalConfig, PositionalScheme
from minigpt.model.shape import ModelShape


@POSITIONAL.register("learned", PositionalConfig)
class LearnedPositions(PositionalScheme):
    """x_t + P[t] (Radford et al. 2018).

    block_size * n_embd parameters; defined up to block_size. P starts with the standard deviation
    of the token embeddings, to which it is added.
    """

    def __init__(self, config: PositionalConfig, shape: ModelShape) -> None:
        super().__init__(config, shape)
        self.max_length = shape.block_size
        self.table = nn.Embedding(shape.block_size, shape.n_embd)
        nn.init.normal_(self.table.weight, std=shape.embedding_rms)

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        return x + self.table(positions)
