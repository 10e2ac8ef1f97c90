"""Which keys a query can see, before the pattern of an attention: earlier ones, a prefix, all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from minigpt.model.kv_cache import EMPTY

Visibility = Callable[[Tensor, Tensor, Tensor], Tensor]
"""visibility(b, q_position, k_position): True where the query may see the key, from the indices of
rows and positions, which broadcast against each other."""


def earlier(b: Tensor, q_position: Tensor, k_position: Tensor) -> Tensor:
    """The causal mask: keys up to the query's own position."""
    return k_position <= q_position


def everything(b: Tensor, q_position: Tensor, k_position: Tensor) -> Tensor:
    """No mask: all keys. Empty slots of a cache are no keys."""
    return k_position < EMPTY


@dataclass(frozen=True)
class Leading:
    """The first `lengths` (b,) keys of each row; those after them are padding."""

    lengths: Tensor

    def __call__(self, b: Tensor, q_position: Tensor, k_position: Tensor) -> Tensor:
        return k_position < self.lengths[b]


@dataclass(frozen=True)
class Unpadded(Leading):
    """Also its own key for a query after them, so that no pattern leaves padding without a key.

    A softmax over no keys is NaN, which would spread to the tokens in the next layer.
    """

    def __call__(self, b: Tensor, q_position: Tensor, k_position: Tensor) -> Tensor:
        return super().__call__(b, q_position, k_position) | (k_position == q_position)


@dataclass(frozen=True)
class Prefix:
    """Earlier keys, and the first `lengths` (b,) keys of each row (Raffel et al. 2020, 3.2.1)."""

    lengths: Tensor

    def __call__(self, b: Tensor, q_position: Tensor, k_position: Tensor) -> Tensor:
        return (k_position <= q_position) | (k_position < self.lengths[b])


def rows_of(visibility: Visibility) -> int:
    """Return the number of rows of a batch that it distinguishes; 1 if it is the same in all."""
    return len(visibility.lengths) if isinstance(visibility, Leading | Prefix) else 1
