"""Landmarks: a token at the end of each block gives later queries access to the block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minigpt.errors import require_at_least
from minigpt.model.attention.base import ATTENTION, Attention, AttentionConfig
from minigpt.model.context import ForwardContext
from minigpt.model.grouped import repeat_kv
from minigpt.model.kv_cache import KVCache
from minigpt.model.shape import INIT_STD, ModelShape

# Added to a landmark's score once per block index, so that ties go to the later block: in the first
# layer all landmarks are equal, and rounding must not decide between them.
TIE_BREAK = 2e-6
# With this many times the retrieved blocks or more, gathering only those is faster on a CPU.
GATHER_FROM = 8
# Maximum number of scores, or of channels of gathered keys, computed at once in evaluation, so that
# memory is linear in the length.
MAX_NUMBERS = 2**24


@dataclass
class LandmarkConfig(AttentionConfig):
    """`block`: tokens per block, None for the largest divisor of block_size up to block_size / 8.
    `retrieved`: earlier blocks that a query attends to, None for all that fit into block_size."""

    block: int | None
    retrieved: int | None

    def __post_init__(self) -> None:
        require_at_least(1, "model.attention", self, "block", "retrieved", or_null=True)

    def block_length(self, block_size: int) -> int:
        """Return the number of tokens per block."""
        lengths = range(1, max(1, block_size // 8) + 1)
        return self.block or max(n for n in lengths if block_size % n == 0)


@dataclass(frozen=True)
class StoredKeys:
    """Near keys, far keys and values (b, h, s, e) by slot, and the mask (b, s) of used slots."""

    near: Tensor
    far: Tensor
    values: Tensor
    occupied: Tensor


@ATTENTION.register("landmark", LandmarkConfig)
class Landmark(Attention):
    """Landmark attention (Mohtashami & Jaggi 2023), with the grouped softmax of its section 3.

    After each block of text comes a landmark, a learned embedding that passes through all layers
    and attends like a token of its block. A query's softmax is over the keys of its own block
    and the landmarks of earlier blocks; a landmark's weight is divided among the keys of its block
    by a softmax over them. Only the `retrieved` landmarks with the highest scores count, for each
    query and head; of equal ones, the later. A block farther back than block_size allows is treated
    as if it were at that distance, so that no distance exceeds those in training ("stingy"
    positions, section 3.3). For this, keys are stored twice: near keys at their own position, far
    keys at their position within the block.

    A landmark has the position of its block's last token; in the paper it has its own position.
    n_embd parameters. Time is quadratic in the length unless only retrieved blocks are computed;
    in evaluation, memory is linear.
    """

    uses_backend, supports_documents = False, False
    without_two_sided = "a landmark stands for the tokens before it, in earlier blocks"

    def __init__(self, config: LandmarkConfig, shape: ModelShape) -> None:
        super().__init__(config, shape)
        self.block = config.block_length(shape.block_size)
        self.rows_per_token = 1 + 1 / self.block
        self.farthest = shape.block_size // self.block - 1  # greatest distance in training, blocks
        self.retrieved = self.farthest if config.retrieved is None else config.retrieved
        self.mark = nn.Parameter(torch.empty(shape.n_embd).normal_(std=INIT_STD))

    def keys_per_query(self, length: int) -> float:
        return length / self.block + min(length, (self.retrieved + 1) * self.block)

    def flops_per_query(self, length: int) -> float:
        landmarks = 6 * self.width * length / self.block  # no weighted sum: they have no values
        return super().flops_per_query(length) - landmarks

    def extend_sequence(
        self, x: Tensor, positions: Tensor, in_order: bool
    ) -> tuple[Tensor, Tensor]:
        """Append a landmark for each token that ends a block.

        Rows with fewer landmarks than others are padded with landmarks that are not stored.
        """
        if in_order:
            ends = positions[:, self.block - 1 :: self.block]
        else:
            is_end = (positions + 1) % self.block == 0
            ends_first = is_end.int().argsort(dim=1, descending=True, stable=True)
            ends = positions.gather(1, ends_first[:, : int(is_end.sum(1).max())])
        landmarks = self.mark.expand(len(x), ends.shape[1], -1)
        return torch.cat((x, landmarks.to(x.dtype)), 1), torch.cat((positions, ends), 1)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, ctx: ForwardContext, layer: int, dropout: float
    ) -> Tensor:
        positions, positional = ctx.positions, ctx.positional
        near_q, near_k = far_q, far_k = positional.rotate(q, k, positions, layer)
        if ctx.cache is not None or self.has_far_blocks(ctx):
            far_q = positional.rotate(q, k, self.far_query_position(positions), layer)[0]
            far_k = positional.rotate(q, k, positions % self.block, layer)[1]
        keys = torch.cat((near_k, far_k), -1)
        tokens, landmarks = self.stored(keys, v, near_q, ctx, layer)
        b, h, slots, e = tokens.near.shape
        per_query = (self.retrieved + 1) * self.block * e if self.gathers(slots) else slots
        n = max(1, MAX_NUMBERS // (b * h * per_query))
        queries = zip(near_q.split(n, 2), far_q.split(n, 2), positions.split(n, 1), strict=True)
        mixed = [
            self.attend(Scorer(self, *parts, ctx, layer), tokens, landmarks, dropout)
            for parts in queries
        ]
        return torch.cat(mixed, 2)

    def has_far_blocks(self, ctx: ForwardContext) -> bool:
        """Whether the sequence has blocks farther apart than in training."""
        return ctx.last_position // self.block > self.farthest

    def gathers(self, slots: int) -> bool:
        """Whether to gather the keys of retrieved blocks instead of scoring all keys."""
        return slots // self.block > GATHER_FROM * (self.retrieved + 1)

    def far_query_position(self, positions: Tensor) -> Tensor:
        """Return the position of queries relative to far keys, which are in the first block."""
        return positions % self.block + self.farthest * self.block

    def stored(
        self, k: Tensor, v: Tensor, q: Tensor, ctx: ForwardContext, layer: int
    ) -> tuple[StoredKeys, StoredKeys]:
        """Store keys and values; return all, padded to full blocks, and those of landmarks."""
        cache, n = ctx.once(self, lambda: self.reserved_cache(ctx, len(q))), ctx.n_tokens
        results = []
        for name, rows in ((None, slice(0, n)), ("landmarks", slice(n, None))):
            keys, values = cache.write(name, layer, k[:, :, rows], v[:, :, rows])
            occupied = cache.buffers[name].occupied
            more = -keys.shape[2] % self.block if name is None else 0
            keys, values = (F.pad(repeat_kv(x, q), (0, 0, 0, more)) for x in (keys, values))
            near, far = keys.chunk(2, -1)
            results.append(StoredKeys(near, far, values, F.pad(occupied, (0, more))))
        return results[0], results[1]

    def reserved_cache(self, ctx: ForwardContext, batch: int) -> KVCache:
        """Return the KV cache, or a temporary one, with slots for the rows of this forward pass."""
        positions, n = ctx.positions.expand(batch, -1), ctx.n_tokens
        cache = ctx.cache
        if cache is None:
            cache = KVCache(batch, ctx.last_position + 1, positions.device)
            cache.begin(positions[:, :n], ctx.last_position)
        cache.reserve(None)
        ends, last_block = positions[:, n:], ctx.last_position // self.block
        is_landmark = ((ends + 1) % self.block == 0) & cache.not_padding(ends)
        cache.reserve_at("landmarks", ends // self.block, is_landmark, last_block, self.block)
        return cache

    def attend(
        self, scorer: Scorer, tokens: StoredKeys, landmarks: StoredKeys, dropout: float
    ) -> Tensor:
        """Return the attention output (b, h, i, e) of the scorer's queries."""
        n_blocks, positions = landmarks.near.shape[2], scorer.positions
        block_ids = torch.arange(n_blocks, device=positions.device)
        slots = torch.arange(n_blocks * self.block, device=positions.device)
        own = positions[:, None, :, None] // self.block
        gates = scorer.all_keys(landmarks, slots[self.block - 1 :: self.block])
        lowest = torch.finfo(gates.dtype).min
        earlier = (block_ids < own) & landmarks.occupied[:, None, None]
        gates = gates.masked_fill(~earlier, lowest)
        retrieved = None
        if self.retrieved < n_blocks - 1:
            ranks = gates.detach() + TIE_BREAK * block_ids
            retrieved = ranks.topk(self.retrieved).indices
        if retrieved is not None and self.gathers(len(slots)):
            blocks = torch.cat((retrieved, own.expand(*retrieved.shape[:3], 1)), -1)
            gates = F.pad(gates.gather(-1, retrieved), (0, 1), value=lowest)
            scores, values, occupied = scorer.keys_of_blocks(tokens, blocks)
            scores = scores.masked_fill(~occupied, lowest)
            own = torch.full_like(own, self.retrieved)
        else:
            if retrieved is not None:
                kept = gates.gather(-1, retrieved)
                gates = torch.full_like(gates, lowest).scatter(-1, retrieved, kept)
            scores, values = scorer.all_keys(tokens, slots), tokens.values
            scores = scores.masked_fill(~tokens.occupied[:, None, None], lowest)
            scores = rearrange(scores, "b h i (m l) -> b h i m l", m=n_blocks)
        weights = self.grouped_softmax(scores, gates, own, positions)
        weights = F.dropout(weights, dropout).to(values.dtype)
        if values.ndim == 4:
            return weights.flatten(-2) @ values
        return torch.einsum("bhiml,bhimle->bhie", weights, values)

    def grouped_softmax(
        self, scores: Tensor, gates: Tensor, own: Tensor, positions: Tensor
    ) -> Tensor:
        """Return the weights (b, h, i, m, l) of the l keys of each of m blocks.

        `scores` (b, h, i, m, l) of keys, `gates` (b, h, i, m) of landmarks, `own` (b, 1, i, 1): the
        index of the query's own block among the m.
        """
        lowest = torch.finfo(gates.dtype).min
        own = own[..., None].expand(*scores.shape[:3], 1, self.block)
        within = torch.arange(self.block, device=positions.device)
        earlier = within <= positions[:, None, :, None] % self.block
        own_scores = scores.gather(3, own).squeeze(3).masked_fill(~earlier, lowest)
        group = torch.cat((own_scores, gates), -1).softmax(-1)
        own_weights, gates = group.split([self.block, gates.shape[-1]], -1)
        weights = gates[..., None] * scores.softmax(-1)
        return weights.scatter(3, own, own_weights.unsqueeze(3))


