"""xPos: rotary position embeddings with a decay over distance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from minigpt.errors import require, require_at_least
from minigpt.model.materialize import materialized
from minigpt.model.positional.base import POSITIONAL, PositionalConfig, PositionalScheme
from minigpt.model.positional.rope import apply_rotary, inverse_frequencies, rotary_channels
from minigpt.model.shape import ModelShape


@dataclass
class XposConfig(PositionalConfig):
    """`base`: as in rope. Over `scale_base` positions, channel pair k decays by a factor of
    (k / (e/2) + gamma) / (1 + gamma)."""

    base: float
    scale_base: float
    gamma: float

    def __post_init__(self) -> None:
        require(self.base > 1, "model.positional.base", self.base, "use a number above 1")
        require_at_least(1, "model.positional", self, "scale_base")
        require(self.gamma > 0, "model.positional.gamma", self.gamma, "must be above 0")


@POSITIONAL.register("xpos", XposConfig)
class XposPositions(PositionalScheme):
    """RoPE, with q_t times z_k^(t/scale_base) and k_t times z_k^(-t/scale_base) (Sun et al. 2022).

    z_k = (2k/e + gamma) / (1 + gamma) for channel pair k, so that q_i . k_j has the factor
    z_k^((i - j) / scale_base): fast pairs decay with the distance. No parameters; memory: 2 t e
    numbers per layer; defined at every length, as long as z_0^(t/scale_base) is a finite float.
    """

    def __init__(self, config: XposConfig, shape: ModelShape) -> None:
        super().__init__(config, shape)
        self.config, self.n = config, rotary_channels(1.0, shape)

    def rotate(self, q: Tensor, k: Tensor, positions: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        angle = positions[..., None] * inverse_frequencies(self.n, self.config.base, q.device)
        fraction = torch.arange(0, self.n, 2, device=q.device) / self.n
        decay = (fraction + self.config.gamma) / (1 + self.config.gamma)
        scale = decay ** (positions[..., None] / self.config.scale_base)  # (b, t, e/2)
        cos, sin = angle.cos(), angle.sin()
        of_q = materialized(scale * cos), materialized(scale * sin)
        of_k = materialized(cos / scale), materialized(sin / scale)
        return apply_rotary(q, *of_q), apply_rotary(k, *of_k)
