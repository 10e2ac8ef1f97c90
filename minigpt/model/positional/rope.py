"""Rotary positions: queries and keys turn with the position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minigpt.errors import require
from minigpt.model.positional.base import POSITIONAL, PositionalConfig, PositionalScheme

if TYPE_CHECKING:
    from minigpt.model.gpt import ModelConfig


@dataclass
class RopeConfig(PositionalConfig):
    """`base`: the slowest channel pair turns once in about 2 pi * base positions."""

    base: float

    def __post_init__(self) -> None:
        require(self.base > 1, "model.positional.base", self.base, "use a number above 1")


@POSITIONAL.register("rope", RopeConfig)
class RotaryPositions(PositionalScheme):
    """Turn channel pairs (k, k + e/2) of q_t and k_t by t / base^(2k/e) (Su et al. 2021).

    q_i . k_j then depends on i - j alone. Halves are paired as in GPT-NeoX and Llama. No
    parameters; defined at every length.
    """

    def __init__(self, config: RopeConfig, model: ModelConfig) -> None:
        super().__init__(config, model)
        self.base, self.head_size = config.base, model.n_embd // model.n_head
        require(
            self.head_size % 2 == 0,
            "model.n_head",
            model.n_head,
            f"rope pairs the channels of a head, and n_embd={model.n_embd} gives an odd head "
            f"size of {self.head_size}; choose n_embd / n_head even",
        )

    def rotate(self, q: Tensor, k: Tensor, positions: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        channel = torch.arange(0, self.head_size, 2, device=q.device)
        frequency = self.base ** (-channel / self.head_size)
        angle = positions[:, None, :, None] * frequency  # (b, 1, t, e/2)
        cos, sin = angle.cos(), angle.sin()

        def turn(x: Tensor) -> Tensor:
            first, second = x.chunk(2, dim=-1)  # times cos and sin, bf16 becomes fp32
            turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
            return turned.to(x.dtype)

        return turn(q), turn(k)