@dataclass(frozen=True)
class Scorer:
    """Computes scores of some queries (b, h, i, e) at positions (b or 1, i), without a mask."""

    attention: Landmark
    near_q: Tensor
    far_q: Tensor
    positions: Tensor
    ctx: ForwardContext
    layer: int

    def all_keys(self, keys: StoredKeys, k_positions: Tensor) -> Tensor:
        """Return the scores (b, h, i, j) of all keys, which are at `k_positions` (j)."""

        def bias(q: Tensor, k: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return self.attention.bias_of(self.ctx, i, j, False).dense_bias(q, k, self.layer)

        near, far = (self.near_q @ keys.near.mT), None
        if self.attention.has_far_blocks(self.ctx):
            far = self.far_q @ keys.far.mT
        block = self.attention.block
        blocks_back = self.positions[:, None, :, None] // block - k_positions // block
        return self._scores(near, far, blocks_back, keys, k_positions[None], bias)

    def keys_of_blocks(self, keys: StoredKeys, blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return scores, values and occupied slots of the keys of blocks (b, h, i, m).

        Scores (b, h, i, m, l), values (b, h, i, m, l, e).
        """
        block = self.attention.block
        b, h, i, _ = torch.meshgrid(*map(self._arange, blocks.shape), indexing="ij")
        slots = blocks[..., None] * block + self._arange(block)
        b, h, i = (x[..., None] for x in (b, h, i))

        def gather(x: Tensor) -> Tensor:
            by_block = rearrange(x, "b h (n l) e -> (b h) n l e", l=block)
            rows = self._arange(len(by_block))[:, None, None]
            return by_block[rows, blocks.flatten(0, 1)].unflatten(0, blocks.shape[:2])

        def bias(q: Tensor, k: Tensor, i_positions: Tensor, j_positions: Tensor) -> Tensor:
            bias = self.attention.bias_of(self.ctx, i_positions, j_positions, False)
            score_mod, zero = bias.score_mod(q, k, self.layer), q.new_zeros(())
            return zero if score_mod is None else score_mod(zero, b, h, i, slots)

        def products(q: Tensor, k: Tensor) -> Tensor:
            return torch.einsum("bhie,bhimle->bhiml", q, gather(k))

        near, far = products(self.near_q, keys.near), None
        if self.attention.has_far_blocks(self.ctx):
            far = products(self.far_q, keys.far)
        blocks_back = (self.positions[:, None, :, None] // block - blocks)[..., None]
        all_slots = self._arange(keys.near.shape[2])[None]
        scores = self._scores(near, far, blocks_back, keys, all_slots, bias)
        return scores, gather(keys.values), keys.occupied[b, slots]

    def _scores(
        self,
        near: Tensor,
        far: Tensor | None,
        blocks_back: Tensor,
        keys: StoredKeys,
        k_positions: Tensor,
        bias: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    ) -> Tensor:
        """Return the scores: dot products with far keys for far blocks, else with near keys."""

        def scored(products: Tensor, q: Tensor, k: Tensor, i: Tensor, j: Tensor) -> Tensor:
            scores = products / q.shape[-1] ** 0.5
            scores = self.attention.bias_of(self.ctx, i, j, False).softcap(scores)
            return scores.to(torch.promote_types(q.dtype, torch.float32)) + bias(q, k, i, j)

        scores = scored(near, self.near_q, keys.near, self.positions, k_positions)
        if far is None:
            return scores
        i = self.attention.far_query_position(self.positions)
        far_scores = scored(far, self.far_q, keys.far, i, k_positions % self.attention.block)
        return torch.where(blocks_back > self.attention.farthest, far_scores, scores)

    def _arange(self, n: int) -> Tensor:
        return torch.arange(n, device=self.positions.device)
