"""A learned vector for each distance, used in the attention scores."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from minigpt.errors import require_at_least
from minigpt.model.positional.base import (
    POSITIONAL,
    DistanceScoreMod,
    PositionalConfig,
    PositionalScheme,
    ScoreMod,
    random_tables,
)
from minigpt.model.shape import ModelShape


@dataclass
class RelativeConfig(PositionalConfig):
    """`max_distance`: larger distances share its vector; None for one vector per distance."""

    max_distance: int | None

    def __post_init__(self) -> None:
        require_at_least(1, "model.positional", self, "max_distance", or_null=True)


@POSITIONAL.register("relative", RelativeConfig)
class RelativePositions(PositionalScheme):
    """score += q_i . R[i - j] / sqrt(e), R a table of the layer, shared by its heads.

    Shaw et al. 2018, equation 4: for keys only, causal. Scores are shifted into place (Huang et
    al. 2018), so that no (t, t, e) tensor is needed; memory: b h t^2 numbers per layer. n_layer *
    block_size * head_size parameters, defined up to block_size; with `max_distance`, max_distance +
    1 vectors per layer, defined at every length. Two-sided: also vectors for negative distances,
    so 2 block_size - 1, or 2 max_distance + 1. R starts with the RMS of the keys, as
    q_i . (k_j + R[i - j]).
    """

    bias_depends_on = "content"
    by_signed_distance = True

    def __init__(self, config: RelativeConfig, shape: ModelShape) -> None:
        super().__init__(config, shape)
        longest = config.max_distance
        self.max_length = shape.block_size if longest is None else None
        n = shape.block_size if longest is None else longest + 1
        self.first = 1 - n if self.two_sided else 0  # the distance of the first vector
        self.table = random_tables(n - self.first, shape.head_size, rms=shape.key_rms)

    def score_mod(
        self, q: Tensor, k: Tensor, q_positions: Tensor, k_positions: Tensor, layer: int
    ) -> ScoreMod:
        by_distance = q / math.sqrt(q.shape[-1]) @ self.table[layer].T  # (b, h, i, n)
        return DistanceScoreMod(by_distance, q_positions, k_positions, self.first)

    def flops_per_query(self, keys: float) -> float:
        # q_i . R[distance] in each head
        return 6 * self.attention_width * min(keys, self.table.shape[1])
