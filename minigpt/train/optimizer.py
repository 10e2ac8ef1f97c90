"""Optimizers."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from minigpt.errors import require
from minigpt.model import GPT
from minigpt.registry import Registry


@dataclass
class OptimizerConfig:
    """`lr`: the peak that the schedule scales; `clip`: bound of the gradient's norm or null."""

    name: str
    lr: float
    weight_decay: float
    clip: float | None

    def __post_init__(self) -> None:
        require(self.lr >= 0, "optimizer.lr", self.lr, "must be 0 or more")
        require(
            self.weight_decay >= 0,
            "optimizer.weight_decay",
            self.weight_decay,
            "must be 0 or more",
        )
        require(
            self.clip is None or self.clip > 0,
            "optimizer.clip",
            self.clip,
            "must be above 0, or null for no clipping",
        )


OPTIMIZERS: Registry[torch.optim.Optimizer] = Registry(
    "optimizer", "optimizer", "minigpt.train.optimizer"
)


def decay_groups(model: GPT, weight_decay: float) -> list[dict[str, object]]:
    """Two parameter groups: those the model lets decay, and the rest."""
    decayed = model.decayed()
    kept = set(model.parameters()) - set(decayed)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": [p for p in model.parameters() if p in kept], "weight_decay": 0.0},
    ]


@dataclass
class AdamWConfig(OptimizerConfig):
    """AdamW's decay rates of the first and second moment, and its epsilon."""

    beta1: float
    beta2: float
    eps: float

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("beta1", "beta2"):
            value = getattr(self, key)
            require(0 <= value < 1, f"optimizer.{key}", value, "must be in [0, 1)")
        require(self.eps > 0, "optimizer.eps", self.eps, "must be above 0")


@OPTIMIZERS.register("adamw", AdamWConfig)
class AdamW(torch.optim.AdamW):
    """AdamW (Loshchilov & Hutter 2019) in torch's fused form, decay on matrices only."""

    def __init__(self, config: AdamWConfig, model: GPT) -> None:
        super().__init__(
            decay_groups(model, config.weight_decay),
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            fused=True,
        )
