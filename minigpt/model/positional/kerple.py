"""KERPLE's logarithmic kernel: scores fall with the logarithm of the distance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from minigpt.model.positional.base import (
    POSITIONAL,
    BiasScheme,
    LayersConfig,
    ScoreTerm,
    distance_of,
)

if TYPE_CHECKING:
    from minigpt.model.gpt import ModelConfig


@POSITIONAL.register("kerple", LayersConfig)
class KerpleLog(BiasScheme):
    """score -= p_h log(1 + a_h (i - j)), p_h, a_h > 0 learned (Chi et al. 2022, equation 3).

    Kept above 0 as exponentials; p starts uniform in (0, 2), a in (0, 1), as the authors' code.
    2 n_head parameters, times n_layer with own layers; memory: about three times h t^2 numbers,
    once or a layer; defined at every length.
    """

    def __init__(self, config: LayersConfig, model: ModelConfig) -> None:
        super().__init__(config, model)
        shape = (self.n_sets, model.n_head)
        self.log_p = nn.Parameter((2 * (1 - torch.rand(shape))).log())  # 1 - [0, 1): never 0
        self.log_a = nn.Parameter((1 - torch.rand(shape)).log())

    def score_term(
        self, q: Tensor, k: Tensor, q_positions: Tensor, k_positions: Tensor, layer: int
    ) -> ScoreTerm:
        p, a = (self.of(layer, raw).exp() for raw in (self.log_p, self.log_a))
        distance = distance_of(q_positions, k_positions)

        def term(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return -p[h] * torch.log1p(a[h] * distance(b, i, j))

        return term
