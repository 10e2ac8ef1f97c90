"""CoPE: positions counted by the content, in units that the model chooses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from minigpt.errors import require
from minigpt.model.positional.base import (
    POSITIONAL,
    DenseTerm,
    PositionalConfig,
    PositionalScheme,
    ScoreTerm,
)

if TYPE_CHECKING:
    from minigpt.model.gpt import ModelConfig


@dataclass
class CopeConfig(PositionalConfig):
    """`max_position`: counts from here on share one vector; None for block_size."""

    max_position: int | None

    def __post_init__(self) -> None:
        ok = self.max_position is None or self.max_position >= 1
        why = "must be 1 or more, or null for model.block_size"
        require(ok, "model.positional.max_position", self.max_position, why)


@POSITIONAL.register("cope", CopeConfig)
class ContextualPositions(PositionalScheme):
    """score += q_i . E[p_ij], p_ij = sum of sigmoid(q_i . k_m / sqrt(e)) over the tokens m from j
    to i (Golovneva et al. 2024).

    E is a table of the layer, shared by its heads and starting at 0; between two whole counts it is
    interpolated. The dot product with E is not scaled, as in the paper's code. Positions serve to
    order tokens only. n_layer * (max_position + 1) * head_size parameters; memory: about ten
    times b h t^2 numbers a layer; defined at every length.
    """

    score = "content"
    ordinal = True

    def __init__(self, config: CopeConfig, model: ModelConfig) -> None:
        super().__init__(config, model)
        last = model.block_size if config.max_position is None else config.max_position
        why = f"no text of model.block_size={model.block_size} counts so far; use that or less"
        require(last <= model.block_size, "model.positional.max_position", last, why)
        self.table = nn.Parameter(torch.zeros(model.n_layer, last + 1, model.head_size))

    def score_term(
        self, q: Tensor, k: Tensor, q_positions: Tensor, k_positions: Tensor, layer: int
    ) -> ScoreTerm:
        products = q / math.sqrt(q.shape[-1]) @ k.mT
        gates = products.to(torch.promote_types(products.dtype, torch.float32)).sigmoid()
        i, j = q_positions[:, None, :, None], k_positions[:, None, None, :]
        gates = gates.masked_fill(j > i, 0.0)
        # Keys may come in any order; counts run from the latest back.
        order = k_positions.argsort(dim=-1, descending=True)[:, None, None].expand_as(gates)
        counted = gates.gather(-1, order).cumsum(dim=-1)
        count = torch.zeros_like(gates).scatter(-1, order, counted)
        count = count.clamp(max=self.table.shape[1] - 1)
        below = count.detach().floor()
        by_count = (q @ self.table[layer].T).to(count.dtype)  # (b, h, i, n)
        lower = by_count.gather(-1, below.long())
        upper = by_count.gather(-1, count.detach().ceil().long())
        return DenseTerm(lower + (upper - lower) * (count - below))
