"""A feed-forward layer that looks at the tokens before, by a convolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.errors import require
from minigpt.model.ffn.base import FFN, FeedForwardConfig, relu_squared

if TYPE_CHECKING:
    from minigpt.model.attention import Pass
    from minigpt.model.gpt import ModelConfig


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
        why = f"reaches over model.block_size={model.block_size}; use that or less"
        require(config.kernel <= model.block_size, "model.ffn.kernel", config.kernel, why)
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
