"""The interface of feed-forward layers, their registry, and the MLPs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.errors import require
from minigpt.model.context import ForwardContext
from minigpt.model.linear import Linear, linear_flops
from minigpt.model.shape import ModelShape
from minigpt.registry import Registry


@dataclass
class FeedForwardConfig:
    """`expansion`: hidden width / n_embd; the width is rounded up to a multiple of 8."""

    name: str
    expansion: float

    def __post_init__(self) -> None:
        require(self.expansion > 0, "model.ffn.expansion", self.expansion, "must be above 0")

    def hidden_width(self, n_embd: int) -> int:
        """Return the hidden width."""
        return math.ceil(self.expansion * n_embd / 8) * 8


class FeedForward(nn.Module, ABC):
    """A feed-forward layer."""

    @abstractmethod
    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """(b, t, d) -> (b, t, d)."""

    def flops_per_token(self) -> int:
        """Return the training FLOPs of a token's products; elementwise ones are not counted."""
        return linear_flops(self)

    def inactive_parameters(self) -> int:
        """Return the number of parameters that a token does not use."""
        return 0


FFN: Registry[FeedForward] = Registry("ffn", "model.ffn", "minigpt.model.ffn")


class MLP(FeedForward):
    """W2 f(W1 x): two linear layers with an activation f between them."""

    activation: Callable[[Tensor], Tensor]

    def __init__(self, config: FeedForwardConfig, shape: ModelShape) -> None:
        super().__init__()
        hidden = config.hidden_width(shape.n_embd)
        self.up = Linear(shape.n_embd, hidden, bias=shape.bias)
        self.out = Linear(hidden, shape.n_embd, bias=shape.bias)

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        return self.out(type(self).activation(self.up(x)))


@FFN.register("gelu", FeedForwardConfig)
class GeluMLP(MLP):
    """f = GELU, exact (Hendrycks & Gimpel 2016)."""

    activation = staticmethod(F.gelu)


@FFN.register("gelu_tanh", FeedForwardConfig)
class GeluTanhMLP(MLP):
    """f = GELU by its tanh approximation, as in GPT-2 (Hendrycks & Gimpel 2016)."""

    activation = staticmethod(partial(F.gelu, approximate="tanh"))


@FFN.register("relu", FeedForwardConfig)
class ReluMLP(MLP):
    """f = max(x, 0) (Vaswani et al. 2017)."""

    activation = staticmethod(F.relu)


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0)^2."""
    return F.relu(x).square()


@FFN.register("relu2", FeedForwardConfig)
class SquaredReluMLP(MLP):
    """f = max(x, 0)^2 (So et al. 2021, Primer)."""

    activation = staticmethod(relu_squared)


class GatedMLP(FeedForward):
    """W2 (f(W1 x) * V x) (Shazeer 2020). Expansion 8/3 has as many parameters as an MLP with 4."""

    activation: Callable[[Tensor], Tensor]

    def __init__(self, config: FeedForwardConfig, shape: ModelShape) -> None:
        super().__init__()
        hidden = config.hidden_width(shape.n_embd)
        self.gate_up = Linear(shape.n_embd, 2 * hidden, bias=shape.bias)
        self.out = Linear(hidden, shape.n_embd, bias=shape.bias)

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.out(type(self).activation(gate) * up)


@FFN.register("swiglu", FeedForwardConfig)
class SwigluMLP(GatedMLP):
    """f = x sigmoid(x)."""

    activation = staticmethod(F.silu)


@FFN.register("geglu", FeedForwardConfig)
class GegluMLP(GatedMLP):
    """f = GELU, exact."""

    activation = staticmethod(F.gelu)


@FFN.register("geglu_tanh", FeedForwardConfig)
class GegluTanhMLP(GatedMLP):
    """f = GELU by its tanh approximation, as in Gemma."""

    activation = staticmethod(partial(F.gelu, approximate="tanh"))
