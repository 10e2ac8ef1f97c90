"""CoPE: contextual positions, which are counts of earlier tokens gated by content."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minigpt.errors import require_at_least
from minigpt.model.grouped import grouped_matmul
from minigpt.model.positional.base import (
    POSITIONAL,
    DenseScoreMod,
    PositionalConfig,
    PositionalScheme,
    ScoreMod,
)
from minigpt.model.shape import ModelShape


@dataclass
class CopeConfig(PositionalConfig):
    """`max_position`: larger counts share its vector; None for block_size."""

    max_position: int | None

    def __post_init__(self) -> None:
        require_at_least(1, "model.positional", self, "max_position", or_null=True)


@POSITIONAL.register("cope", CopeConfig)
class ContextualPositions(PositionalScheme):
    """score += q_i . E[p_ij], p_ij = sum of sigmoid(q_i . k_m / sqrt(e)) over the tokens m from j
    to i (Golovneva et al. 2024).

    E is a table per layer, shared by its heads, interpolated between integer counts. As in the
    paper's code, it starts at 0, and the dot product with E is not scaled. Absolute positions only
    order the tokens. n_layer * (max_position + 1) * head_size parameters; memory: about ten times
    b h t^2 numbers per layer; defined at every length.
    """

    bias_depends_on = "content"
    reads_order_only = True
    has_two_sided_form = False

    def __init__(self, config: CopeConfig, shape: ModelShape) -> None:
        super().__init__(config, shape)
        last = shape.block_size if config.max_position is None else config.max_position
        self.table = nn.Parameter(torch.zeros(shape.n_layer, last + 1, shape.head_size))

    def score_mod(
        self, q: Tensor, k: Tensor, q_positions: Tensor, k_positions: Tensor, layer: int
    ) -> ScoreMod:
        products = grouped_matmul(q / math.sqrt(q.shape[-1]), k.mT)
        gates = products.to(torch.promote_types(products.dtype, torch.float32)).sigmoid()
        i, j = q_positions[:, None, :, None], k_positions[:, None, None, :]
        gates = gates.masked_fill(j > i, 0.0)
        # Keys may be in any order; counts start at the latest key.
        order = k_positions.argsort(dim=-1, descending=True)[:, None, None].expand_as(gates)
        sums = gates.gather(-1, order).cumsum(dim=-1)
        count = torch.zeros_like(gates).scatter(-1, order, sums)
        count = count.clamp(max=self.table.shape[1] - 1)
        below = count.detach().floor()
        by_count = (q @ self.table[layer].T).to(count.dtype)  # (b, h, i, n)
        lower = by_count.gather(-1, below.long())
        upper = by_count.gather(-1, count.detach().ceil().long())
        return DenseScoreMod(lower + (upper - lower) * (count - below))

    def flops_per_query(self, keys: float) -> float:
        counts = min(keys + 1, self.table.shape[1])
        # q_i . k_m and q_i . E[count] in each head
        return 6 * self.attention_width * (keys + counts)
