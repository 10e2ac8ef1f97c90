"""T5's bias: a learned bias per bucket of distances; buckets widen with the distance."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minigpt.errors import require
from minigpt.model.positional.base import (
    POSITIONAL,
    DistanceScoreMod,
    LayerSharingConfig,
    LearnedBiasScheme,
    ScoreMod,
)
from minigpt.model.shape import ModelShape


@dataclass
class T5Config(LayerSharingConfig):
    """`buckets`: the first half hold one distance each, the last one `max_distance` and more."""

    buckets: int
    max_distance: int

    def __post_init__(self) -> None:
        super().__post_init__()
        n, longest = self.buckets, self.max_distance
        why = "must be an even number of 2 or more"
        require(n >= 2 and n % 2 == 0, "model.positional.buckets", n, why)
        why = f"must be above half of model.positional.buckets={n}"
        require(longest > n // 2, "model.positional.max_distance", longest, why)


def t5_bucket(distance: Tensor, buckets: int, max_distance: int, two_sided: bool = False) -> Tensor:
    """Return the bucket of each distance: one each up to half, then logarithmic.

    Raffel et al. 2020, section 2.1. One-sided, distances are 0 or more; two-sided, the second half
    of the buckets holds those below 0. In float32 as in T5, so that rounding at edges agrees.
    """
    if two_sided:
        half = buckets // 2
        return t5_bucket(distance.abs(), half, max_distance) + half * (distance < 0)
    exact = buckets // 2
    fraction = torch.log(distance.clamp(min=1).to(torch.float32) / exact)
    fraction = fraction / math.log(max_distance / exact)
    wide = exact + (fraction * (buckets - exact)).to(torch.int64)
    return torch.where(distance < exact, distance, wide.clamp(max=buckets - 1))


@POSITIONAL.register("t5", T5Config)
class T5Bias(LearnedBiasScheme):
    """score += b_h[bucket(i - j)], starting at 0 (Raffel et al. 2020, section 2.1).

    Two-sided: half of the buckets are for keys after the query. n_head * buckets parameters, times
    n_layer with own layers; memory: h t^2 numbers, once or per layer; defined at every length. T5
    does not scale its scores: model.score_scale=1.0.
    """

    bucket: Tensor
    by_signed_distance = True

    def __init__(self, config: T5Config, shape: ModelShape) -> None:
        super().__init__(config, shape)
        self.bias = nn.Parameter(torch.zeros(self.n_sets, shape.n_head, config.buckets))
        # Larger distances are in the last bucket.
        self.first = -config.max_distance if self.two_sided else 0
        distances = torch.arange(self.first, config.max_distance + 1)
        bucket = t5_bucket(distances, config.buckets, config.max_distance, self.two_sided)
        self.register_buffer("bucket", bucket, persistent=False)

    def score_mod(
        self, q: Tensor, k: Tensor, q_positions: Tensor, k_positions: Tensor, layer: int
    ) -> ScoreMod:
        bias = self.of_layer(layer, self.bias)[:, self.bucket]  # (h, distance)
        return DistanceScoreMod(bias[None, :, None, :], q_positions, k_positions, self.first)
