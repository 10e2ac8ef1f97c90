"""The output of an encoder, which every block of a decoder attends to."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from minigpt.model.visibility import Leading, Visibility, everything

KeysValues = tuple[Tensor, Tensor]


class Memory:
    """The hidden states (b, s, d) of an encoder, and the keys and values of each decoder layer.

    `lengths` (b,): tokens of each row, which are followed by padding; None without padding. Keys
    and values are kept without gradients alone, so that decoding computes them once.
    """

    def __init__(self, hidden: Tensor, lengths: Tensor | None = None) -> None:
        self.hidden, self.lengths = hidden, lengths
        self._kept: dict[int, KeysValues] = {}

    @property
    def visible(self) -> Visibility:
        """Which of its positions a query can see: all but padding."""
        return everything if self.lengths is None else Leading(self.lengths)

    def keys_values(self, layer: int, compute: Callable[[Tensor], KeysValues]) -> KeysValues:
        """Return the keys and values of a layer; `compute` returns them from the hidden states."""
        if torch.is_grad_enabled():
            return compute(self.hidden)
        if layer not in self._kept:
            self._kept[layer] = compute(self.hidden)
        return self._kept[layer]

    def select(self, rows: Tensor) -> Memory:
        """Return the memory of these rows, in this order; a row may occur several times."""
        lengths = None if self.lengths is None else self.lengths[rows]
        selected = Memory(self.hidden[rows], lengths)
        selected._kept = {layer: (k[rows], v[rows]) for layer, (k, v) in self._kept.items()}
        return selected
