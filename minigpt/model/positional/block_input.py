"""Absolute embeddings added to the input of the q, k and v projections of every block."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from minigpt.errors import require, require_one_of
from minigpt.model.positional.base import (
    POSITIONAL,
    PositionalConfig,
    PositionalScheme,
    random_tables,
)
from minigpt.model.positional.sinusoidal import sinusoids
from minigpt.model.shape import ModelShape


@dataclass
class BlockInputConfig(PositionalConfig):
    """`table`: learned (one per layer) or sinusoidal. `base`: base of the sinusoids, else None."""

    table: str
    base: float | None

    def __post_init__(self) -> None:
        require_one_of("model.positional.table", self.table, ("learned", "sinusoidal"))
        if self.table == "learned":
            why = "a learned table has no base; use null, or model.positional.table=sinusoidal"
            require(self.base is None, "model.positional.base", self.base, why)
        else:
            base = "null" if self.base is None else self.base
            ok = self.base is not None and self.base > 1
            require(ok, "model.positional.base", base, "use a number above 1, such as 10000")


@POSITIONAL.register("block_input", BlockInputConfig)
class BlockInputPositions(PositionalScheme):
    """q, k, v of layer l are projections of x_t + P_l[t]; the residual stream has no positions.

    Learned tables, one per layer: n_layer * block_size * n_embd parameters, defined up to
    block_size, starting with the RMS of x, which is 1 after a norm. Or sinusoids of RMS 0.7, the
    same in all layers: no parameters, defined at every length; with norm=post or output they are
    35 times the embeddings in the first block. Memory: t d numbers per layer. After Al-Rfou et al.
    2018 (learned) and Dehghani et al. 2018 (sinusoids), who add them to the residual stream before
    each layer.
    """

    def __init__(self, config: BlockInputConfig, shape: ModelShape) -> None:
        super().__init__(config, shape)
        self.base = config.base
        if config.table == "learned":
            self.max_length = shape.block_size
            self.table = random_tables(shape.block_size, shape.n_embd, rms=shape.input_rms)

    def block_input(self, x: Tensor, positions: Tensor, layer: int) -> Tensor:
        if self.base is None:
            return x + self.table[layer][positions]
        return x + sinusoids(positions, self.n_embd, self.base).to(x.dtype)
