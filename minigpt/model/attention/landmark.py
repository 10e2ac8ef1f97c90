"""Landmarks: a token at the end of each block stands for it, and opens it to later queries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minigpt.errors import require
from minigpt.model.attention.base import (
    ATTENTION,
    Attention,
    AttentionConfig,
    Pass,
    for_each_head,
    require_whole_or_none,
)
from minigpt.model.kv_cache import KVCache

if TYPE_CHECKING:
    from minigpt.model.gpt import ModelConfig
    from minigpt.model.positional import PositionalScheme

# Of equal scores the later block's wins, by so much a block: landmarks of the first layer know
# nothing of their blocks yet, and rounding must not choose among them.
LATER = 2e-6
# Blocks of a text, over those a query reads, from which on reading them alone is faster on a CPU.
MANY_BLOCKS = 8
# Of scores, or of the channels of the keys read, of the queries that are computed at once: so that
# memory is linear in the length where nothing is kept for gradients.
NUMBERS_AT_ONCE = 2**24


@dataclass
class LandmarkConfig(AttentionConfig):
    """`block`: tokens that a landmark stands for, None for the largest divisor of block_size up to
    an eighth of it. `retrieved`: earlier blocks that a query reads, None for as many as block_size
    holds."""

    block: int | None
    retrieved: int | None

    def __post_init__(self) -> None:
        require_whole_or_none("block", self.block)
        require_whole_or_none("retrieved", self.retrieved)


def largest_divisor(block_size: int) -> int:
    """The largest divisor of a block_size that is not above an eighth of it."""
    return max(n for n in range(1, max(1, block_size // 8) + 1) if block_size % n == 0)


@dataclass(frozen=True)
class Held:
    """Keys, far keys and values (b, h, s, e) at slots of positions, and which are there (b, s)."""

    near: Tensor
    far: Tensor
    values: Tensor
    there: Tensor


@ATTENTION.register("landmark", LandmarkConfig)
class Landmark(Attention):
    """Landmark attention (Mohtashami & Jaggi 2023), with the grouped softmax of its section 3.

    After each block of text comes a landmark, a learned embedding that runs through all layers
    and attends as a token of its block does. A query's softmax is over the keys of its own block
    and the landmarks of earlier blocks; a landmark's weight is divided among the keys of its block
    by a softmax of theirs. Of the landmarks only the `retrieved` with the highest scores count,
    for each query and head; of about equal ones, the later. A block farther back than block_size
    allows is seen as if it stood at that end, so that distances stay those of training ("stingy"
    positions, section 3.3).

    A landmark stands at the position of its block's last token, where the paper gives it one of its
    own. n_embd parameters. A decoder keeps keys twice, near and far. Time grows with the square of
    the length, until only what is read is computed; memory is linear in evaluation.
    """

    softmax, documents = False, False

    def __init__(self, config: LandmarkConfig, model: ModelConfig) -> None:
        super().__init__(config, model)
        self.block = config.block or largest_divisor(model.block_size)
        blocks = model.block_size // self.block
        whole = blocks * self.block == model.block_size and blocks >= 2
        why = (
            f"model.block_size={model.block_size} must hold two or more whole blocks of it; use a "
            f"divisor of it, or a longer block_size"
        )
        require(whole, "model.attention.block", self.block, why)
        self.farthest = blocks - 1  # blocks back, in training
        self.retrieved = self.farthest if config.retrieved is None else config.retrieved
        self.mark = nn.Parameter(torch.empty(model.n_embd).normal_(std=0.02))

    def why_not(self, model: ModelConfig, scheme: PositionalScheme) -> str | None:
        if model.positional.name == "cope":
            return (
                "it compares keys a block at a time, and positional=cope counts through all of "
                "them; use another scheme"
            )
        if model.ffn.name == "conv":
            return "its landmarks stand in no text, and ffn=conv looks at neighbours; use another"
        return None

    def keys(self, length: int) -> float:
        return (length + length / self.block) * self.rows

    @property
    def rows(self) -> float:
        return 1 + 1 / self.block

    def add_rows(self, x: Tensor, positions: Tensor, in_order: bool) -> tuple[Tensor, Tensor]:
        """A landmark for each token that ends a block; rows with fewer get some not to be kept."""
        if in_order:
            ends = positions[:, self.block - 1 :: self.block]
        else:
            is_end = (positions + 1) % self.block == 0
            first = is_end.int().argsort(dim=1, descending=True, stable=True)
            ends = positions.gather(1, first[:, : int(is_end.sum(1).max())])
        marks = self.mark.expand(len(x), ends.shape[1], -1)
        return torch.cat((x, marks.to(x.dtype)), 1), torch.cat((positions, ends), 1)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, shared: Pass, layer: int, dropout: float
    ) -> Tensor:
        positions, scheme = shared.positions, shared.scheme
        near_q, near_k = far_q, far_k = scheme.rotate(q, k, positions, layer)
        if shared.cache is not None or self.reaches_too_far(shared):
            far_q = scheme.rotate(q, k, self.far_query(positions), layer)[0]
            far_k = scheme.rotate(q, k, positions % self.block, layer)[1]
        tokens, marks = self.held(torch.cat((near_k, far_k), -1), v, near_q, shared, layer)
        b, h, slots, e = tokens.near.shape
        of_query = (self.retrieved + 1) * self.block * e if self.reads_few(slots) else slots
        at_once = max(1, NUMBERS_AT_ONCE // (b * h * of_query))
        parts = zip(*(x.split(at_once, 2) for x in (near_q, far_q)), strict=True)
        places = positions.split(at_once, 1)
        mixed = [
            self.mixed(near, far, place, tokens, marks, shared, layer, dropout)
            for (near, far), place in zip(parts, places, strict=True)
        ]
        return torch.cat(mixed, 2)

    def reaches_too_far(self, shared: Pass) -> bool:
        """Whether a text holds blocks that are farther apart than in training."""
        return shared.last // self.block > self.farthest

    def reads_few(self, slots: int) -> bool:
        """Whether the keys a query reads are so few of all slots that only they are computed."""
        return slots // self.block > MANY_BLOCKS * (self.retrieved + 1)

    def far_query(self, positions: Tensor) -> Tensor:
        """Where a query stands for keys of the farthest block, if that is the first of the text."""
        return positions % self.block + self.farthest * self.block

    def held(self, k: Tensor, v: Tensor, q: Tensor, shared: Pass, layer: int) -> tuple[Held, Held]:
        """Tokens in the slots of their positions, to whole blocks, and the landmarks of these."""
        cache, n = shared.once(self, lambda: self.placed(shared, len(q))), shared.length
        found = []
        for name, part in ((None, slice(0, n)), ("landmarks", slice(n, None))):
            keys, values = cache.write(name, layer, k[:, :, part], v[:, :, part])
            there = cache.slots[name].there
            more = -keys.shape[2] % self.block if name is None else 0
            keys, values = (F.pad(for_each_head(x, q), (0, 0, 0, more)) for x in (keys, values))
            near, far = keys.chunk(2, -1)
            found.append(Held(near, far, values, F.pad(there, (0, more))))
        return found[0], found[1]

    def placed(self, shared: Pass, batch: int) -> KVCache:
        """The cache, or one of this pass alone, with slots for the tokens and the landmarks."""
        positions, n = shared.positions.expand(batch, -1), shared.length
        cache = shared.cache
        if cache is None:
            cache = KVCache(batch, shared.last + 1, positions.device)
            cache.begin(positions[:, :n], shared.last)
        cache.place(None)
        ends, blocks = positions[:, n:], shared.last // self.block
        real = ((ends + 1) % self.block == 0) & cache.is_real(ends)
        cache.place_at("landmarks", ends // self.block, real, blocks, self.block)
        return cache

    def mixed(
        self,
        near_q: Tensor,
        far_q: Tensor,
        positions: Tensor,
        tokens: Held,
        marks: Held,
        shared: Pass,
        layer: int,
        dropout: float,
    ) -> Tensor:
        """Mixed values (b, h, i, e) of queries (b, h, i, e) at positions (b or 1, i)."""
        read = Reader(self, near_q, far_q, positions, shared, layer)
        n_blocks, device = marks.near.shape[2], near_q.device
        blocks = torch.arange(n_blocks, device=device)
        slots = torch.arange(n_blocks * self.block, device=device)
        own = positions[:, None, :, None] // self.block
        gates = read.dense(marks, slots[self.block - 1 :: self.block])
        nothing = torch.finfo(gates.dtype).min
        gates = gates.masked_fill(~((blocks < own) & marks.there[:, None, None]), nothing)
        best = None
        if self.retrieved < n_blocks - 1:
            best = (gates.detach() + LATER * blocks).topk(self.retrieved).indices
        if best is None or not self.reads_few(len(slots)):
            if best is not None:
                only_best = torch.full_like(gates, nothing)
                gates = only_best.scatter(-1, best, gates.gather(-1, best))
            values, place = tokens.values, own
            inside = read.dense(tokens, slots).masked_fill(~tokens.there[:, None, None], nothing)
            inside = rearrange(inside, "b h i (n l) -> b h i n l", n=n_blocks)
        else:
            chosen = torch.cat((best, own.expand(*best.shape[:3], 1)), -1)
            gates = F.pad(gates.gather(-1, best), (0, 1), value=nothing)
            inside, values, there = read.chosen(tokens, chosen)
            inside, place = (
                inside.masked_fill(~there, nothing),
                torch.full_like(own, self.retrieved),
            )
        # Now `inside` (b, h, i, m, l) scores the keys of m blocks; the query's own is at `place`.
        place = place[..., None].expand(*inside.shape[:3], 1, self.block)
        earlier = (
            torch.arange(self.block, device=device) <= positions[:, None, :, None] % self.block
        )
        own_scores = inside.gather(3, place).squeeze(3).masked_fill(~earlier, nothing)
        together = torch.cat((own_scores, gates), -1).softmax(-1)
        own_weights, gates = together.split([self.block, gates.shape[-1]], -1)
        weights = gates[..., None] * inside.softmax(-1)
        weights = weights.scatter(3, place, own_weights.unsqueeze(3))
        weights = F.dropout(weights, dropout).to(values.dtype)
        if values.ndim == 4:
            return weights.flatten(-2) @ values
        return torch.einsum("bhiml,bhimle->bhie", weights, values)


@dataclass(frozen=True)
class Reader:
    """Scores of some queries (b, h, i, e): scaled, capped and with their term, without a mask."""

    attention: Landmark
    near_q: Tensor
    far_q: Tensor
    positions: Tensor
    shared: Pass
    layer: int

    def dense(self, held: Held, j: Tensor) -> Tensor:
        """Of all keys, which stand at positions j: (b, h, i, j)."""

        def term(q: Tensor, k: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return self.shared.scores(i, j, False, self.attention).dense_term(q, k, self.layer)

        near, far = (self.near_q @ held.near.mT), None
        if self.attention.reaches_too_far(self.shared):
            far = self.far_q @ held.far.mT
        distance = self.positions[:, None, :, None] // self.block - j // self.block
        return self._scores(near, far, distance, held, j[None], term)

    def chosen(self, held: Held, blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of blocks (b, h, i, m): scores (b, h, i, m, l), values, and which keys are there."""
        b, h, i, _ = torch.meshgrid(*map(self._arange, blocks.shape), indexing="ij")
        within = self._arange(self.block)
        j = blocks[..., None] * self.block + within
        b, h, i = (x[..., None] for x in (b, h, i))

        def picked(x: Tensor) -> Tensor:
            by_block = rearrange(x, "b h (n l) e -> (b h) n l e", l=self.block)
            rows = self._arange(len(by_block))[:, None, None]
            return by_block[rows, blocks.flatten(0, 1)].unflatten(0, blocks.shape[:2])

        def term(q: Tensor, k: Tensor, i_places: Tensor, j_places: Tensor) -> Tensor:
            scores = self.shared.scores(i_places, j_places, False, self.attention)
            formula = scores.term(q, k, self.layer)
            return q.new_zeros(()) if formula is None else formula(b, h, i, j)

        def products(q: Tensor, k: Tensor) -> Tensor:
            return torch.einsum("bhie,bhimle->bhiml", q, picked(k))

        near, far = products(self.near_q, held.near), products(self.far_q, held.far)
        distance = (self.positions[:, None, :, None] // self.block - blocks)[..., None]
        slots = self._arange(held.near.shape[2])[None]
        found = self._scores(near, far, distance, held, slots, term)
        return found, picked(held.values), held.there[b, j]

    def _scores(
        self,
        near: Tensor,
        far: Tensor | None,
        distance: Tensor,
        held: Held,
        j: Tensor,
        term: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    ) -> Tensor:
        """From products with near and far keys, `distance` blocks back; slots at j (1, s)."""

        def scored(products: Tensor, q: Tensor, k: Tensor, i: Tensor, j: Tensor) -> Tensor:
            capped = self.shared.scores(i, j, False, self.attention).capped(
                products / q.shape[-1] ** 0.5
            )
            exact = torch.promote_types(q.dtype, torch.float32)
            return capped.to(exact) + term(q, k, i, j)

        scores = scored(near, self.near_q, held.near, self.positions, j)
        if far is None:
            return scores
        i = self.attention.far_query(self.positions)
        far = scored(far, self.far_q, held.far, i, j % self.block)
        return torch.where(distance > self.attention.farthest, far, scores)

    @property
    def block(self) -> int:
        """Tokens of a block."""
        return self.attention.block

    def _arange(self, n: int) -> Tensor:
        return torch.arange(n, device=self.positions.device)
