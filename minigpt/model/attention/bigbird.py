"""BigBird: a window, some global blocks and some random ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from minigpt.errors import require, require_at_least
from minigpt.model.attention.base import (
    ATTENTION,
    AlternatingAttentionConfig,
    Attention,
    fraction_of_block,
)
from minigpt.model.shape import ModelShape

PRIME = 2**31 - 1


@dataclass
class BigBirdConfig(AlternatingAttentionConfig):
    """`block`: positions per block, None for block_size / 16. A query attends to the last
    `n_window` blocks including its own, to the first `n_global` blocks of the sequence, and to
    `n_random` blocks drawn with replacement, seeded by `seed`."""

    block: int | None
    n_window: int
    n_global: int
    n_random: int
    seed: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, "model.attention", self, "block", or_null=True)
        require_at_least(1, "model.attention", self, "n_window")
        require_at_least(0, "model.attention", self, "n_global", "n_random")
        why = "must be from 0 to 2^32 - 1"
        require(0 <= self.seed < 2**32, "model.attention.seed", self.seed, why)


@ATTENTION.register("bigbird", BigBirdConfig)
class BigBird(Attention):
    """Window, global and random blocks (Zaheer et al. 2020), of the keys that a query can see.

    The random blocks of a query block differ between heads and are the same in all layers. They are
    a hash of seed, head and block, and so do not depend on the length: blocks before the query's,
    or two-sided, blocks of the first block_size positions. Two-sided, the window extends to both
    sides, and queries of global blocks attend to all keys, as in the paper. Any later query may
    attend to a key, so a cache stores all keys. FlexAttention skips masked blocks; the other
    backends compute and mask them.
    """

    mask_by_head = True

    def __init__(self, config: BigBirdConfig, shape: ModelShape) -> None:
        super().__init__(config, shape)
        self.config, self.block = config, fraction_of_block(config.block, shape, 16)
        self.n_blocks = -(-shape.block_size // self.block)

    def mask_mod(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        own, other = q_idx // self.block, kv_idx // self.block
        mask = (own - other < self.config.n_window) | (other < self.config.n_global)
        if self.two_sided:
            mask = (own - other).abs() < self.config.n_window
            mask = mask | (torch.minimum(own, other) < self.config.n_global)
        for draw in range(self.config.n_random):
            mask = mask | (other == self.random_block(own, h, draw))
        return mask

    def random_block(self, own: Tensor, h: Tensor, draw: int) -> Tensor:
        """Return the number of a block: before block `own` (0 for the first), or two-sided, any."""
        x = (own * 7919 + h * 104729 + draw * 1299709 + self.config.seed * 15485863 + 1) % PRIME
        x = x * x % PRIME * 48271 % PRIME
        return x * (self.n_blocks if self.two_sided else own) // PRIME

    def keys_per_query(self, length: int) -> float:
        n_window = self.config.n_window * (2 if self.two_sided else 1) - self.two_sided
        blocks = n_window + self.config.n_global + self.config.n_random
        return min(length, blocks * self.block)
