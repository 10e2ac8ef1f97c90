"""Rotary position embeddings: queries and keys are rotated in proportion to the position."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from minigpt.errors import require, require_one_of
from minigpt.model.materialize import materialized
from minigpt.model.positional.base import POSITIONAL, PositionalConfig, PositionalScheme
from minigpt.model.shape import ModelShape

# YaRN keeps the frequency of channel pairs with more than the first number of rotations in
# block_size, and interpolates pairs with fewer than the second (Peng et al. 2023, section 3.2).
YARN_BETA_FAST, YARN_BETA_SLOW = 32, 1


@dataclass
class RopeConfig(PositionalConfig):
    """`base`: the longest wavelength is about 2 pi * base positions. `fraction`: fraction of a
    head's channels that are rotated. `scaling`: method that extends the context by `factor`."""

    base: float
    fraction: float = 1.0
    scaling: str = "none"
    factor: float = 1.0

    def __post_init__(self) -> None:
        require(self.base > 1, "model.positional.base", self.base, "use a number above 1")
        fraction, why = self.fraction, "must be above 0 and at most 1"
        require(0 < fraction <= 1, "model.positional.fraction", fraction, why)
        require_one_of("model.positional.scaling", self.scaling, ("none", "linear", "ntk", "yarn"))
        if self.scaling == "none":
            why = "has no effect without scaling; set model.positional.scaling=linear, ntk or yarn"
            require(self.factor == 1, "model.positional.factor", self.factor, why)
        else:
            why = f"must be above 1 with model.positional.scaling={self.scaling}, such as 4"
            require(self.factor > 1, "model.positional.factor", self.factor, why)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate channel pairs (k, k + n/2) of the first n channels of x (b, h, t, e).

    cos and sin (b or 1, t, n/2): of each pair's angle, multiplied by a scale.
    """
    cos, sin = cos[:, None], sin[:, None]
    n = 2 * cos.shape[-1]
    first, second = x[..., :n].chunk(2, dim=-1)  # times cos and sin, bf16 becomes fp32
    rotated = (first * cos - second * sin, second * cos + first * sin)
    parts = [part.to(x.dtype) for part in rotated]
    if n < x.shape[-1]:  # compiled code is slow with an empty part
        parts.append(x[..., n:])
    return torch.cat(parts, dim=-1)


def inverse_frequencies(n: int, base: float, device: torch.device) -> Tensor:
    """Return base^(-2k/n), the angle per position of each of n/2 channel pairs."""
    return base ** (-torch.arange(0, n, 2, device=device) / n)


def rotary_channels(fraction: float, shape: ModelShape) -> int:
    """Return the number of rotated channels per head, an even number."""
    n = round(fraction * shape.head_size)
    assert n >= 2 and n % 2 == 0, "`compatibility` should have rejected this"
    return n


@POSITIONAL.register("rope", RopeConfig)
class RotaryPositions(PositionalScheme):
    """Rotate channel pairs (k, k + n/2) of q_t and k_t by t / base^(2k/n) (Su et al. 2021).

    q_i . k_j then depends on i - j only. Channels are paired by halves as in GPT-NeoX and Llama;
    `fraction` is GPT-NeoX's. Scalings by a factor s: `linear` rotates by t / s (Chen et al. 2023);
    `ntk` multiplies the base by s^(n/(n-2)) (bloc97 2023); `yarn` divides only the frequencies of
    slow channels and multiplies scores by (0.1 ln s + 1)^2 (Peng et al. 2023). No parameters;
    memory: t n numbers per layer; defined at every length.
    """

    def __init__(self, config: RopeConfig, shape: ModelShape) -> None:
        super().__init__(config, shape)
        self.config, self.block_size = config, shape.block_size
        self.n = rotary_channels(config.fraction, shape)
        assert config.scaling != "ntk" or self.n > 2, "`compatibility` should have rejected this"

    def rotate(self, q: Tensor, k: Tensor, positions: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        angle = positions[..., None] * self.frequencies(q.device)
        scale = 1.0
        if self.config.scaling == "yarn":
            scale = 0.1 * math.log(self.config.factor) + 1.0
        cos, sin = materialized(scale * angle.cos()), materialized(scale * angle.sin())
        return apply_rotary(q, cos, sin), apply_rotary(k, cos, sin)

    def frequencies(self, device: torch.device) -> Tensor:
        """Return the scaled angle per position of each channel pair (n/2,)."""
        base, n, factor = self.config.base, self.n, self.config.factor
        if self.config.scaling == "ntk":
            base *= factor ** (n / (n - 2))
        unscaled = inverse_frequencies(n, base, device)
        if self.config.scaling == "linear":
            return unscaled / factor
        if self.config.scaling == "yarn":
            fast, slow = (self._pair_with(r) for r in (YARN_BETA_FAST, YARN_BETA_SLOW))
            first, last = max(math.floor(fast), 0), min(math.ceil(slow), n - 1)
            pair = torch.arange(n // 2, device=device)
            ramp = ((pair - first) / max(last - first, 0.001)).clamp(0, 1)
            return unscaled / factor * ramp + unscaled * (1 - ramp)
        return unscaled

    def _pair_with(self, rotations: float) -> float:
        """Return the fractional index of the channel pair that makes `rotations` in block_size."""
        positions_per_radian = self.block_size / (2 * math.pi * rotations)
        return self.n * math.log(positions_per_radian) / (2 * math.log(self.config.base))
