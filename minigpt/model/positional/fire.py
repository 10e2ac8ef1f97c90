"""FIRE: a small network reads the distance as a share of how far a query can look back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from minigpt.errors import require
from minigpt.model.positional.base import POSITIONAL, BiasScheme, DenseTerm, LayersConfig, ScoreTerm

if TYPE_CHECKING:
    from minigpt.model.gpt import ModelConfig

FIRST_C = 0.1  # the paper's start of c


@dataclass
class FireConfig(LayersConfig):
    """`width`: of the network; `threshold`: where L starts, in parts of block_size."""

    width: int
    threshold: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.width >= 1, "model.positional.width", self.width, "must be 1 or more")
        why = "must be above 0"
        require(self.threshold > 0, "model.positional.threshold", self.threshold, why)


@POSITIONAL.register("fire", FireConfig)
class Fire(BiasScheme):
    """score += f_h(psi(i - j) / psi(max(L, i))), psi(x) = log(1 + |c| x) (Li et al. 2023).

    f has one hidden ReLU layer; c and L are learned. It sees the query's absolute position i, as
    the length it normalises by. No output bias: the softmax would not see it. (2 + n_head) width
    + 2 parameters, times n_layer with own layers; memory: t^2 (width + h) numbers, once or a
    layer; defined at every length.
    """

    def __init__(self, config: FireConfig, model: ModelConfig) -> None:
        super().__init__(config, model)
        n = self.n_sets
        self.c = nn.Parameter(torch.full((n,), FIRST_C))
        self.first_length = config.threshold * model.block_size
        self.length = nn.Parameter(torch.ones(n))  # L over where it starts

        def uniform(bound: float, *shape: int) -> nn.Parameter:
            return nn.Parameter(nn.init.uniform_(torch.empty(n, *shape), -bound, bound))

        # As torch starts a linear map: uniform in 1 / sqrt(inputs).
        self.up, self.up_bias = uniform(1, config.width), uniform(1, config.width)
        self.down = uniform(1 / math.sqrt(config.width), model.n_head, config.width)

    def score_term(
        self, q: Tensor, k: Tensor, q_positions: Tensor, k_positions: Tensor, layer: int
    ) -> ScoreTerm:
        c, length = self.of(layer, self.c).abs(), self.of(layer, self.length).abs()
        i, j = q_positions[:, :, None], k_positions[:, None, :]
        distance, limit = (i - j).clamp(min=0), torch.maximum(self.first_length * length, i)
        share = torch.log1p(c * distance) / (torch.log1p(c * limit) + 1e-6)  # (b, i, j)
        up, up_bias = self.of(layer, self.up), self.of(layer, self.up_bias)
        hidden = torch.relu(share[..., None] * up + up_bias)
        return DenseTerm((hidden @ self.of(layer, self.down).T).movedim(-1, 1))  # (b, h, i, j)
