"""BigBird: a window, some global blocks and some random ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from minigpt.errors import require
from minigpt.model.attention.base import (
    ATTENTION,
    Attention,
    LayersConfig,
    require_whole,
    require_whole_or_none,
    span,
)

if TYPE_CHECKING:
    from minigpt.model.gpt import ModelConfig

PRIME = 2**31 - 1


@dataclass
class BigBirdConfig(LayersConfig):
    """`block`: positions of a block, None for a sixteenth of block_size; of blocks a query sees the
    last `n_window`, its own included, the first `n_global` of the text and `n_random` drawn by
    `seed`, with replacement."""

    block: int | None
    n_window: int
    n_global: int
    n_random: int
    seed: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole_or_none("block", self.block)
        require_whole("n_window", self.n_window)
        for key in ("n_global", "n_random"):
            require_whole(key, getattr(self, key), least=0)
        why = "must be from 0 to 2^32 - 1"
        require(0 <= self.seed < 2**32, "model.attention.seed", self.seed, why)


@ATTENTION.register("bigbird", BigBirdConfig)
class BigBird(Attention):
    """Window, global and random blocks (Zaheer et al. 2020), those of them that are earlier.

    Each head draws its own blocks for each block of queries, the same in all layers: by a hash of
    the three numbers, so that a longer text draws no others. As keys are seen from anywhere later,
    a cache holds them all. FlexAttention skips what is not seen; the other backends write it out.
    """

    by_head = True

    def __init__(self, config: BigBirdConfig, model: ModelConfig) -> None:
        super().__init__(config, model)
        self.config, self.block = config, span("block", config.block, model, 16)

    def sees(self, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        own, other = i // self.block, j // self.block
        seen = (own - other < self.config.n_window) | (other < self.config.n_global)
        for draw in range(self.config.n_random):
            seen = seen | (other == self.drawn(own, h, draw))
        return seen

    def drawn(self, own: Tensor, h: Tensor, draw: int) -> Tensor:
        """A block before block `own`, or the first."""
        x = (own * 7919 + h * 104729 + draw * 1299709 + self.config.seed * 15485863 + 1) % PRIME
        x = x * x % PRIME * 48271 % PRIME
        return x * own // PRIME

    def keys(self, length: int) -> float:
        blocks = self.config.n_window + self.config.n_global + self.config.n_random
        return min(length, blocks * self.block)
