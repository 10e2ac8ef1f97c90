"""Masks and score terms as formulas over (b, h, i, j), and the dense tensors made from them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from minigpt.model.positional import PositionalScheme, ScoreTerm


class Scores:
    """What a forward pass adds to its attention scores. Made once a forward, used by every layer.

    q_positions (b or 1, t) and k_positions (b or 1, s) are absolute. `plain_causal` says that
    queries and keys are the same tokens in order, so that a backend may use its own causal path.
    """

    def __init__(
        self,
        scheme: PositionalScheme,
        n_head: int,
        q_positions: Tensor,
        k_positions: Tensor,
        plain_causal: bool,
    ) -> None:
        self.scheme, self.n_head = scheme, n_head
        self.q_positions, self.k_positions = q_positions, k_positions
        self.plain_causal = plain_causal
        self._shared: Tensor | None = None

    def term(self, q: Tensor, k: Tensor, layer: int) -> ScoreTerm | None:
        """The scheme's formula for a layer, or None."""
        return self.scheme.score_term(q, k, self.q_positions, self.k_positions, layer)

    def additive(self, q: Tensor, k: Tensor, layer: int) -> Tensor:
        """Term and mask for all pairs: -inf where query i may not see key j. (b or 1, h or 1, i, j)

        Made once a forward where it is the same for every layer.
        """
        if self._shared is not None:
            return self._shared
        term = self.term(q, k, layer)
        shared = term is None or self.scheme.score_is_shared
        grid = self._grid(self.q_positions.shape[0] if shared else q.shape[0])
        zero = torch.zeros((), device=self.q_positions.device)
        total = (zero if term is None else term(*grid)).masked_fill(~self.visible(*grid), -math.inf)
        if shared:
            self._shared = total
        return total

    def visible(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """The causal mask: True where key j stands at or before query i."""
        return self.k_positions[b, j] <= self.q_positions[b, i]

    def _grid(self, batch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Index tensors that broadcast to (b, h, i, j)."""
        sizes = (batch, self.n_head, self.q_positions.shape[1], self.k_positions.shape[1])
        device = self.q_positions.device
        b, h, i, j = (torch.arange(size, device=device) for size in sizes)
        return b[:, None, None, None], h[:, None, None], i[:, None], j
