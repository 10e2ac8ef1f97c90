"""ALiBi: the further back a key, the lower its score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from minigpt.errors import require_one_of
from minigpt.model.positional.base import (
    POSITIONAL,
    PositionalConfig,
    PositionalScheme,
    ScoreTerm,
    distance_of,
)

if TYPE_CHECKING:
    from minigpt.model.gpt import ModelConfig


def alibi_slopes(n_head: int) -> list[float]:
    """Slope of each head: 2^(-8/n), 2^(-16/n), ... for n a power of two.

    Other head counts take the slopes of the next lower power of two, then every other slope of
    the next higher one, as in the authors' code (Press et al. 2021, section 3).
    """
    power = 1 << (n_head.bit_length() - 1)
    slopes = [2.0 ** (-8 * (h + 1) / power) for h in range(power)]
    between = [2.0 ** (-8 * (h + 1) / (2 * power)) for h in range(0, 2 * power, 2)]
    return slopes + between[: n_head - power]


@dataclass
class AlibiConfig(PositionalConfig):
    """`slopes`: fixed, or learned from there on."""

    slopes: str = "fixed"

    def __post_init__(self) -> None:
        require_one_of("model.positional.slopes", self.slopes, ("fixed", "learned"))


@POSITIONAL.register("alibi", AlibiConfig)
class Alibi(PositionalScheme):
    """score -= slope_h * (i - j) (Press et al. 2021).

    No parameters, or n_head learned slopes, the same in all layers; memory: h t^2 numbers, once;
    defined at every length.
    """

    score = "positions"

    def __init__(self, config: AlibiConfig, model: ModelConfig) -> None:
        super().__init__(config, model)
        slopes = torch.tensor(alibi_slopes(model.n_head))
        if config.slopes == "learned":
            self.slopes = nn.Parameter(slopes)
        else:
            self.register_buffer("slopes", slopes, persistent=False)

    def score_term(
        self, q: Tensor, k: Tensor, q_positions: Tensor, k_positions: Tensor, layer: int
    ) -> ScoreTerm:
        distance = distance_of(q_positions, k_positions)

        def term(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return -self.slopes[h] * distance(b, i, j)

        return term
