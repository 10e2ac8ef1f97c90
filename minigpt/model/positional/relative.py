"""A learned vector for each distance, inside the attention scores."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from minigpt.errors import require
from minigpt.model.positional.base import (
    POSITIONAL,
    DistanceTerm,
    PositionalConfig,
    PositionalScheme,
    ScoreTerm,
)

if TYPE_CHECKING:
    from minigpt.model.gpt import ModelConfig


@dataclass
class RelativeConfig(PositionalConfig):
    """`clip`: distances from here on share one vector; None for no clipping."""

    clip: int | None

    def __post_init__(self) -> None:
        ok = self.clip is None or self.clip >= 1
        require(ok, "model.positional.clip", self.clip, "must be 1 or more, or null")


@POSITIONAL.register("relative", RelativeConfig)
class RelativePositions(PositionalScheme):
    """score += q_i . R[i - j] / sqrt(e), R a table of the layer, shared by its heads.

    Shaw et al. 2018, equation 4, the causal half, on the keys' side alone. Scores are shifted into
    place (Huang et al. 2018), so no (t, t, e) tensor arises: b h t^2 numbers a layer. n_layer *
    block_size * head_size parameters, ends at block_size; with `clip`, clip + 1 vectors a layer,
    and it is defined at every length.
    """

    score = "content"

    def __init__(self, config: RelativeConfig, model: ModelConfig) -> None:
        super().__init__(config, model)
        if config.clip is not None:
            why = f"no text of model.block_size={model.block_size} is so long; use less, or null"
            require(config.clip < model.block_size, "model.positional.clip", config.clip, why)
        self.max_length = model.block_size if config.clip is None else None
        n = model.block_size if config.clip is None else config.clip + 1
        shape = (model.n_layer, n, model.head_size)
        self.table = nn.Parameter(nn.init.normal_(torch.empty(shape), std=0.02))

    def score_term(
        self, q: Tensor, k: Tensor, q_positions: Tensor, k_positions: Tensor, layer: int
    ) -> ScoreTerm:
        by_distance = q / math.sqrt(q.shape[-1]) @ self.table[layer].T  # (b, h, i, n)
        return DistanceTerm(by_distance, q_positions, k_positions)
