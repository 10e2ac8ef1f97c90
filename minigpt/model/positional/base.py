"""The one interface of every positional scheme.

Positions are data: absolute ids of shape (b, t), or (1, t) where every row has the same. A scheme
keeps no offset and no cache, so training, evaluation and decoding cannot disagree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from minigpt.registry import Registry

if TYPE_CHECKING:
    from minigpt.model.gpt import ModelConfig

ScoreTerm = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""term(b, h, i, j): what is added to the scaled score of query i and key j, from index tensors
that broadcast against each other. The same formula serves dense grids and FlexAttention."""


@dataclass
class PositionalConfig:
    """Options every scheme has."""

    name: str


class PositionalScheme(nn.Module):
    """Tells a GPT where its tokens are. Override the hooks the scheme needs; the rest do nothing.

    `max_length`: number of positions the scheme is defined for; None where it is every length.
    `score_is_shared`: True where `score_term` depends on neither layer, q nor k, so that the
    model evaluates it once a forward instead of once a layer.
    Parameters that differ by layer hold the layer as their first axis: sharing shows in the shape.
    """

    max_length: int | None = None
    score_is_shared: ClassVar[bool] = False

    def __init__(self, config: PositionalConfig, model: ModelConfig) -> None:
        super().__init__()

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
        """What to add to the scores of queries (b, h, i, e) and keys (b, h, j, e), or None."""
        return None


POSITIONAL: Registry[PositionalScheme] = Registry(
    "positional", "model.positional", "minigpt.model.positional"
)
