"""The order of training windows: drawn at random, or each once per epoch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from minigpt.data.tokens import Batch, Split


@dataclass(eq=False)
class WindowOrder(ABC):
    """Yields the batches of a run: windows (batch_size, block_size) of a split.

    `generator`: of random draws, on the device of the tokens. `seed`: of the run. Processes that
    train one run together draw the same starts, and read their own rows of them.
    """

    split: Split
    batch_size: int
    block_size: int
    generator: torch.Generator
    seed: int

    def batch(self, step: int) -> Batch:
        """Return the batch of a step. Steps are asked for in order, from any first one."""
        return self.split.windows_at(self.starts(step), self.block_size)

    @abstractmethod
    def starts(self, step: int) -> Tensor:
        """Return the first index (batch_size, 1) of each window of a step; see `batch`."""


class RandomWindows(WindowOrder):
    """Windows at random places, with replacement: they may overlap."""

    def starts(self, step: int) -> Tensor:
        return self.split.random_starts(self.batch_size, self.block_size, self.generator)


@dataclass(eq=False)
class Epochs(WindowOrder):
    """Windows without replacement. An epoch cuts the split into windows that do not overlap, from a
    random offset below block_size, and visits each once, in a random order.

    An epoch leaves out fewer than 2 block_size targets at both ends, and has the same number of
    windows as every other. So offset and order follow from the run's seed and the number of the
    epoch, the batch from the step, and a checkpoint needs nothing of them. They are equal on all
    devices. A batch may begin in one epoch and end in a later one.
    """

    _latest: dict[int, Tensor] = field(default_factory=dict, init=False)  # starts, by epoch

    def starts(self, step: int) -> Tensor:
        first = step * self.batch_size
        parts, end = [], first + self.batch_size
        while first < end:
            epoch, done = divmod(first, self.n_windows)
            part = self._of_epoch(epoch)[done : done + end - first]
            parts.append(part)
            first += len(part)
        return torch.cat(parts)

    @cached_property
    def n_windows(self) -> int:
        """Windows per epoch: as many as fit after every offset, and at least one."""
        return max(1, len(self.split.tokens) // self.block_size - 1)

    def _of_epoch(self, epoch: int) -> Tensor:
        """Return the first index (n_windows, 1) of each window of an epoch, in order of use."""
        if epoch not in self._latest:
            random = np.random.default_rng((self.seed, epoch))
            spare = len(self.split.tokens) - self.n_windows * self.block_size
            offset = random.integers(min(self.block_size, spare))
            starts = offset + self.block_size * random.permutation(self.n_windows)
            on_device = torch.from_numpy(starts)[:, None].to(self.split.tokens.device)
            self._latest = {epoch: on_device}
        return self._latest[epoch]


ORDERS: dict[str, type[WindowOrder]] = {"windows": RandomWindows, "epochs": Epochs}
"""The orders by `data.order`."""
