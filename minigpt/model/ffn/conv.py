"""A feed-forward layer with a causal convolution over the last tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.errors import require_at_least
from minigpt.model.context import ForwardContext
from minigpt.model.ffn.base import FFN, FeedForward, FeedForwardConfig, relu_squared
from minigpt.model.linear import Linear
from minigpt.model.shape import ModelShape


@dataclass
class ConvConfig(FeedForwardConfig):
    """`kernel`: kernel size in tokens, including the current one."""

    kernel: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, "model.ffn", self, "kernel")


@FFN.register("conv", ConvConfig)
class ConvFeedForward(FeedForward):
    """W2 f(sum_s c_s * W1 x_(t-s)), f = max(x, 0)^2: an MLP with a causal depthwise convolution.

    As in Primer (So et al. 2021), each hidden channel is convolved over the last `kernel` tokens.
    The input is zero before the first token of a document. An encoder too is convolved over earlier
    tokens. The convolution is initialised to the
    identity. A cache stores kernel - 1 hidden vectors.
    """

    def __init__(self, config: ConvConfig, shape: ModelShape) -> None:
        super().__init__()
        hidden = config.hidden_width(shape.n_embd)
        self.kernel = config.kernel
        self.up = Linear(shape.n_embd, hidden, bias=shape.bias)
        self.taps = nn.Parameter(torch.zeros(config.kernel, hidden))  # index -1: the current token
        with torch.no_grad():
            self.taps[-1] = 1
        self.out = Linear(hidden, shape.n_embd, bias=shape.bias)

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        up = self.up(x)
        length = up.shape[1]
        previous: Tensor = up.new_zeros(len(up), self.kernel - 1, up.shape[2])
        if ctx.cache is not None:
            previous = ctx.cache.states.get(self, previous)
        padded = torch.cat((previous, up), 1)
        document_ids = ctx.document_ids
        if document_ids is not None:
            document_ids = F.pad(document_ids, (self.kernel - 1, 0), value=-1)
        mixed = self.taps[-1] * up
        for s, tap in enumerate(self.taps[:-1]):
            earlier = padded[:, s : s + length]
            if document_ids is not None:
                same = document_ids[:, s : s + length] == document_ids[:, self.kernel - 1 :]
                earlier = earlier.masked_fill(~same[..., None], 0)
            mixed = mixed + tap * earlier
        if ctx.cache is not None:
            n_tokens = ctx.cache.is_token.sum(1)[:, None]
            last = n_tokens + torch.arange(self.kernel - 1, device=x.device)
            ctx.cache.states[self] = padded.gather(1, last[..., None].expand(-1, -1, up.shape[2]))
        return self.out(relu_squared(mixed))
