"""The interface of positional schemes, and implementations of score_mod.

Positions are tensors of absolute indices, (b, t) or (1, t) if all rows are equal. A scheme keeps no
offset or cache, so that training, evaluation and decoding give the same result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.errors import require_one_of
from minigpt.model.shape import ModelShape
from minigpt.registry import Registry

ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""score_mod(score, b, h, q_idx, kv_idx) -> score, as in FlexAttention: the scaled score of a query
and a key plus a bias, from broadcastable index tensors. It only adds to the score: applied to a
score of 0, it gives the dense bias for eager attention and SDPA. It is also evaluated at masked
pairs, where it must be finite."""


@dataclass
class PositionalConfig:
    """Options of every scheme."""

    name: str


@dataclass
class LayerSharingConfig(PositionalConfig):
    """`layers`: one set of parameters shared by all layers, or one set per layer (own)."""

    layers: str

    def __post_init__(self) -> None:
        require_one_of("model.positional.layers", self.layers, ("shared", "own"))


class PositionalScheme(nn.Module):
    """Base class: injects token positions into a GPT by hooks, which do nothing by default.

    A scheme initialises its own parameters. A table starts at 0, so that it has no effect before it
    is learned, or with the RMS of what it is added to (`ModelShape.input_rms`, `key_rms`); a score
    bias that does not depend on the query starts at 0, or with differences between keys of the
    order of 1, the unit of the softmax, or less. The first axis of a parameter is the layer, unless
    all layers share it.

    `max_length`: number of positions the scheme is defined for; None for every length.
    `bias_depends_on`: what the bias of `score_mod` depends on, so that a backend can reuse it:
    "nothing" (no score_mod), "positions" (the same in all layers), "layer" (positions and layer) or
    "content" (also queries or keys).
    `weight_decay`: whether weight decay applies to its tables; False for score biases.
    `has_two_sided_form`: whether it is defined for keys after the query. `two_sided`: whether some
    queries see such keys (see `ModelShape`), so that distances are negative for them.
    `by_signed_distance`: whether its parameters have another meaning when it is two-sided.
    `reads_order_only`: whether `score_mod` uses only the order of positions. With packed documents
    it then receives positions that increase across documents instead of restarting at 0.
    """

    max_length: int | None = None
    bias_depends_on: Literal["nothing", "positions", "layer", "content"] = "nothing"
    weight_decay: ClassVar[bool] = True
    reads_order_only: ClassVar[bool] = False
    has_two_sided_form: ClassVar[bool] = True
    by_signed_distance: ClassVar[bool] = False

    def __init__(self, config: PositionalConfig, shape: ModelShape) -> None:
        super().__init__()
        self.n_embd, self.attention_width = shape.n_embd, shape.attention_width
        self.two_sided = shape.two_sided

    @classmethod
    def overrides(cls, hook: str) -> bool:
        """Whether the scheme overrides a hook."""
        return getattr(cls, hook) is not getattr(PositionalScheme, hook)

    @classmethod
    def has_learned_bias(cls, options: Any) -> bool:
        """Whether gradients flow through the bias of `score_mod`, given the scheme's options."""
        return cls.overrides("score_mod")

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        """Return the token embeddings (b, t, d) with positions, before the first block."""
        return x

    def block_input(self, x: Tensor, positions: Tensor, layer: int) -> Tensor:
        """Return the input (b, t, d) of a block's q, k and v projections, with positions."""
        return x

    def rotate(self, q: Tensor, k: Tensor, positions: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Rotate queries and keys (b, h, t, e) of new tokens; a cache stores the rotated keys."""
        return q, k

    def score_mod(
        self, q: Tensor, k: Tensor, q_positions: Tensor, k_positions: Tensor, layer: int
    ) -> ScoreMod | None:
        """Return a FlexAttention `score_mod` that adds the layer's bias, or None without a bias.

        q (b, h, i, e) and k (b, h or fewer, j, e) are at absolute positions `q_positions` and
        `k_positions`. Empty slots of a cache have a position after every query.
        """
        return None

    def flops_per_query(self, keys: float) -> float:
        """Return the training FLOPs of the products in `score_mod`, for a query with `keys` keys.

        Of one evaluation: `bias_depends_on` says which rows and layers share it. Training takes
        three times the products of the forward pass. Elementwise operations are not counted.
        """
        return 0.0


class LearnedBiasScheme(PositionalScheme):
    """Base class of learned score biases: one set for all layers, or one set per layer.

    The first axis of its parameters is the set, of size `n_sets`.
    """

    weight_decay = False

    def __init__(self, config: LayerSharingConfig, shape: ModelShape) -> None:
        super().__init__(config, shape)
        self.bias_depends_on = "positions" if config.layers == "shared" else "layer"
        self.n_sets = 1 if config.layers == "shared" else shape.n_layer

    def of_layer(self, layer: int, parameters: Tensor) -> Tensor:
        """Return the index of a layer's set."""
        return parameters[layer % self.n_sets]


def random_tables(*shape: int, rms: list[float]) -> nn.Parameter:
    """Return normal tables (l, *shape) of the given RMS, one per layer."""
    scale = torch.tensor(rms).view(-1, *(1 for _ in shape))
    return nn.Parameter(torch.randn(len(rms), *shape) * scale)


Distance = Callable[[Tensor, Tensor, Tensor], Tensor]
"""distance(b, q_idx, kv_idx): of query and key, from indices that broadcast."""


def signed_distance(q_positions: Tensor, k_positions: Tensor) -> Distance:
    """Return the distance query minus key position, which is negative for later keys."""

    def distance(b: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        # One row of positions may apply to the whole batch.
        q_position = q_positions[b % q_positions.shape[0], q_idx]
        return q_position - k_positions[b % k_positions.shape[0], kv_idx]

    return distance


def distance_between(q_positions: Tensor, k_positions: Tensor, two_sided: bool) -> Distance:
    """Return the distance |i - j| if keys on both sides of the query count, else max(0, i - j)."""
    signed = signed_distance(q_positions, k_positions)
    if two_sided:
        return lambda b, q_idx, kv_idx: signed(b, q_idx, kv_idx).abs()
    return lambda b, q_idx, kv_idx: signed(b, q_idx, kv_idx).clamp(min=0)


@dataclass
class DenseScoreMod:
    """score + values[b, h, q_idx, kv_idx]; axes b and h may have size 1."""

    values: Tensor

    def __call__(
        self, score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor
    ) -> Tensor:
        n_rows, n_heads = self.values.shape[:2]
        return score + self.values[b % n_rows, h % n_heads, q_idx, kv_idx]

    def dense(self, in_order: bool) -> Tensor:
        """Return the values."""
        return self.values


@dataclass
class DistanceScoreMod:
    """score + values[b, h, q_idx, distance - first], distances from `first`, which is not above 0.

    The first and last values apply to all smaller and larger distances. values (b, h, i, n); axes
    b, h and i may have size 1.
    """

    values: Tensor
    q_positions: Tensor
    k_positions: Tensor
    first: int = 0

    def __call__(
        self, score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor
    ) -> Tensor:
        n_rows, n_heads, n_queries, n = self.values.shape
        distance = signed_distance(self.q_positions, self.k_positions)(b, q_idx, kv_idx)
        index = (distance - self.first).clamp(min=0, max=n - 1)
        return score + self.values[b % n_rows, h % n_heads, q_idx % n_queries, index]

    def dense(self, in_order: bool) -> Tensor:
        """Return the bias of all pairs.

        If `in_order`, rows are shifted instead of gathered (Huang et al. 2018).
        """
        n_queries, n_keys = self.q_positions.shape[1], self.k_positions.shape[1]
        n = self.values.shape[-1]
        values = self.values.expand(-1, -1, n_queries, -1)
        if not in_order:
            q, k = self.q_positions[:, None, :, None], self.k_positions[:, None, None, :]
            index = (q - k - self.first).clamp(min=0, max=n - 1)
            n_rows = max(len(index), len(values))
            shape = (n_rows, values.shape[1], n_queries, n_keys)
            return values.expand(n_rows, -1, -1, -1).gather(-1, index.expand(shape))
        if self.first < 0:
            return _shifted(values, self.first)
        if n < n_keys:
            values = torch.cat((values, values[..., -1:].expand(*values.shape[:3], n_keys - n)), -1)
        # With an extra column, reshaping shifts each row one more place to the left.
        flipped = F.pad(values[..., :n_keys].flip(-1), (1, 0))
        return flipped.reshape(*values.shape[:2], n_keys + 1, n_queries)[:, :, 1:]


def _shifted(values: Tensor, first: int) -> Tensor:
    """Return values[b, h, i, i - j - first] for t queries i and keys j: (b, h, i, j).

    values (b, h, t, n). Row i is that part of the distances t - 1 to 1 - t which begins with i.
    """
    t, n = values.shape[-2:]
    index = torch.arange(t - 1, -t, -1, device=values.device) - first
    rows = F.pad(values[..., index.clamp(min=0, max=n - 1)], (0, 1)).flatten(-2)  # rows of 2t
    rows = rows[..., t - 1 : t - 1 + t * (2 * t - 1)]
    return rows.unflatten(-1, (t, 2 * t - 1))[..., :t]


POSITIONAL: Registry[PositionalScheme] = Registry(
    "positional", "model.positional", "minigpt.model.positional"
)
