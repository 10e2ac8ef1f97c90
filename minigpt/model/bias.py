"""Attention biases and masks, as FlexAttention functions and as dense tensors."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from minigpt.model.materialize import materialized
from minigpt.model.positional import DenseScoreMod, DistanceScoreMod, PositionalScheme, ScoreMod
from minigpt.model.visibility import Visibility, earlier, everything, rows_of

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""mask_mod(b, h, q_idx, kv_idx): True where the query attends to the key, from index tensors that
broadcast against each other."""

DOCUMENT_STRIDE = 2**31  # larger than any position, so that documents do not overlap


class AttentionBias:
    """The score modification and the mask of an attention, built once per forward pass.

    q_positions (b or 1, t) and k_positions (b or 1, s) are absolute. `in_order`: whether
    queries and keys are the same tokens at positions 0, 1, ..., so that is_causal may be used.
    `logit_softcap`: bound of the scaled dot products, before the score_mod; None: no bound.
    `pattern`: the attention's mask_mod, called with positions as indices; None for full attention.
    `by_head`: whether it differs between heads. `document_ids` (b, t): see `GPT.hidden`.
    `visible`: which keys a query can see, of those that the pattern allows.
    """

    def __init__(
        self,
        positional: PositionalScheme,
        n_head: int,
        q_positions: Tensor,
        k_positions: Tensor,
        in_order: bool,
        logit_softcap: float | None = None,
        pattern: MaskMod | None = None,
        by_head: bool = False,
        document_ids: Tensor | None = None,
        visible: Visibility = earlier,
    ) -> None:
        self.visible = visible
        self.positional, self.n_head, self.logit_softcap = positional, n_head, logit_softcap
        self.q_positions, self.k_positions = q_positions, k_positions
        self.pattern, self.by_head = pattern, by_head
        self.in_order, self.document_ids = in_order, document_ids
        self._dense: Tensor | None = None
        self._block_mask: BlockMask | None = None

    def softcap(self, scores: Tensor) -> Tensor:
        """Return logit_softcap * tanh(scores / logit_softcap) (Gemma 2, 2024), or the scores."""
        if self.logit_softcap is None:
            return scores
        return self.logit_softcap * torch.tanh(scores / self.logit_softcap)

    def score_mod(self, q: Tensor, k: Tensor, layer: int) -> ScoreMod | None:
        """Return the positional scheme's score_mod for a layer, or None."""
        positions = self.q_positions, self.k_positions
        if self.document_ids is not None and self.positional.reads_order_only:
            positions = [p + self.document_ids * DOCUMENT_STRIDE for p in positions]
        q_positions, k_positions = positions
        return self.positional.score_mod(q, k, q_positions, k_positions, layer)

    def mask_mod(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        """Return the mask: what is visible, within the document, and as the pattern allows."""
        q, k, ids = self.q_positions, self.k_positions, self.document_ids
        # One row of positions may apply to the whole batch.
        q_position, k_position = q[b % q.shape[0], q_idx], k[b % k.shape[0], kv_idx]
        mask = self.visible(b, q_position, k_position)
        if self.pattern is not None:
            mask = mask & self.pattern(b, h, q_position, k_position)
        return mask if ids is None else mask & (ids[b, kv_idx] == ids[b, q_idx])

    def dense(self, q: Tensor, k: Tensor, layer: int) -> Tensor:
        """Return bias and mask of all pairs: (b or 1, h or 1, i or 1, j), -inf where masked.

        Computed once per forward pass if it is the same in every layer.
        """
        if self._dense is not None:
            return self._dense
        mask = self.mask_mod(*self._index_grid(self._mask_rows()))
        dense = self.dense_bias(q, k, layer).masked_fill(~mask, -math.inf)
        if self.positional.bias_depends_on in ("nothing", "positions"):
            self._dense = dense = materialized(dense)
        return dense

    def dense_bias(self, q: Tensor, k: Tensor, layer: int) -> Tensor:
        """Return score_mod applied to scores of 0, for all pairs including masked ones.

        (b or 1, h or 1, i, j), or a single 0 without a score_mod.
        """
        score_mod, zero = self.score_mod(q, k, layer), q.new_zeros(())
        if score_mod is None:
            return torch.zeros((), device=q.device)
        if isinstance(score_mod, DenseScoreMod | DistanceScoreMod):
            return score_mod.dense(self.in_order)
        by_row = self.positional.bias_depends_on == "content"
        return score_mod(zero, *self._index_grid(len(q) if by_row else self._n_rows()))

    @property
    def is_causal(self) -> bool:
        """Whether only the causal mask applies, without bias or pattern."""
        return self.in_order and self._is_plain and self.visible is earlier

    @property
    def is_absent(self) -> bool:
        """Whether there is neither bias nor mask."""
        documents = self.document_ids is not None
        return self._is_plain and self.visible is everything and not documents

    @property
    def hides_later_keys(self) -> bool:
        """Whether key j is hidden from query i < j, with both counted in the tensors."""
        return self.in_order and self.visible is earlier

    @property
    def _is_plain(self) -> bool:
        return self.positional.bias_depends_on == "nothing" and self.pattern is None

    def block_mask(self, batch: int) -> BlockMask:
        """Return FlexAttention's BlockMask, built once per forward pass."""
        if self._block_mask is None:
            n_queries, n_keys = self.q_positions.shape[1], self.k_positions.shape[1]
            rows = None if self._mask_rows() == 1 else batch
            heads = self.n_head if self.by_head else None
            device = self.q_positions.device.type
            # A function, because torch counts `self` among the arguments of a method.
            mask_mod = lambda b, h, i, j: self.mask_mod(b, h, i, j)  # noqa: E731
            self._block_mask = create_block_mask(mask_mod, rows, heads, n_queries, n_keys, device)
        return self._block_mask

    def _mask_rows(self) -> int:
        return max(self._n_rows(), rows_of(self.visible))

    def _n_rows(self) -> int:
        tensors = (self.q_positions, self.k_positions, self.document_ids)
        return max(len(x) for x in tensors if x is not None)

    def _index_grid(self, n_rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return index tensors that broadcast to (b, h, i, j)."""
        sizes = (n_rows, self.n_head, self.q_positions.shape[1], self.k_positions.shape[1])
        device = self.q_positions.device
        b, h, i, j = (torch.arange(size, device=device) for size in sizes)
        return b[:, None, None, None], h[:, None, None], i[:, None], j
