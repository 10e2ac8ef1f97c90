"""Masks and score terms as formulas over (b, h, i, j), and the dense tensors made from them."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from minigpt.model.positional import DenseTerm, DistanceTerm, PositionalScheme, ScoreTerm


class Scores:
    """What a forward pass makes of its attention scores. One a forward, used by every layer.

    q_positions (b or 1, t) and k_positions (b or 1, s) are absolute. `in_order` says that queries
    and keys are the same tokens at positions 0, 1, ..., so that a backend may use its own causal
    path. `softcap`: bound of the scaled dot products, before the term is added; None for none.
    """

    def __init__(
        self,
        scheme: PositionalScheme,
        n_head: int,
        q_positions: Tensor,
        k_positions: Tensor,
        in_order: bool,
        softcap: float | None = None,
    ) -> None:
        self.scheme, self.n_head, self.softcap = scheme, n_head, softcap
        self.q_positions, self.k_positions = q_positions, k_positions
        self.in_order = in_order
        self._shared: Tensor | None = None
        self._block_mask: BlockMask | None = None

    def term(self, q: Tensor, k: Tensor, layer: int) -> ScoreTerm | None:
        """The scheme's formula for a layer, or None."""
        return self.scheme.score_term(q, k, self.q_positions, self.k_positions, layer)

    def capped(self, products: Tensor) -> Tensor:
        """softcap * tanh(products / softcap) (Gemma 2, 2024), or the products as they are."""
        if self.softcap is None:
            return products
        return self.softcap * torch.tanh(products / self.softcap)

    def additive(self, q: Tensor, k: Tensor, layer: int) -> Tensor:
        """Term and mask for all pairs: -inf where query i may not see key j. (b or 1, h or 1, i, j)

        Made once a forward where it is the same for every layer.
        """
        if self._shared is not None:
            return self._shared
        term = self.term(q, k, layer)
        if term is None:
            values = torch.zeros((), device=self.q_positions.device)
        elif isinstance(term, DenseTerm | DistanceTerm):
            values = term.dense(self.in_order)
        else:
            values = term(*self._grid(self._rows() if self.scheme.score != "content" else len(q)))
        total = values.masked_fill(~self.visible(*self._grid(self._rows())), -math.inf)
        if self.scheme.score in ("none", "positions"):
            self._shared = total
        return total

    def visible(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """The causal mask: True where key j stands at or before query i."""
        q, k = self.q_positions, self.k_positions
        return k[b % k.shape[0], j] <= q[b % q.shape[0], i]  # one row may stand for all

    def block_mask(self, batch: int) -> BlockMask:
        """The mask as FlexAttention wants it, made once a forward."""
        if self._block_mask is None:

            def mask_mod(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
                return self.visible(b, h, i, j)

            n_queries, n_keys = self.q_positions.shape[1], self.k_positions.shape[1]
            device = self.q_positions.device.type
            rows = None if self._rows() == 1 else batch
            self._block_mask = create_block_mask(mask_mod, rows, None, n_queries, n_keys, device)
        return self._block_mask

    def _rows(self) -> int:
        return max(len(self.q_positions), len(self.k_positions))

    def _grid(self, batch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Index tensors that broadcast to (b, h, i, j)."""
        sizes = (batch, self.n_head, self.q_positions.shape[1], self.k_positions.shape[1])
        device = self.q_positions.device
        b, h, i, j = (torch.arange(size, device=device) for size in sizes)
        return b[:, None, None, None], h[:, None, None], i[:, None], j
