"""FIRE: a small network maps the distance, relative to the query's position, to a bias."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minigpt.errors import require, require_at_least
from minigpt.model.positional.base import (
    POSITIONAL,
    DenseScoreMod,
    LayerSharingConfig,
    LearnedBiasScheme,
    ScoreMod,
)
from minigpt.model.shape import ModelShape

INITIAL_C = 0.1  # the paper's


@dataclass
class FireConfig(LayerSharingConfig):
    """`width`: hidden width of the network. `threshold`: initial L / block_size."""

    width: int
    threshold: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, "model.positional", self, "width")
        threshold = self.threshold
        require(threshold > 0, "model.positional.threshold", threshold, "must be above 0")


@POSITIONAL.register("fire", FireConfig)
class Fire(LearnedBiasScheme):
    """score += f_h(psi(i - j) / psi(max(L, i))), psi(x) = log(1 + |c| x) (Li et al. 2023).

    f has one hidden ReLU layer; c and L are learned. Distances are normalised by the query's
    absolute position i. Two-sided: f_h(psi(|i - j|) / psi(max(L, i, j))), so that they stay below
    1. No output bias: the softmax cancels it. Starting as torch's linear layers, as in the paper's
    code, biases differ little between keys, by about 0.05.
    (2 + n_head) width + 2 parameters, times n_layer with own layers; memory: t^2 (width + h)
    numbers, once or per layer; defined at every length.
    """

    def __init__(self, config: FireConfig, shape: ModelShape) -> None:
        super().__init__(config, shape)
        n = self.n_sets
        self.c = nn.Parameter(torch.full((n,), INITIAL_C))
        self.initial_length = config.threshold * shape.block_size
        self.length = nn.Parameter(torch.ones(n))  # L / its initial value

        def uniform(bound: float, *shape: int) -> nn.Parameter:
            return nn.Parameter(nn.init.uniform_(torch.empty(n, *shape), -bound, bound))

        # As torch.nn.Linear: uniform in +-1 / sqrt(in_features).
        self.up, self.up_bias = uniform(1, config.width), uniform(1, config.width)
        self.down = uniform(1 / math.sqrt(config.width), shape.n_head, config.width)

    def score_mod(
        self, q: Tensor, k: Tensor, q_positions: Tensor, k_positions: Tensor, layer: int
    ) -> ScoreMod:
        c, length = self.of_layer(layer, self.c).abs(), self.of_layer(layer, self.length).abs()
        i, j = q_positions[:, :, None], k_positions[:, None, :]
        distance, farthest = (i - j).clamp(min=0), i
        if self.two_sided:
            distance, farthest = (i - j).abs(), torch.maximum(i, j)
        limit = torch.maximum(self.initial_length * length, farthest)
        relative = torch.log1p(c * distance) / (torch.log1p(c * limit) + 1e-6)  # (b, i, j)
        up, up_bias = self.of_layer(layer, self.up), self.of_layer(layer, self.up_bias)
        hidden = torch.relu(relative[..., None] * up + up_bias)
        bias = hidden @ self.of_layer(layer, self.down).T  # (b, i, j, h)
        return DenseScoreMod(bias.movedim(-1, 1))

    def flops_per_query(self, keys: float) -> float:
        return 6 * keys * self.down[0].numel()  # the last layer of f; its first one is elementwise
