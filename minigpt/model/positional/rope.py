"""Rotary positions: queries and keys turn with the position."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minigpt.errors import require, require_one_of
from minigpt.model.positional.base import POSITIONAL, PositionalConfig, PositionalScheme

if TYPE_CHECKING:
    from minigpt.model.gpt import ModelConfig

# YaRN leaves channels alone that turn more often than the first within block_size, and
# interpolates fully those that turn less than the second (Peng et al. 2023, section 3.2).
YARN_FAST, YARN_SLOW = 32, 1


@dataclass
class RopeConfig(PositionalConfig):
    """`base`: the slowest channel pair turns once in about 2 pi * base positions. `fraction` of
    each head's channels turn. `scaling` stretches positions to `factor` times block_size."""

    base: float
    fraction: float = 1.0
    scaling: str = "none"
    factor: float = 1.0

    def __post_init__(self) -> None:
        require(self.base > 1, "model.positional.base", self.base, "use a number above 1")
        ok = 0 < self.fraction <= 1
        why = "must be above 0 and at most 1"
        require(ok, "model.positional.fraction", self.fraction, why)
        require_one_of("model.positional.scaling", self.scaling, ("none", "linear", "ntk", "yarn"))
        if self.scaling == "none":
            why = "nothing is scaled; set model.positional.scaling=linear, ntk or yarn as well"
            require(self.factor == 1, "model.positional.factor", self.factor, why)
        else:
            why = f"must be above 1 with model.positional.scaling={self.scaling}, as 4"
            require(self.factor > 1, "model.positional.factor", self.factor, why)


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn channel pairs (k, k + n/2) of the first n channels of x (b, h, t, e).

    cos and sin (b or 1, t, n/2) of each pair's angle, times what its length changes by.
    """
    cos, sin = cos[:, None], sin[:, None]
    n = 2 * cos.shape[-1]
    first, second = x[..., :n].chunk(2, dim=-1)  # times cos and sin, bf16 becomes fp32
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat((*(part.to(x.dtype) for part in turned), x[..., n:]), dim=-1)


def frequencies(n: int, base: float, device: torch.device) -> Tensor:
    """base^(-2k/n) of each of n/2 channel pairs: its angle a position."""
    return base ** (-torch.arange(0, n, 2, device=device) / n)


def turned_channels(name: str, fraction: float, model: ModelConfig) -> int:
    """How many channels of a head turn. Raises UserError unless they come in pairs."""
    n = round(fraction * model.head_size)
    whole = math.isclose(n, fraction * model.head_size)
    share = "" if fraction == 1 else f"model.positional.fraction={fraction:g} of "
    why = (
        f"{name} pairs the channels of a head, and {share}the head size {model.head_size} (n_embd="
        f"{model.n_embd} over n_head) is no even number of them; choose another number of heads"
        f"{', or another fraction' if share else ''}"
    )
    require(whole and n >= 2 and n % 2 == 0, "model.n_head", model.n_head, why)
    return n


@POSITIONAL.register("rope", RopeConfig)
class RotaryPositions(PositionalScheme):
    """Turn channel pairs (k, k + n/2) of q_t and k_t by t / base^(2k/n) (Su et al. 2021).

    q_i . k_j then depends on i - j alone. Halves are paired as in GPT-NeoX and Llama, which also
    has the `fraction`. Scalings by a factor s: `linear` turns by t / s (Chen et al. 2023); `ntk`
    uses the base times s^(n/(n-2)) (bloc97 2023); `yarn` divides slow channels alone and multiplies
    scores by (0.1 ln s + 1)^2 (Peng et al. 2023). No parameters; memory: t n numbers a layer;
    defined at every length.
    """

    def __init__(self, config: RopeConfig, model: ModelConfig) -> None:
        super().__init__(config, model)
        self.config, self.block_size = config, model.block_size
        self.n = turned_channels("rope", config.fraction, model)
        if config.scaling == "ntk":
            why = "ntk needs two channel pairs or more to turn; choose larger heads"
            require(self.n > 2, "model.positional.scaling", config.scaling, why)

    def rotate(self, q: Tensor, k: Tensor, positions: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        angle = positions[..., None] * self.frequencies(q.device)
        scale = 1.0
        if self.config.scaling == "yarn":
            scale = 0.1 * math.log(self.config.factor) + 1.0
        cos, sin = scale * angle.cos(), scale * angle.sin()
        return turn(q, cos, sin), turn(k, cos, sin)

    def frequencies(self, device: torch.device) -> Tensor:
        """Angle a position of each channel pair (n/2,), scaled."""
        base, n, factor = self.config.base, self.n, self.config.factor
        if self.config.scaling == "ntk":
            base *= factor ** (n / (n - 2))
        plain = frequencies(n, base, device)
        if self.config.scaling == "linear":
            return plain / factor
        if self.config.scaling == "yarn":
            fast, slow = (self._pair_that_turns(turns) for turns in (YARN_FAST, YARN_SLOW))
            first, last = max(math.floor(fast), 0), min(math.ceil(slow), n - 1)
            pair = torch.arange(n // 2, device=device)
            slowness = ((pair - first) / max(last - first, 0.001)).clamp(0, 1)
            return plain / factor * slowness + plain * (1 - slowness)
        return plain

    def _pair_that_turns(self, turns: float) -> float:
        """The (broken) number of the channel pair that turns so often within block_size."""
        positions_a_radian = self.block_size / (2 * math.pi * turns)
        return self.n * math.log(positions_a_radian) / (2 * math.log(self.config.base))
