"""A learned vector for each absolute position, used in the attention scores."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from minigpt.errors import require_one_of
from minigpt.model.positional.base import (
    POSITIONAL,
    DenseScoreMod,
    PositionalConfig,
    PositionalScheme,
    ScoreMod,
    random_tables,
)
from minigpt.model.shape import ModelShape


@dataclass
class IntegratedConfig(PositionalConfig):
    """`heads`: one table per layer for all heads (shared), or one per head (own)."""

    heads: str

    def __post_init__(self) -> None:
        require_one_of("model.positional.heads", self.heads, ("shared", "own"))


@POSITIONAL.register("integrated", IntegratedConfig)
class IntegratedPositions(PositionalScheme):
    """score += q_i . P[j] / sqrt(e), P a table of the layer; the embeddings have no positions.

    Scores of absolute embeddings expand into four products (Ke et al. 2021, who use position by
    position); this is query word by key position, with a separate table. n_layer * block_size *
    head_size parameters, times n_head with own tables; memory: b h t^2 numbers per layer; defined
    up to block_size. P starts with the RMS of the keys, as q_i . (k_j + P[j]).
    """

    bias_depends_on = "content"

    def __init__(self, config: IntegratedConfig, shape: ModelShape) -> None:
        super().__init__(config, shape)
        self.max_length = shape.block_size
        tables = 1 if config.heads == "shared" else shape.n_head
        self.table = random_tables(tables, shape.block_size, shape.head_size, rms=shape.key_rms)

    def score_mod(
        self, q: Tensor, k: Tensor, q_positions: Tensor, k_positions: Tensor, layer: int
    ) -> ScoreMod:
        k_positions = k_positions.clamp(max=self.table.shape[2] - 1)  # empty slots are beyond
        vectors = self.table[layer][:, k_positions].transpose(0, 1)  # (b or 1, h or 1, j, e)
        return DenseScoreMod(q / math.sqrt(q.shape[-1]) @ vectors.mT)

    def flops_per_query(self, keys: float) -> float:
        return 6 * self.attention_width * keys  # q_i . P[j] in each head
