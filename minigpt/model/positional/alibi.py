"""ALiBi: scores fall linearly with the distance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minigpt.errors import require_one_of
from minigpt.model.positional.base import (
    POSITIONAL,
    PositionalConfig,
    PositionalScheme,
    ScoreMod,
    distance_between,
)
from minigpt.model.shape import ModelShape


def alibi_slopes(n_head: int) -> list[float]:
    """Return the slope of each head: 2^(-8/n), 2^(-16/n), ... for n a power of two.

    Other head counts take the slopes of the next lower power of two, then every other slope of
    the next higher one, as in the authors' code (Press et al. 2021, section 3).
    """
    power = 1 << (n_head.bit_length() - 1)
    slopes = [2.0 ** (-8 * (h + 1) / power) for h in range(power)]
    between = [2.0 ** (-8 * (h + 1) / (2 * power)) for h in range(0, 2 * power, 2)]
    return slopes + between[: n_head - power]


@dataclass
class AlibiConfig(PositionalConfig):
    """`slopes`: fixed, or learned with the fixed ones as initial values."""

    slopes: str = "fixed"

    def __post_init__(self) -> None:
        require_one_of("model.positional.slopes", self.slopes, ("fixed", "learned"))


@POSITIONAL.register("alibi", AlibiConfig)
class Alibi(PositionalScheme):
    """score -= slope_h * (i - j) (Press et al. 2021); two-sided, slope_h * |i - j|, the symmetric
    form that the authors suggest.

    No parameters, or n_head learned slopes shared by all layers; memory: h t^2 numbers, once;
    defined at every length.
    """

    bias_depends_on = "positions"

    def __init__(self, config: AlibiConfig, shape: ModelShape) -> None:
        super().__init__(config, shape)
        slopes = torch.tensor(alibi_slopes(shape.n_head))
        if config.slopes == "learned":
            self.slopes = nn.Parameter(slopes)
        else:
            self.register_buffer("slopes", slopes, persistent=False)

    @classmethod
    def has_learned_bias(cls, options: AlibiConfig) -> bool:
        return options.slopes == "learned"

    def score_mod(
        self, q: Tensor, k: Tensor, q_positions: Tensor, k_positions: Tensor, layer: int
    ) -> ScoreMod:
        distance = distance_between(q_positions, k_positions, self.two_sided)

        def score_mod(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
            return score - self.slopes[h] * distance(b, q_idx, kv_idx)

        return score_mod
