"""A learned vector for each absolute position, inside the attention scores."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from minigpt.errors import require_one_of
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
class IntegratedConfig(PositionalConfig):
    """`heads`: one table shared by a layer's heads, or each head its own."""

    heads: str

    def __post_init__(self) -> None:
        require_one_of("model.positional.heads", self.heads, ("shared", "own"))


@POSITIONAL.register("integrated", IntegratedConfig)
class IntegratedPositions(PositionalScheme):
    """score += q_i . P[j] / sqrt(e), P a table of the layer: the input itself has no positions.

    One of the four products that absolute embeddings bring to the scores, word to position, with
    a table of its own (Ke et al. 2021 take them apart, and argue for position to position).
    n_layer * block_size * head_size parameters, times n_head with own tables; memory: b h t^2
    numbers a layer; ends at block_size.
    """

    score = "content"

    def __init__(self, config: IntegratedConfig, model: ModelConfig) -> None:
        super().__init__(config, model)
        self.max_length = model.block_size
        tables = 1 if config.heads == "shared" else model.n_head
        shape = (model.n_layer, tables, model.block_size, model.head_size)
        self.table = nn.Parameter(nn.init.normal_(torch.empty(shape), std=0.02))

    def score_term(
        self, q: Tensor, k: Tensor, q_positions: Tensor, k_positions: Tensor, layer: int
    ) -> ScoreTerm:
        places = k_positions.clamp(max=self.table.shape[2] - 1)  # unused slots stand beyond
        vectors = self.table[layer][:, places].transpose(0, 1)  # (b, h, j, e), or 1 for b and h
        return DenseTerm(q / math.sqrt(q.shape[-1]) @ vectors.mT)
