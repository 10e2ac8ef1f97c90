"""A learned number for each head and distance, added to the scores."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minigpt.model.positional.base import (
    POSITIONAL,
    DistanceScoreMod,
    LayerSharingConfig,
    LearnedBiasScheme,
    ScoreMod,
)
from minigpt.model.shape import ModelShape


@POSITIONAL.register("relative_bias", LayerSharingConfig)
class RelativeBias(LearnedBiasScheme):
    """score += b_h[i - j], starting at 0: T5's bias (Raffel et al. 2020) without its buckets.

    n_head * block_size parameters, times n_layer with own layers; memory: h t^2 numbers, once or
    per layer; defined up to block_size. Two-sided: 2 block_size - 1 numbers per head.
    """

    by_signed_distance = True

    def __init__(self, config: LayerSharingConfig, shape: ModelShape) -> None:
        super().__init__(config, shape)
        self.max_length = shape.block_size
        self.first = 1 - shape.block_size if self.two_sided else 0  # the first distance
        n = shape.block_size - self.first
        self.bias = nn.Parameter(torch.zeros(self.n_sets, shape.n_head, n))

    def score_mod(
        self, q: Tensor, k: Tensor, q_positions: Tensor, k_positions: Tensor, layer: int
    ) -> ScoreMod:
        bias = self.of_layer(layer, self.bias)
        return DistanceScoreMod(bias[None, :, None, :], q_positions, k_positions, self.first)
