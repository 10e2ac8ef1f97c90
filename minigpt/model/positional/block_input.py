"""An absolute embedding added again in every block, just before queries, keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from minigpt.errors import require, require_one_of
from minigpt.model.positional.base import POSITIONAL, PositionalConfig, PositionalScheme
from minigpt.model.positional.sinusoidal import require_even_width, sinusoids

if TYPE_CHECKING:
    from minigpt.model.gpt import ModelConfig


@dataclass
class BlockInputConfig(PositionalConfig):
    """`table`: learned (one a layer) or sinusoidal; `base`: of the sinusoids, else None."""

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
            require(ok, "model.positional.base", base, "use a number above 1, as 10000")


@POSITIONAL.register("block_input", BlockInputConfig)
class BlockInputPositions(PositionalScheme):
    """q, k, v of layer l are made of x_t + P_l[t]; the residual stream itself holds no positions.

    Learned tables, one a layer: n_layer * block_size * n_embd parameters, ends at block_size. Or
    sinusoids, the same in all layers: no parameters, defined at every length. Memory: t d numbers
    a layer. After Al-Rfou et al. 2018 (learned) and Dehghani et al. 2018 (sinusoids), who add
    theirs before each layer to the residual stream as well.
    """

    def __init__(self, config: BlockInputConfig, model: ModelConfig) -> None:
        super().__init__(config, model)
        self.base, self.n_embd = config.base, model.n_embd
        if config.table == "learned":
            self.max_length = model.block_size
            self.table = nn.Parameter(torch.empty(model.n_layer, model.block_size, model.n_embd))
            nn.init.normal_(self.table, std=0.02)
        else:
            require_even_width(model)

    def block_input(self, x: Tensor, positions: Tensor, layer: int) -> Tensor:
        if self.base is None:
            return x + self.table[layer][positions]
        return x + sinusoids(positions, self.n_embd, self.base).to(x.dtype)
