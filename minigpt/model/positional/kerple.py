"""KERPLE's logarithmic kernel: scores fall with the logarithm of the distance."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minigpt.model.positional.base import (
    POSITIONAL,
    LayerSharingConfig,
    LearnedBiasScheme,
    ScoreMod,
    distance_between,
)
from minigpt.model.shape import ModelShape


@POSITIONAL.register("kerple", LayerSharingConfig)
class KerpleLog(LearnedBiasScheme):
    """score -= p_h log(1 + a_h (i - j)), p_h, a_h > 0 learned (Chi et al. 2022, equation 3);
    two-sided, of |i - j|.

    Parametrised by their logarithms; p starts uniform in (0, 2), a in (0, 1), as in the authors'
    code. 2 n_head parameters, times n_layer with own layers; memory: about three times h t^2
    numbers, once or per layer; defined at every length.
    """

    def __init__(self, config: LayerSharingConfig, shape: ModelShape) -> None:
        super().__init__(config, shape)
        size = (self.n_sets, shape.n_head)
        self.log_p = nn.Parameter((2 * (1 - torch.rand(size))).log())  # 1 - [0, 1): never 0
        self.log_a = nn.Parameter((1 - torch.rand(size)).log())

    def score_mod(
        self, q: Tensor, k: Tensor, q_positions: Tensor, k_positions: Tensor, layer: int
    ) -> ScoreMod:
        p, a = (self.of_layer(layer, raw).exp() for raw in (self.log_p, self.log_a))
        distance = distance_between(q_positions, k_positions, self.two_sided)

        def score_mod(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
            return score - p[h] * torch.log1p(a[h] * distance(b, q_idx, kv_idx))

        return score_mod
