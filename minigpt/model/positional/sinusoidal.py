"""Fixed sines and cosines of the absolute position."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from minigpt.errors import require
from minigpt.model.positional.base import POSITIONAL, PositionalConfig, PositionalScheme
from minigpt.model.shape import ModelShape


@dataclass
class SinusoidalConfig(PositionalConfig):
    """`base`: the longest wavelength is 2 pi * base positions."""

    base: float

    def __post_init__(self) -> None:
        require(self.base > 1, "model.positional.base", self.base, "use a number above 1")


def sinusoids(positions: Tensor, n_embd: int, base: float) -> Tensor:
    """Return P_t[2k], P_t[2k+1] = sin, cos of t / base^(2k/d) (Vaswani et al. 2017): (b, t, d)."""
    assert n_embd % 2 == 0, "`compatibility` should have rejected this"
    channel = torch.arange(0, n_embd, 2, device=positions.device)
    angle = positions[..., None] * base ** (-channel / n_embd)
    return rearrange([angle.sin(), angle.cos()], "two b t k -> b t (k two)")


@POSITIONAL.register("sinusoidal", SinusoidalConfig)
class SinusoidalPositions(PositionalScheme):
    """sqrt(d) x_t + P_t, P_t the sinusoids of t (Vaswani et al. 2017).

    The factor sqrt(d) is the paper's (section 3.4). P has an RMS of 0.7; at the start it is
    35 / sqrt(d) times sqrt(d) x. No parameters; memory: t d numbers, once;
    defined at every length.
    """

    def __init__(self, config: SinusoidalConfig, shape: ModelShape) -> None:
        super().__init__(config, shape)
        self.base = config.base

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        table = sinusoids(positions, self.n_embd, self.base)
        return math.sqrt(self.n_embd) * x + table.to(x.dtype)
