"""The one interface of every positional scheme, and the three forms a score term can take.

Positions are data: absolute ids of shape (b, t), or (1, t) where every row has the same. A scheme
keeps no offset and no cache, so training, evaluation and decoding cannot disagree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.errors import require_one_of
from minigpt.registry import Registry

if TYPE_CHECKING:
    from minigpt.model.gpt import ModelConfig

ScoreTerm = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""term(b, h, i, j): what is added to the scaled score of query i and key j, from index tensors
that broadcast against each other. The same formula serves dense grids and FlexAttention. It is
evaluated at masked pairs as well, where it must be finite."""


@dataclass
class PositionalConfig:
    """Options every scheme has."""

    name: str


@dataclass
class LayersConfig(PositionalConfig):
    """`layers`: one set of parameters shared by all layers, or each layer its own."""

    layers: str

    def __post_init__(self) -> None:
        require_one_of("model.positional.layers", self.layers, ("shared", "own"))


class PositionalScheme(nn.Module):
    """Tells a GPT where its tokens are. Override the hooks the scheme needs; the rest do nothing.

    A scheme initialises its own parameters. Those that differ by layer hold the layer as their
    first axis: sharing shows in the shape.

    `max_length`: number of positions the scheme is defined for; None where it is every length.
    `score`: what `score_term` depends on, so that no backend computes it more often than needed:
    "none" (there is no term), "positions" (the same in all layers), "layer" (positions and layer),
    "content" (queries or keys as well).
    `decays`: whether weight decay pulls its tables to zero; not where they make bare scores.
    `ordinal`: whether `score_term` reads nothing but the order of positions. It is then given the
    documents of a row one after the other, instead of each from 0, where they would interleave.
    """

    max_length: int | None = None
    score: Literal["none", "positions", "layer", "content"] = "none"
    decays: ClassVar[bool] = True
    ordinal: ClassVar[bool] = False

    def __init__(self, config: PositionalConfig, model: ModelConfig) -> None:
        super().__init__()

    def uses(self, hook: str) -> bool:
        """Whether the scheme overrides a hook."""
        return getattr(type(self), hook) is not getattr(PositionalScheme, hook)

    @property
    def score_learns(self) -> bool:
        """Whether a gradient flows into the score term."""
        has_parameters = next(self.parameters(), None) is not None
        return self.score == "content" or (self.score != "none" and has_parameters)

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        """Change the token embeddings (b, t, d), once, before the first block."""
        return x

    def block_input(self, x: Tensor, positions: Tensor, layer: int) -> Tensor:
        """Change the input (b, t, d) of a block's q, k and v projections."""
        return x

    def rotate(self, q: Tensor, k: Tensor, positions: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Change queries and keys (b, h, t, e) of new tokens; a cache holds the changed keys."""
        return q, k

    def score_term(
        self,
        q: Tensor,
        k: Tensor,
        q_positions: Tensor,
        k_positions: Tensor,
        layer: int,
    ) -> ScoreTerm | None:
        """What to add to the scores of queries (b, h, i, e) and keys (b, h, j, e), or None.

        Unused slots of a cache stand at positions beyond every query.
        """
        return None


class BiasScheme(PositionalScheme):
    """A scheme of bare scores, which depend on positions: one set for all layers, or one a layer.

    Its parameters hold the set as their first axis, of size `n_sets`.
    """

    decays = False

    def __init__(self, config: LayersConfig, model: ModelConfig) -> None:
        super().__init__(config, model)
        self.score = "positions" if config.layers == "shared" else "layer"
        self.n_sets = 1 if config.layers == "shared" else model.n_layer

    def of(self, layer: int, parameters: Tensor) -> Tensor:
        """A layer's set."""
        return parameters[layer % self.n_sets]


def distance_of(q_positions: Tensor, k_positions: Tensor) -> Callable[..., Tensor]:
    """distance(b, i, j): how far key j stands behind query i; 0 for the later keys of the mask."""

    def distance(b: Tensor, i: Tensor, j: Tensor) -> Tensor:
        i_position = q_positions[b % q_positions.shape[0], i]  # one row may stand for all
        return (i_position - k_positions[b % k_positions.shape[0], j]).clamp(min=0)

    return distance


@dataclass
class DenseTerm:
    """term(b, h, i, j) = values[b, h, i, j]; b and h of size 1 where it does not depend on them."""

    values: Tensor

    def __call__(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        n_rows, n_heads = self.values.shape[:2]
        return self.values[b % n_rows, h % n_heads, i, j]

    def dense(self, in_order: bool) -> Tensor:
        """The values themselves."""
        return self.values


@dataclass
class DistanceTerm:
    """term(b, h, i, j) = values[b, h, i, distance(i, j)]; the last column is for all beyond.

    values (b, h, i, n), with axes of size 1 where it does not depend on them.
    """

    values: Tensor
    q_positions: Tensor
    k_positions: Tensor

    def __call__(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        n_rows, n_heads, n_queries, n = self.values.shape
        distance = distance_of(self.q_positions, self.k_positions)(b, i, j).clamp(max=n - 1)
        return self.values[b % n_rows, h % n_heads, i % n_queries, distance]

    def dense(self, in_order: bool) -> Tensor:
        """All pairs at once. In order, rows are shifted instead of gathered (Huang et al. 2018)."""
        n_queries, n_keys = self.q_positions.shape[1], self.k_positions.shape[1]
        n = self.values.shape[-1]
        values = self.values.expand(-1, -1, n_queries, -1)
        if not in_order:
            q, k = self.q_positions[:, None, :, None], self.k_positions[:, None, None, :]
            distance = (q - k).clamp(min=0, max=n - 1)
            rows = max(len(distance), len(values))
            shape = (rows, values.shape[1], n_queries, n_keys)
            return values.expand(rows, -1, -1, -1).gather(-1, distance.expand(shape))
        if n < n_keys:
            values = torch.cat((values, values[..., -1:].expand(*values.shape[:3], n_keys - n)), -1)
        # One more column makes every row of the reshaped matrix start one place further left.
        turned = F.pad(values[..., :n_keys].flip(-1), (1, 0))
        return turned.reshape(*values.shape[:2], n_keys + 1, n_queries)[:, :, 1:]


POSITIONAL: Registry[PositionalScheme] = Registry(
    "positional", "model.positional", "minigpt.model.positional"
)
