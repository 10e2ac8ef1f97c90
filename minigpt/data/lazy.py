"""Integer tensors whose elements are read from files when indexed."""

from __future__ import annotations

import mmap
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, ClassVar, Self, overload

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class LazyTensor(ABC):
    """An integer tensor (n,) that is read on demand; indexing returns a tensor on `target`.

    It has the part of the interface of `Tensor` that `Split` uses: `[indices]` reads the elements
    at indices of any shape, and `[:n]` returns the first n elements without reading them.
    """

    target: str = field(default="cpu", kw_only=True)

    device: ClassVar = torch.device("cpu")  # device of the indices

    def to(self, device: str) -> Self:
        """Return the same tensor, which reads to `device`."""
        return replace(self, target=device)

    @overload
    def __getitem__(self, indices: Tensor) -> Tensor: ...

    @overload
    def __getitem__(self, indices: slice) -> Self: ...

    def __getitem__(self, indices: Tensor | slice) -> Tensor | Self:
        if isinstance(indices, slice):
            assert indices.start is None and indices.step is None
            return self._head(min(indices.stop, len(self)))
        elements = torch.from_numpy(self._read(indices.numpy()))
        if self.target == "cuda":  # a copy from pinned memory does not wait for the device
            return elements.pin_memory().to(self.target, non_blocking=True)
        return elements.to(self.target)

    def tolist(self) -> list[int]:
        """Return all elements."""
        return self[torch.arange(len(self))].tolist()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def _head(self, n: int) -> Self:
        """Return the first n elements, unread."""

    @abstractmethod
    def _read(self, indices: Array) -> Array:
        """Return the elements at these indices."""


@dataclass(frozen=True)
class ShardedTokens(LazyTensor):
    """The concatenation of arrays. Pages of memory-mapped arrays are released after each read."""

    shards: Sequence[Array]

    def __len__(self) -> int:
        return sum(map(len, self.shards))

    def _head(self, n: int) -> ShardedTokens:
        starts = accumulate(map(len, self.shards), initial=0)
        shards = [s[: max(0, n - start)] for s, start in zip(self.shards, starts, strict=False)]
        return replace(self, shards=shards)

    def _read(self, indices: Array) -> Array:
        ends = np.cumsum([len(shard) for shard in self.shards])
        shard_of_index = np.searchsorted(ends, indices, side="right")
        elements = np.empty(indices.shape, self.shards[0].dtype)
        for i in np.unique(shard_of_index):
            shard, in_shard = self.shards[i], shard_of_index == i
            elements[in_shard] = shard[indices[in_shard] - (ends[i] - len(shard))]
            _release_pages(shard)
        return elements


def _release_pages(array: Array) -> None:
    """Release the pages of a memory-mapped array, which would otherwise fill memory over time."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
        base.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True)
class DocumentIds(LazyTensor):
    """Document ids of n tokens (see `Split.document_ids`), computed from the ends of documents.

    `ends` (documents,): sorted indices of the last token of each document.
    """

    ends: Array
    n: int

    def __len__(self) -> int:
        return self.n

    def _head(self, n: int) -> DocumentIds:
        return replace(self, ends=self.ends[: np.searchsorted(self.ends, n)], n=n)

    def _read(self, indices: Array) -> Array:
        return np.searchsorted(self.ends, indices, side="right")
