"""The interface of every positional scheme, and the forms that a score_mod can take.

Positions are data: absolute ids of shape (b, t), or (1, t) where every row has the same. A scheme
keeps no offset and no cache, so training, evaluation and decoding cannot disagree.
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
and a key plus a bias, from index tensors that broadcast against each other. Since it only adds,
score_mod of a score of 0 is the dense bias of eager attention and SDPA. It is evaluated at masked
pairs as well, where it must be finite."""


@dataclass
class PositionalConfig:
    """Options every scheme has."""

    name: str


@dataclass
class LayerSharingConfig(PositionalConfig):
    """`layers`: one set of parameters shared by all layers, or one set per layer (own)."""

    layers: str

    def __post_init__(self) -> None:
        require_one_of("model.positional.layers", self.layers, ("shared", "own"))


class PositionalScheme(nn.Module):
    """Gives a GPT the positions of its tokens, by hooks that do nothing unless overridden.

    A scheme initialises its own parameters. Those that differ between layers have the layer as
    their first axis, so that sharing shows in the shape.

    `max_length`: number of positions the scheme is defined for; None for every length.
    `bias_depends_on`: what the bias of `score_mod` depends on, so that no backend computes it more
    often than needed: "nothing" (there is no score_mod), "positions" (the same in all layers),
    "layer" (positions and layer), "content" (queries or keys as well).
    `weight_decay`: whether its tables are decayed; not where they are biases of scores.
    `reads_order_only`: whether `score_mod` uses only the order of positions. For packed documents
    it then receives positions that increase across documents instead of restarting at 0.
    """

    max_length: int | None = None
    bias_depends_on: Literal["nothing", "positions", "layer", "content"] = "nothing"
    weight_decay: ClassVar[bool] = True
    reads_order_only: ClassVar[bool] = False

    def __init__(self, config: PositionalConfig, shape: ModelShape) -> None:
        super().__init__()

    @classmethod
    def overrides(cls, hook: str) -> bool:
        """Whether the scheme overrides a hook."""
        return getattr(cls, hook) is not getattr(PositionalScheme, hook)

    @classmethod
    def has_learned_bias(cls, options: Any) -> bool:
        """Whether a gradient flows through the bias of `score_mod`, given the scheme's options."""
        return cls.overrides("score_mod")

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        """Change the token embeddings (b, t, d), once, before the first block."""
        return x

    def block_input(self, x: Tensor, positions: Tensor, layer: int) -> Tensor:
        """Change the input (b, t, d) of a block's q, k and v projections."""
        return x

    def rotate(self, q: Tensor, k: Tensor, positions: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Change queries and keys (b, h, t, e) of new tokens; a cache stores the changed keys."""
        return q, k

    def score_mod(
        self, q: Tensor, k: Tensor, q_positions: Tensor, k_positions: Tensor, layer: int
    ) -> ScoreMod | None:
        """Return a FlexAttention `score_mod` that adds the layer's bias, or None without a bias.

        q (b, h, i, e) and k (b, h, j, e) are at absolute positions `q_positions` and `k_positions`.
        Unused slots of a cache have a position greater than that of every query.
        """
        return None


class LearnedBiasScheme(PositionalScheme):
    """A scheme of learned score biases: one set for all layers, or one set per layer.

    Its parameters have the set as their first axis, of size `n_sets`.
    """

    weight_decay = False

    def __init__(self, config: LayerSharingConfig, shape: ModelShape) -> None:
        super().__init__(config, shape)
        self.bias_depends_on = "positions" if config.layers == "shared" else "layer"
        self.n_sets = 1 if config.layers == "shared" else shape.n_layer

    def of_layer(self, layer: int, parameters: Tensor) -> Tensor:
        """Return the set of a layer."""
        return parameters[layer % self.n_sets]


def distance_between(q_positions: Tensor, k_positions: Tensor) -> Callable[..., Tensor]:
    """Return distance(b, q_idx, kv_idx): positions from a key to the query, 0 for later keys."""

    def distance(b: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        # One row of positions may stand for the whole batch.
        q_position = q_positions[b % q_positions.shape[0], q_idx]
        return (q_position - k_positions[b % k_positions.shape[0], kv_idx]).clamp(min=0)

    return distance


@dataclass
class DenseScoreMod:
    """score + values[b, h, q_idx, kv_idx]; b and h of size 1 where it does not depend on them."""

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
    """score + values[b, h, q_idx, distance]; the last value holds for all greater distances.

    values (b, h, i, n), with axes of size 1 where it does not depend on them.
    """

    values: Tensor
    q_positions: Tensor
    k_positions: Tensor

    def __call__(
        self, score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor
    ) -> Tensor:
        n_rows, n_heads, n_queries, n = self.values.shape
        distance = distance_between(self.q_positions, self.k_positions)(b, q_idx, kv_idx)
        distance = distance.clamp(max=n - 1)
        return score + self.values[b % n_rows, h % n_heads, q_idx % n_queries, distance]

    def dense(self, in_order: bool) -> Tensor:
        """Return the bias of all pairs.

        In order, rows are shifted instead of gathered (Huang et al. 2018).
        """
        n_queries, n_keys = self.q_positions.shape[1], self.k_positions.shape[1]
        n = self.values.shape[-1]
        values = self.values.expand(-1, -1, n_queries, -1)
        if not in_order:
            q, k = self.q_positions[:, None, :, None], self.k_positions[:, None, None, :]
            distance = (q - k).clamp(min=0, max=n - 1)
            n_rows = max(len(distance), len(values))
            shape = (n_rows, values.shape[1], n_queries, n_keys)
            return values.expand(n_rows, -1, -1, -1).gather(-1, distance.expand(shape))
        if n < n_keys:
            values = torch.cat((values, values[..., -1:].expand(*values.shape[:3], n_keys - n)), -1)
        # One more column shifts each row of the reshaped matrix one place further left.
        flipped = F.pad(values[..., :n_keys].flip(-1), (1, 0))
        return flipped.reshape(*values.shape[:2], n_keys + 1, n_queries)[:, :, 1:]


POSITIONAL: Registry[PositionalScheme] = Registry(
    "positional", "model.positional", "minigpt.model.positional"
)
