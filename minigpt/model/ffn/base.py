"""Feed-forward layers of two maps, and the registry of all."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.errors import require
from minigpt.registry import Registry

if TYPE_CHECKING:
    from minigpt.model.attention import Pass
    from minigpt.model.gpt import ModelConfig

FFN: Registry[nn.Module] = Registry("ffn", "model.ffn", "minigpt.model.ffn")


@dataclass
class FeedForwardConfig:
    """`expansion`: hidden width over n_embd; the product is rounded up to a multiple of 8."""

    name: str
    expansion: float

    def __post_init__(self) -> None:
        require(self.expansion > 0, "model.ffn.expansion", self.expansion, "must be above 0")

    def hidden(self, n_embd: int) -> int:
        """The hidden width."""
        return math.ceil(self.expansion * n_embd / 8) * 8


class FeedForward(nn.Module):
    """W2 f(W1 x): two linear maps around an elementwise function."""

    activation: Callable[[Tensor], Tensor]

    def __init__(self, config: FeedForwardConfig, model: ModelConfig) -> None:
        super().__init__()
        hidden = config.hidden(model.n_embd)
        self.up = nn.Linear(model.n_embd, hidden, bias=model.bias)
        self.out = nn.Linear(hidden, model.n_embd, bias=model.bias)

    def forward(self, x: Tensor, shared: Pass) -> Tensor:
        return self.out(type(self).activation(self.up(x)))


@FFN.register("gelu", FeedForwardConfig)
class GeluFeedForward(FeedForward):
    """f = GELU, exact (Hendrycks & Gimpel 2016)."""

    activation = staticmethod(F.gelu)


@FFN.register("relu", FeedForwardConfig)
class ReluFeedForward(FeedForward):
    """f = max(x, 0) (Vaswani et al. 2017)."""

    activation = staticmethod(F.relu)


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0)^2."""
    return F.relu(x).square()


@FFN.register("relu2", FeedForwardConfig)
class SquaredReluFeedForward(FeedForward):
    """f = max(x, 0)^2 (So et al. 2021, Primer)."""

    activation = staticmethod(relu_squared)


class GatedFeedForward(nn.Module):
    """W2 (f(W1 x) * V x) (Shazeer 2020). At expansion 8/3 it weighs as much as others at 4."""

    activation: Callable[[Tensor], Tensor]

    def __init__(self, config: FeedForwardConfig, model: ModelConfig) -> None:
        super().__init__()
        hidden = config.hidden(model.n_embd)
        self.gate_up = nn.Linear(model.n_embd, 2 * hidden, bias=model.bias)
        self.out = nn.Linear(hidden, model.n_embd, bias=model.bias)

    def forward(self, x: Tensor, shared: Pass) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.out(type(self).activation(gate) * up)


@FFN.register("swiglu", FeedForwardConfig)
class SwigluFeedForward(GatedFeedForward):
    """f = x sigmoid(x)."""

    activation = staticmethod(F.silu)


@FFN.register("geglu", FeedForwardConfig)
class GegluFeedForward(GatedFeedForward):
    """f = GELU, exact."""

    activation = staticmethod(F.gelu)
