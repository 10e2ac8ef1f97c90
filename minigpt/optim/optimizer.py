"""Optimizers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from minigpt.errors import require
from minigpt.model import GPT
from minigpt.registry import Registry


@dataclass
class OptimizerConfig:
    """`lr`: the peak that the schedule scales. `grad_clip`: largest gradient norm; null: none."""

    name: str
    lr: float
    weight_decay: float
    grad_clip: float | None

    def __post_init__(self) -> None:
        require(self.lr >= 0, "optimizer.lr", self.lr, "must be 0 or more")
        require(
            self.weight_decay >= 0,
            "optimizer.weight_decay",
            self.weight_decay,
            "must be 0 or more",
        )
        require(
            self.grad_clip is None or self.grad_clip > 0,
            "optimizer.grad_clip",
            self.grad_clip,
            "must be above 0, or null for no clipping",
        )


OPTIMIZERS: Registry[torch.optim.Optimizer] = Registry(
    "optimizer", "optimizer", "minigpt.optim.optimizer"
)


def decay_groups(
    model: GPT, weight_decay: float, parameters: Iterable[nn.Parameter] | None = None
) -> list[dict[str, Any]]:
    """Two groups of all or some parameters: those the model lets decay, and the rest."""
    decayed = set(model.decayed_parameters())
    chosen = [*(model.parameters() if parameters is None else parameters)]
    return [
        {"params": [p for p in chosen if p in decayed], "weight_decay": weight_decay},
        {"params": [p for p in chosen if p not in decayed], "weight_decay": 0.0},
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


@dataclass
class MuonConfig(AdamWConfig):
    """`momentum`: of the matrices. `other_lr`: AdamW's rate over that of the matrices."""

    momentum: float
    other_lr: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.momentum < 1, "optimizer.momentum", self.momentum, "must be in [0, 1)")
        require(self.other_lr >= 0, "optimizer.other_lr", self.other_lr, "must be 0 or more")


class StackedMuon(torch.optim.Muon):
    """torch's Muon, with the matrices of one shape made orthogonal together.

    The same but for rounding, and faster: most of a step of many small matrices is in launching
    their products.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """One step, momentum as Nesterov's."""
        assert closure is None
        for group in self.param_groups:
            assert group["nesterov"] and group["adjust_lr_fn"] == "match_rms_adamw"
            momentum, lr, decay = group["momentum"], group["lr"], group["weight_decay"]
            of_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    of_shape.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in of_shape.items():
                ahead = torch.stack([self._look_ahead(p, momentum) for p in parameters])
                coefficients, n = group["ns_coefficients"], group["ns_steps"]
                moves = orthogonal(ahead, coefficients, n, group["eps"])
                length = 0.2 * math.sqrt(max(shape))  # as AdamW's usually is (Liu et al. 2025)
                for parameter, move in zip(parameters, moves, strict=True):
                    parameter.mul_(1 - lr * decay)
                    parameter.add_(move, alpha=-lr * length)

    def _look_ahead(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        """Where the momentum is heading: its buffer takes the gradient, and is mixed with it."""
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(buffer, momentum)


def orthogonal(
    matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """Matrices (n, i, j) with all singular values moved near 1, in bf16: U V^T of each, about.

    By the Newton-Schulz iteration X <- a X + (b A + c A^2) X, A = X X^T (Jordan et al. 2024).
    """
    a, b, c = coefficients
    x = matrices.bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    wide = x if x.shape[1] <= x.shape[2] else x.mT  # so that A is the smaller of the two
    for _ in range(steps):
        gram = wide @ wide.mT
        wide = torch.baddbmm(wide, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide if wide.shape == x.shape else wide.mT


@OPTIMIZERS.register("muon", MuonConfig)
class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for the matrices of the blocks, AdamW for all else.

    Muon steps along the nearest orthogonal matrix to the momentum, as long as AdamW's step usually
    is, so that both take rates of one size.
    """

    def __init__(self, config: MuonConfig, model: GPT) -> None:
        matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
        assert matrices, "refused by `compatibility`"
        self.muon = StackedMuon(
            matrices,
            lr=config.lr,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            adjust_lr_fn="match_rms_adamw",
        )
        hidden = set(matrices)
        others = [p for p in model.parameters() if p not in hidden]
        groups = decay_groups(model, config.weight_decay, others)
        self.adamw = torch.optim.AdamW(
            [group | {"lr_factor": config.other_lr} for group in groups],
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            fused=True,
        )
        super().__init__(self._groups(), {})

    def _groups(self) -> list[dict[str, Any]]:
        return [*self.muon.param_groups, *self.adamw.param_groups]  # theirs, so one lr for both

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step of each."""
        assert closure is None
        self.muon.step()
        self.adamw.step()

    def state_dict(self) -> dict[str, Any]:
        """The states of both."""
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take both states back."""
        self.muon.load_state_dict(state_dict["muon"])
        self.adamw.load_state_dict(state_dict["adamw"])
        self.param_groups = self._groups()
