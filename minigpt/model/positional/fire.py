"""FIRE: a small network reads the distance as a share of how far a query can look back."""

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
    LayersConfig,
    PositionalScheme,
    ScoreTerm,
)

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
class Fire(PositionalScheme):
    """score += f_h(psi(i - j) / psi(max(L, i))), psi(x) = log(1 + |c| x) (Li et al. 2023).

    f has one hidden ReLU layer; c and L are learned. It sees the query's absolute position i, as
    the length it normalises by. No output bias: the softmax would not see it. (2 + n_head) width
    + 2 parameters, times n_layer with own layers; memory: t^2 (width + h) numbers, once or a
    layer; defined at every length.
    """

    decays = False

    def __init__(self, config: FireConfig, model: ModelConfig) -> None:
        super().__init__(config, model)
        self.score = "positions" if config.layers == "shared" else "layer"
        n = config.n_sets(model)
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
        s = layer % len(self.c)  # one set may serve all layers
        c, length = self.c[s].abs(), (self.length[s] * self.first_length).abs()
        i, j = q_positions[:, :, None], k_positions[:, None, :]
        distance, limit = (i - j).clamp(min=0), torch.maximum(length, i)
        share = torch.log1p(c * distance) / (torch.log1p(c * limit) + 1e-6)  # (b, i, j)
        hidden = torch.relu(share[..., None] * self.up[s] + self.up_bias[s])
        return DenseTerm((hidden @ self.down[s].T).movedim(-1, 1))  # (b, h, i, j)
