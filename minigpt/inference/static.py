"""Decoding as a function of tensors that stay where they are, which a CUDA graph can replay."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from minigpt.capture import Captured, CaptureError
from minigpt.model import GPT
from minigpt.model.kv_cache import StaticKVCache
from minigpt.runtime import Runtime

MAX_CHUNK = 32  # tokens between two waits of the host
MAX_NOISE = 2**24  # random numbers drawn in advance: 64 MiB

Choose = Callable[[Tensor, Tensor], Tensor]
"""choose(logits, noise) -> tokens (b,); logits and noise, Exponential(1), are (b, n_vocab)."""


def static_limit(model: GPT) -> str | None:
    """Return why a model's tokens cannot be computed as a CUDA graph; None if they can."""
    config = model.config
    if config.n_layer > 0 and config.attention.name != "full":
        return f"attention={config.attention.name} has a cache of other shapes"
    if config.n_special_tokens:
        return "special tokens must not be chosen"
    if config.ffn.name in ("moe", "conv"):
        return f"ffn={config.ffn.name} waits for the device or has a state"
    if model.backend_name == "flex":
        return "no test has captured FlexAttention"
    return None


class StaticTokens:
    """Tokens of a batch of sequences: each is chosen, processed at its position, and so on.

    `generators`: one per sequence; each draws the same numbers for the same token as
    torch.multinomial, which also returns the argmax of p / Exponential(1). `captured`: whether to
    replay a CUDA graph.
    """

    def __init__(
        self,
        model: GPT,
        cache: StaticKVCache,
        choose: Choose,
        generators: Sequence[torch.Generator],
        runtime: Runtime,
        captured: bool,
    ) -> None:
        self.model, self.cache, self.choose, self.runtime = model, cache, choose, runtime
        self.generators = generators
        batch, device, n_vocab = len(generators), cache.device, model.n_vocab
        self.chunk = max(1, min(MAX_CHUNK, MAX_NOISE // (batch * n_vocab)))
        self.noise = torch.ones(self.chunk, batch, n_vocab, dtype=torch.float32, device=device)
        self.chosen = torch.zeros(self.chunk, batch, dtype=torch.int64, device=device)
        self.newest = torch.zeros(batch, 1, dtype=torch.int64, device=device)
        self.positions = torch.zeros(batch, 1, dtype=torch.int64, device=device)
        self.index = torch.zeros(1, dtype=torch.int64, device=device)  # of the next token chosen
        self.replay: Callable[[], None] = Captured(self.compute) if captured else self.compute

    def start(self, lengths: Sequence[int], logits: Tensor) -> list[int]:
        """Choose the first tokens after a prefill of `lengths` tokens; return one per sequence."""
        self.positions.copy_(torch.tensor(lengths)[:, None])
        self._draw(1)
        self.newest.copy_(self.choose(logits, self.noise[0])[:, None])
        return self.newest[:, 0].tolist()

    def take(self, n: int) -> list[list[int]]:
        """Process the newest tokens and choose others, n times; return the n tokens by sequence.

        `n`: at most `chunk`. The host waits once.
        """
        self._draw(n)
        self.index.zero_()
        for _ in range(n):
            self._step()
        return self.chosen[:n].T.tolist()

    def compute(self) -> None:
        """Process the newest tokens, and choose the next."""
        with self.runtime.autocast():
            logits = self.model(self.newest, self.positions, self.cache)[:, -1]
        tokens = self.choose(logits, self.noise.index_select(0, self.index)[0])
        self.chosen.index_copy_(0, self.index, tokens[None])
        self.newest.copy_(tokens[:, None])
        self.positions.add_(1)
        self.index.add_(1)

    def _step(self) -> None:
        try:
            self.replay()
        except CaptureError as error:
            warnings.warn(f"decoding without a CUDA graph, more slowly: {error}", stacklevel=2)
            self.replay = self.compute
            self.replay()

    def _draw(self, n: int) -> None:
        """Draw the noise of the next n tokens."""
        for noise in self.noise[:n]:
            for row, generator in zip(noise, self.generators, strict=True):
                row.exponential_(generator=generator)
