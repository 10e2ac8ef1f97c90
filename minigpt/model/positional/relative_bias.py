"""A learned number for each head and distance, added to the scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from minigpt.model.positional.base import (
    POSITIONAL,
    BiasScheme,
    DistanceTerm,
    LayersConfig,
    ScoreTerm,
)

if TYPE_CHECKING:
    from minigpt.model.gpt import ModelConfig


@POSITIONAL.register("relative_bias", LayersConfig)
class RelativeBias(BiasScheme):
    """score += b_h[i - j], starting at 0: T5's bias (Raffel et al. 2020) without its buckets.

    n_head * block_size parameters, times n_layer with own layers; memory: h t^2 numbers, once or a
    layer; ends at block_size.
    """

    def __init__(self, config: LayersConfig, model: ModelConfig) -> None:
        super().__init__(config, model)
        self.max_length = model.block_size
        self.bias = nn.Parameter(torch.zeros(self.n_sets, model.n_head, model.block_size))

    def score_term(
        self, q: Tensor, k: Tensor, q_positions: Tensor, k_positions: Tensor, layer: int
    ) -> ScoreTerm:
        bias = self.of(layer, self.bias)
        return DistanceTerm(bias[None, :, None, :], q_positions, k_positions)
