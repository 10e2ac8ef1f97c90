"""The one interface of every attention: what queries see, and how values are mixed.

Most are patterns: a formula of positions that says which keys a query sees, under which every
backend computes the same softmax. The others override `forward`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minigpt.errors import require, require_one_of
from minigpt.model.bias import Scores
from minigpt.model.kv_cache import NOWHERE, KVCache
from minigpt.model.positional import PositionalScheme
from minigpt.registry import Registry

if TYPE_CHECKING:
    from minigpt.model.backends import Backend
    from minigpt.model.ffn.moe import Routing
    from minigpt.model.gpt import ModelConfig

T = TypeVar("T")

# Queries that a pass in order computes at once where they look back a limited way: products of
# this size run at full speed on a CPU.
FEWEST_IN_A_FOLD = 128


@dataclass
class AttentionConfig:
    """Options every attention has."""

    name: str


@dataclass
class LayersConfig(AttentionConfig):
    """`layers`: which layers have it, as names that repeat over the layers: its own or full."""

    layers: list[str]

    def __post_init__(self) -> None:
        require(
            bool(self.layers), "model.attention.layers", "[]", f"give names, as [{self.name},full]"
        )
        for name in self.layers:
            require_one_of("model.attention.layers", name, (self.name, "full"))
        why = f"no layer has it; add {self.name}, or use attention=full"
        require(self.name in self.layers, "model.attention.layers", self.layers, why)


def require_whole(key: str, value: int, least: int = 1) -> None:
    """Raise UserError for fewer than `least`."""
    require(value >= least, f"model.attention.{key}", value, f"must be {least} or more")


def require_whole_or_none(key: str, value: int | None) -> None:
    """Raise UserError for fewer than 1."""
    require(
        value is None or value >= 1, f"model.attention.{key}", value, "must be 1 or more, or null"
    )


def span(key: str, value: int | None, model: ModelConfig, parts: int) -> int:
    """A number of positions, or where there is none block_size over `parts`.

    Raises UserError beyond block_size.
    """
    why = f"reaches over model.block_size={model.block_size} in training; use that or less"
    require(value is None or value <= model.block_size, f"model.attention.{key}", value, why)
    return max(1, model.block_size // parts) if value is None else value


@dataclass(frozen=True)
class Fold:
    """A text in order cut into pieces of n queries, each with the keys it can see: rows (b p).

    The keys of a piece are its own and the `reach` before it. Time and memory of attention are
    then linear in the length.
    """

    length: int
    n: int
    reach: int

    @property
    def pieces(self) -> int:
        """How many there are."""
        return -(-self.length // self.n)

    def queries(self, x: Tensor) -> Tensor:
        """(b, h, t, e) to (b p, h, n, e); the last piece is filled up by repeating its last row."""
        more = self.pieces * self.n - self.length
        x = torch.cat((x, x[:, :, -1:].expand(-1, -1, more, -1)), 2)
        return rearrange(x, "b h (p n) e -> (b p) h n e", n=self.n)

    def keys(self, x: Tensor, fill: int = 0) -> Tensor:
        """(b, h, t, e) to (b p, h, reach + n, e); what lies outside the text is `fill`."""
        more = self.pieces * self.n - self.length
        x = F.pad(x, (0, 0, self.reach, more), value=fill).unfold(2, self.reach + self.n, self.n)
        return rearrange(x, "b h p e j -> (b p) h j e")

    def back(self, y: Tensor) -> Tensor:
        """(b p, h, n, e) to (b, h, t, e)."""
        y = rearrange(y, "(b p) h n e -> b h (p n) e", p=self.pieces)
        return y[:, :, : self.length]


@dataclass
class Pass:
    """What the layers of one forward pass share.

    `positions` (b, t), or (1, t) for all, of the rows of x; the first `length` are tokens, none of
    them after position `last`. `in_order`: they stand at 0, 1, ..., and no token came before.
    `folds`: whether a pattern with a horizon is computed piece by piece. `documents`: see
    `GPT.forward`. Layers of routed experts add to `routings`, where there is a list, what they did.
    `first_values` (b, h, t, e): layer 0's, for value residuals.
    """

    scheme: PositionalScheme
    config: ModelConfig
    backend: Backend
    positions: Tensor
    length: int
    last: int
    in_order: bool
    cache: KVCache | None = None
    folds: bool = True
    documents: Tensor | None = None
    routings: list[Routing] | None = None
    first_values: Tensor | None = None
    _made: dict[object, Any] = field(default_factory=dict)

    def once(self, key: object, make: Callable[[], T]) -> T:
        """What `make` returns for a key, made by the first layer that asks."""
        if key not in self._made:
            self._made[key] = make()
        return cast(T, self._made[key])

    def apart(self) -> Pass:
        """A pass over the same rows that shares nothing with this one."""
        return replace(self, cache=None, routings=None, first_values=None, _made={})

    def scores(
        self, q_positions: Tensor, k_positions: Tensor, in_order: bool, attention: Attention
    ) -> Scores:
        """The scores of queries and keys that stand at given positions."""
        return Scores(
            *(self.scheme, self.config.n_head, q_positions, k_positions, in_order),
            *(self.config.logit_softcap, attention, self.documents),
        )


class Attention(nn.Module):
    """Causal softmax attention over the keys that a formula shows. One module serves all layers.

    Parameters and buffers that differ by layer hold the layer as their first axis.

    An option left at None is an attribute of the same name, the value it stood for.

    `horizon`: how many positions back a query looks, itself included, and so all that a cache
    holds; None for all. `by_head`: whether what is seen differs by head. `softmax`: whether a
    backend computes it. `documents`: whether it keeps the documents of a row apart.
    """

    horizon: int | None = None
    by_head: ClassVar[bool] = False
    softmax: ClassVar[bool] = True
    documents: ClassVar[bool] = True

    def __init__(self, config: AttentionConfig, model: ModelConfig) -> None:
        super().__init__()

    def spelled_out(self, options: AttentionConfig) -> AttentionConfig:
        """Its options with what each None stands for."""
        unset = [f.name for f in fields(options) if getattr(options, f.name) is None]
        return replace(options, **{name: getattr(self, name) for name in unset})

    def sees(self, h: Tensor, i: Tensor, j: Tensor) -> Tensor | None:
        """Whether head h at position i sees the key at position j <= i; None if it always does.

        From tensors that broadcast against each other; also asked at later keys, where the answer
        does not matter.
        """
        return None

    def why_not(self, model: ModelConfig, scheme: PositionalScheme) -> str | None:
        """Why a design cannot have it, and what to do; None if it can."""
        return None

    @property
    def rows(self) -> float:
        """Rows of x a token, for FLOPs."""
        return 1.0

    def add_rows(self, x: Tensor, positions: Tensor, in_order: bool) -> tuple[Tensor, Tensor]:
        """Embeddings (b, t, d) and positions (b or 1, t), with rows of its own after the tokens."""
        return x, positions

    @property
    def full(self) -> bool:
        """Whether a query sees every earlier key."""
        return type(self).sees is Attention.sees

    def keys(self, length: int) -> float:
        """Keys that a query of a text of `length` tokens is shown, for FLOPs."""
        return length

    def seen(self, shared: Pass, batch: int) -> tuple[Scores, Fold | None]:
        """The scores of the tokens of a pass, and how they are folded; documents are not."""
        places = None if shared.cache is None else shared.cache.place(self.horizon)
        positions, in_order = shared.positions, shared.in_order
        if self.horizon is not None and in_order and shared.folds:
            n, length = max(self.horizon, FEWEST_IN_A_FOLD), positions.shape[1]
            if length > 2 * n:
                fold = Fold(length, n, self.horizon - 1)
                each = positions.expand(batch, -1)[:, None, :, None]
                i, j = fold.queries(each), fold.keys(each, fill=NOWHERE)
                return shared.scores(i[:, 0, :, 0], j[:, 0, :, 0], False, self), fold
        keys = positions if places is None or in_order else places
        return shared.scores(positions, keys, in_order, self), None

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, shared: Pass, layer: int, dropout: float
    ) -> Tensor:
        """Mixed values (b, h, t, e) of q (b, h, t, e), k and v (b, h or fewer, t, e)."""
        q, k = shared.scheme.rotate(q, k, shared.positions, layer)
        scores, fold = shared.once(self, lambda: self.seen(shared, len(q)))
        if shared.cache is not None:
            held = shared.cache.write(self.horizon, layer, k, v)
            k, v = (k, v) if shared.in_order else held
        k, v = for_each_head(k, q), for_each_head(v, q)
        if fold is None:
            return shared.backend(q, k, v, scores, layer, dropout)
        q, k, v = fold.queries(q), fold.keys(k), fold.keys(v)
        return fold.back(shared.backend(q, k, v, scores, layer, dropout))


def for_each_head(x: Tensor, q: Tensor) -> Tensor:
    """Keys or values, repeated for neighbouring heads of q that share them."""
    shared_by = q.shape[1] // x.shape[1]
    return x if shared_by == 1 else x.repeat_interleave(shared_by, dim=1)


ATTENTION: Registry[Attention] = Registry("attention", "model.attention", "minigpt.model.attention")
