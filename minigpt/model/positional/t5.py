"""T5's bias: distances share numbers in buckets that widen with the distance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from minigpt.errors import require
from minigpt.model.positional.base import (
    POSITIONAL,
    BiasScheme,
    DistanceTerm,
    LayersConfig,
    ScoreTerm,
)

if TYPE_CHECKING:
    from minigpt.model.gpt import ModelConfig


@dataclass
class T5Config(LayersConfig):
    """`buckets`: half of them hold one distance each; the last begins before `max_distance`."""

    buckets: int
    max_distance: int

    def __post_init__(self) -> None:
        super().__post_init__()
        why = "must be an even number of 2 or more"
        ok = self.buckets >= 2 and self.buckets % 2 == 0
        require(ok, "model.positional.buckets", self.buckets, why)
        require(
            self.max_distance > self.buckets // 2,
            "model.positional.max_distance",
            self.max_distance,
            f"must be above half of model.positional.buckets={self.buckets}",
        )


def t5_bucket(distance: Tensor, buckets: int, max_distance: int) -> Tensor:
    """Bucket of each distance (0 or more), causal: exact up to half of them, then logarithmic.

    Raffel et al. 2020, section 2.1. In float32, whose rounding decides at the edges of buckets.
    """
    exact = buckets // 2
    share = torch.log(distance.clamp(min=1).to(torch.float32) / exact)
    share = share / math.log(max_distance / exact)
    wide = exact + (share * (buckets - exact)).to(torch.int64)
    return torch.where(distance < exact, distance, wide.clamp(max=buckets - 1))


@POSITIONAL.register("t5", T5Config)
class T5Bias(BiasScheme):
    """score += b_h[bucket(i - j)], starting at 0 (Raffel et al. 2020, section 2.1).

    n_head * buckets parameters, times n_layer with own layers; memory: h t^2 numbers, once or a
    layer; defined at every length. The scores keep their 1 / sqrt(e), which T5 leaves out.
    """

    bucket: Tensor

    def __init__(self, config: T5Config, model: ModelConfig) -> None:
        super().__init__(config, model)
        self.bias = nn.Parameter(torch.zeros(self.n_sets, model.n_head, config.buckets))
        distances = torch.arange(config.max_distance + 1)  # all beyond are in the last bucket
        bucket = t5_bucket(distances, config.buckets, config.max_distance)
        self.register_buffer("bucket", bucket, persistent=False)

    def score_term(
        self, q: Tensor, k: Tensor, q_positions: Tensor, k_positions: Tensor, layer: int
    ) -> ScoreTerm:
        bias = self.of(layer, self.bias)[:, self.bucket]  # (h, distance)
        return DistanceTerm(bias[None, :, None, :], q_positions, k_positions)
