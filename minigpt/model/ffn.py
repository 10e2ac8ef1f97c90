"""Feed-forward layers: what a block does to each token, by itself or with its neighbours."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
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


@dataclass
class ConvConfig(FeedForwardConfig):
    """`kernel`: tokens that a channel sees, its own included."""

    kernel: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.kernel >= 1, "model.ffn.kernel", self.kernel, "must be 1 or more")


@FFN.register("conv", ConvConfig)
class ConvFeedForward(nn.Module):
    """W2 f(sum_s c_s * W1 x_(t-s)), f = max(x, 0)^2: a causal depthwise convolution inside.

    As in Primer (So et al. 2021) each hidden channel weighs the last `kernel` tokens of the text,
    in the order of its rows; before the first of a document there are zeros. It starts as f alone,
    with 1 for the token itself. A cache keeps kernel - 1 hidden vectors.
    """

    def __init__(self, config: ConvConfig, model: ModelConfig) -> None:
        super().__init__()
        hidden = config.hidden(model.n_embd)
        self.kernel = config.kernel
        self.up = nn.Linear(model.n_embd, hidden, bias=model.bias)
        self.taps = nn.Parameter(torch.zeros(config.kernel, hidden))  # the token's own is last
        with torch.no_grad():
            self.taps[-1] = 1
        self.out = nn.Linear(hidden, model.n_embd, bias=model.bias)

    def forward(self, x: Tensor, shared: Pass) -> Tensor:
        up = self.up(x)
        length = up.shape[1]
        both = torch.cat((self._before(up, shared), up), 1)
        documents = shared.documents
        if documents is not None:
            documents = F.pad(documents, (self.kernel - 1, 0), value=-1)
        mixed = self.taps[-1] * up
        for s, tap in enumerate(self.taps[:-1]):
            earlier = both[:, s : s + length]
            if documents is not None:
                same = documents[:, s : s + length] == documents[:, self.kernel - 1 :]
                earlier = earlier.masked_fill(~same[..., None], 0)
            mixed = mixed + tap * earlier
        if shared.cache is not None:
            last = shared.cache.real.sum(1)[:, None] + torch.arange(
                self.kernel - 1, device=x.device
            )
            shared.cache.states[self] = both.gather(1, last[..., None].expand(-1, -1, up.shape[2]))
        return self.out(relu_squared(mixed))

    def _before(self, up: Tensor, shared: Pass) -> Tensor:
        """Hidden vectors of the tokens before those of this pass: (b, kernel - 1, hidden)."""
        if shared.cache is not None and self in shared.cache.states:
            return shared.cache.states[self]
        return up.new_zeros(len(up), self.kernel - 1, up.shape[2])
