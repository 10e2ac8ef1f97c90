"""Masks and score terms as formulas over (b, h, i, j), and the dense tensors made from them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from minigpt.model.positional import DenseTerm, DistanceTerm, PositionalScheme, ScoreTerm

if TYPE_CHECKING:
    from minigpt.model.attention import Attention

BEYOND = 2**31  # a position past those of every text


class Scores:
    """What a forward pass makes of its attention scores. One a forward, used by every layer.

    q_positions (b or 1, t) and k_positions (b or 1, s) are absolute. `in_order` says that queries
    and keys are the same tokens at positions 0, 1, ..., so that a backend may use its own causal
    path. `softcap`: bound of the scaled dot products, before the term is added; None for none.
    `attention`: whose pattern shows keys; None for all earlier ones.
    `documents` (b, t): see `GPT.forward`; None where a row is one document.
    """

    def __init__(
        self,
        scheme: PositionalScheme,
        n_head: int,
        q_positions: Tensor,
        k_positions: Tensor,
        in_order: bool,
        softcap: float | None = None,
        attention: Attention | None = None,
        documents: Tensor | None = None,
    ) -> None:
        self.scheme, self.n_head, self.softcap = scheme, n_head, softcap
        self.attention = attention
        self.q_positions, self.k_positions = q_positions, k_positions
        self.in_order, self.documents = in_order, documents
        self._shared: Tensor | None = None
        self._block_mask: BlockMask | None = None

    def term(self, q: Tensor, k: Tensor, layer: int) -> ScoreTerm | None:
        """The scheme's formula for a layer, or None."""
        places = self.q_positions, self.k_positions
        if self.documents is not None and self.scheme.ordinal:
            q_places, k_places = (p + self.documents * BEYOND for p in places)
            return self.scheme.score_term(q, k, q_places, k_places, layer)
        return self.scheme.score_term(q, k, *places, layer)

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
        visible = self.visible(*self._grid(self._rows()))
        total = self.dense_term(q, k, layer).masked_fill(~visible, -math.inf)
        if self.scheme.score in ("none", "positions"):
            self._shared = total
        return total

    def dense_term(self, q: Tensor, k: Tensor, layer: int) -> Tensor:
        """The term for all pairs, later keys included: (b or 1, h or 1, i, j), or a single 0."""
        term = self.term(q, k, layer)
        if term is None:
            return torch.zeros((), device=self.q_positions.device)
        if isinstance(term, DenseTerm | DistanceTerm):
            return term.dense(self.in_order)
        return term(*self._grid(self._rows() if self.scheme.score != "content" else len(q)))

    @property
    def plainly_causal(self) -> bool:
        """Whether nothing is added and every earlier key of the same text is seen."""
        full = self.attention is None or self.attention.full
        return self.in_order and full and self.scheme.score == "none"

    def visible(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """The mask: True where key j stands at or before query i in its document, and the pattern
        shows it."""
        q, k, documents = self.q_positions, self.k_positions, self.documents
        together = None if documents is None else documents[b, j] == documents[b, i]
        i, j = q[b % q.shape[0], i], k[b % k.shape[0], j]  # one row may stand for all
        seen = j <= i
        if self.attention is not None:
            shown = self.attention.sees(h, i, j)
            seen = seen if shown is None else seen & shown
        return seen if together is None else seen & together

    def block_mask(self, batch: int) -> BlockMask:
        """The mask as FlexAttention wants it, made once a forward."""
        if self._block_mask is None:

            def mask_mod(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
                return self.visible(b, h, i, j)

            n_queries, n_keys = self.q_positions.shape[1], self.k_positions.shape[1]
            device = self.q_positions.device.type
            rows = None if self._rows() == 1 else batch
            by_head = self.attention is not None and self.attention.by_head
            heads = self.n_head if by_head else None
            self._block_mask = create_block_mask(mask_mod, rows, heads, n_queries, n_keys, device)
        return self._block_mask

    def _rows(self) -> int:
        by_row = (self.q_positions, self.k_positions, self.documents)
        return max(len(places) for places in by_row if places is not None)

    def _grid(self, batch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Index tensors that broadcast to (b, h, i, j)."""
        sizes = (batch, self.n_head, self.q_positions.shape[1], self.k_positions.shape[1])
        device = self.q_positions.device
        b, h, i, j = (torch.arange(size, device=device) for size in sizes)
        return b[:, None, None, None], h[:, None, None], i[:, None], j
