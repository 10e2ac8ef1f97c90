"""Arrays in files, read where they are asked: what takes a tensor's place in a `Split`."""

from __future__ import annotations

import mmap
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Self, overload

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Stored(ABC):
    """Numbers (n,) that stay where they are stored; what is read of them goes to `target`.

    As of a tensor, `[places]` are the numbers at places of any shape, and `[:n]` the first n.
    """

    target: str = field(default="cpu", kw_only=True)

    @property
    def device(self) -> torch.device:
        """Where places are to be given."""
        return torch.device("cpu")

    def to(self, device: str) -> Self:
        """The same numbers for a device."""
        return replace(self, target=device)

    @overload
    def __getitem__(self, places: Tensor) -> Tensor: ...

    @overload
    def __getitem__(self, places: slice) -> Self: ...

    def __getitem__(self, places: Tensor | slice) -> Tensor | Self:
        if isinstance(places, slice):
            assert places.start is None and places.step is None
            return self._head(min(places.stop, len(self)))
        read = torch.from_numpy(self._read(places.numpy()))
        if self.target == "cuda":  # from pinned memory a copy does not wait for the device
            return read.pin_memory().to(self.target, non_blocking=True)
        return read.to(self.target)

    def tolist(self) -> list[int]:
        """All of them."""
        return self[torch.arange(len(self))].tolist()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def _head(self, n: int) -> Self:
        """The first n."""

    @abstractmethod
    def _read(self, places: Array) -> Array:
        """The numbers at these places."""


@dataclass(frozen=True)
class Joined(Stored):
    """Several arrays, one after the other. Of mapped ones touched pages are read, and let go."""

    parts: Sequence[Array]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def _head(self, n: int) -> Joined:
        starts = accumulate(map(len, self.parts), initial=0)
        parts = [part[: max(0, n - start)] for part, start in zip(self.parts, starts, strict=False)]
        return replace(self, parts=parts)

    def _read(self, places: Array) -> Array:
        ends = np.cumsum([len(part) for part in self.parts])
        owners = np.searchsorted(ends, places, side="right")
        read = np.empty(places.shape, self.parts[0].dtype)
        for owner in np.unique(owners):
            own = owners == owner
            part = self.parts[owner]
            read[own] = part[places[own] - (ends[owner] - len(part))]
            _let_go(part)
        return read


def _let_go(part: Array) -> None:
    """Unmap the pages of a mapped array that were touched: in a long run they would be all."""
    owner: Any = part
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):  # Windows has no such call
        owner.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True)
class Numbered(Stored):
    """Which document each of n tokens belongs to as an input, by the places where documents end.

    `ends` (documents,), sorted: the last token of a document is the first input of the next.
    """

    ends: Array
    n: int

    def __len__(self) -> int:
        return self.n

    def _head(self, n: int) -> Numbered:
        return replace(self, ends=self.ends[: np.searchsorted(self.ends, n)], n=n)

    def _read(self, places: Array) -> Array:
        return np.searchsorted(self.ends, places, side="right")
