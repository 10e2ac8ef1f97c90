"""Optimizers."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from minigpt.errors import require, require_at_least
from minigpt.model import GPT
from minigpt.model.linear import matrices
from minigpt.ranks import gathered, part_like
from minigpt.registry import Registry


@dataclass
class OptimizerConfig:
    """Options of every optimizer.

    `lr`: peak learning rate, scaled by the schedule. `grad_clip`: maximum gradient norm. `ema`:
    decay of an average of the weights, see `WeightAverage`; None: none is kept.
    """

    name: str
    lr: float
    weight_decay: float
    grad_clip: float | None
    ema: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        require_at_least(0, "optimizer", self, "lr", "weight_decay")
        clip, why = self.grad_clip, "must be above 0, or null for no clipping"
        require(clip is None or clip > 0, "optimizer.grad_clip", clip, why)
        ema, why = self.ema, "must be between 0 and 1, such as 0.999, or null for no average"
        require(ema is None or 0 < ema < 1, "optimizer.ema", ema, why)


OPTIMIZERS: Registry[torch.optim.Optimizer]
OPTIMIZERS = Registry("optimizer", "optimizer", "minigpt.optim.optimizer")


@dataclass
class AdamWConfig(OptimizerConfig):
    """`beta1`, `beta2`: decay rates of both moments. `eps`: added to the denominator."""

    beta1: float
    beta2: float
    eps: float

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("beta1", "beta2"):
            value = getattr(self, key)
            require(0 <= value < 1, f"optimizer.{key}", value, "must be in [0, 1)")
        require(self.eps > 0, "optimizer.eps", self.eps, "must be above 0")


def trained_parameters(model: GPT) -> list[nn.Parameter]:
    """Return the parameters that are not frozen."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


class EagerOptimizer(torch.optim.Optimizer):
    """torch's methods without their guards against torch.compile, which compiles only the loss.

    The guards import torch._dynamo, which takes nearly as long as `import torch`.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)


@OPTIMIZERS.register("adamw", AdamWConfig)
class AdamW(EagerOptimizer, torch.optim.AdamW):
    """AdamW (Loshchilov & Hutter 2019), fused, with weight decay on matrices only.

    `parameters`: parameters to optimize; None for all that are trained. `lr_factor`: factor of
    their learning rate.
    """

    def __init__(
        self,
        config: AdamWConfig,
        model: GPT,
        parameters: list[nn.Parameter] | None = None,
        lr_factor: float = 1.0,
    ) -> None:
        to_decay = set(model.decayed_parameters())
        parameters = trained_parameters(model) if parameters is None else parameters
        decayed = [p for p in parameters if p in to_decay]
        others = [p for p in parameters if p not in to_decay]
        groups = [
            {"params": decayed, "weight_decay": config.weight_decay, "lr_factor": lr_factor},
            {"params": others, "weight_decay": 0.0, "lr_factor": lr_factor},
        ]
        betas = (config.beta1, config.beta2)
        super().__init__(groups, config.lr, betas, config.eps, fused=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Take one step."""
        assert closure is None
        return inspect.unwrap(torch.optim.AdamW.step)(self)


@dataclass
class MuonConfig(AdamWConfig):
    """`momentum`: Muon's momentum. `adamw_lr_ratio`: learning rate of AdamW / that of Muon."""

    momentum: float
    adamw_lr_ratio: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.momentum < 1, "optimizer.momentum", self.momentum, "must be in [0, 1)")
        require_at_least(0, "optimizer", self, "adamw_lr_ratio")


class StackedMuon(EagerOptimizer, torch.optim.Muon):
    """torch.optim.Muon that orthogonalizes all matrices of one shape in one batched product.

    The result is equal up to rounding. It is faster, since launches of small kernels dominate.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Take one step with Nesterov momentum."""
        assert closure is None
        for group in self.param_groups:
            assert group["nesterov"] and group["adjust_lr_fn"] == "match_rms_adamw"
            momentum, lr, decay = group["momentum"], group["lr"], group["weight_decay"]
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in by_shape.items():
                gradients = torch.stack([gathered(self._nesterov(p, momentum)) for p in parameters])
                coefficients, ns_steps = group["ns_coefficients"], group["ns_steps"]
                updates = orthogonalize(gradients, coefficients, ns_steps, group["eps"])
                scale = 0.2 * math.sqrt(max(shape))  # matches AdamW's RMS (Liu et al. 2025)
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1 - lr * decay)
                    add_scaled(parameter, part_like(update, parameter), -lr * scale)

    def _nesterov(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        """Update the momentum buffer; return it interpolated with the gradient."""
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(buffer, momentum)


def add_scaled(parameter: Tensor, update: Tensor, factor: float | Tensor) -> None:
    """Add factor * update to a parameter; a factor on the device (0-d) is not read by the host."""
    if isinstance(factor, Tensor):
        parameter.addcmul_(update.to(parameter.dtype), factor)
    else:
        parameter.add_(update, alpha=factor)


def orthogonalize(
    matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """Return approximately U V^T of each of `matrices` (n, i, j) = U S V^T, in bf16.

    Of float64 it is computed in float64. Newton-Schulz iteration X <- a X + (b A + c A^2) X with
    A = X X^T (Jordan et al. 2024).
    """
    a, b, c = coefficients
    x = matrices if matrices.dtype == torch.float64 else matrices.bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    wide = x if x.shape[1] <= x.shape[2] else x.mT  # the smaller of X X^T and X^T X
    for _ in range(steps):
        gram = wide @ wide.mT
        wide = torch.baddbmm(wide, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide if wide.shape == x.shape else wide.mT


def states_of(optimizer: torch.optim.Optimizer) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """Yield each parameter with its optimizer state, which may be changed."""
    for part in (optimizer.muon, optimizer.adamw) if isinstance(optimizer, Muon) else (optimizer,):
        yield from part.state.items()


@OPTIMIZERS.register("muon", MuonConfig)
class Muon(EagerOptimizer):
    """Muon (Jordan et al. 2024) for the linear layers of the blocks, AdamW for other parameters.

    Muon's update is the orthogonal matrix nearest to the momentum, scaled to the typical RMS of
    AdamW's update, so that both use learning rates of the same order.
    """

    def __init__(self, config: MuonConfig, model: GPT) -> None:
        trained = trained_parameters(model)
        of_blocks = {m for stack in model.stacks for m in matrices(stack.blocks)}
        hidden = [p for p in trained if p in of_blocks]
        assert hidden, "`compatibility` should have rejected this"
        self.muon = StackedMuon(
            *(hidden, config.lr, config.weight_decay, config.momentum),
            adjust_lr_fn="match_rms_adamw",
        )
        of_muon = set(hidden)
        others = [p for p in trained if p not in of_muon]
        self.adamw = AdamW(config, model, others, config.adamw_lr_ratio)
        super().__init__(self._groups(), {})

    def _groups(self) -> list[dict[str, Any]]:
        # The param_groups are shared, so that setting a learning rate reaches both optimizers.
        return [*self.muon.param_groups, *self.adamw.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Take one step of both optimizers."""
        assert closure is None
        self.muon.step()
        self.adamw.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the states of both optimizers."""
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the states of both optimizers."""
        self.muon.load_state_dict(state_dict["muon"])
        self.adamw.load_state_dict(state_dict["adamw"])
        self.param_groups = self._groups()
