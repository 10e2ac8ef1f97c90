"""Normalisation: which one, and where it stands around a sublayer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from minigpt.errors import require, require_one_of


@dataclass
class NormConfig:
    """`placement`, `kind`: entries of PLACEMENTS and KINDS. `affine`: with a learned gain."""

    placement: str
    kind: str
    affine: bool = True

    def __post_init__(self) -> None:
        require_one_of("model.norm.placement", self.placement, PLACEMENTS)
        require_one_of("model.norm.kind", self.kind, KINDS)
        why = (
            f"with norm={self.placement} a branch starts by the gain of its result's norm; leave "
            f"it true, or use norm=pre or post"
        )
        has_gain = self.affine or not PLACEMENTS[self.placement].result
        require(has_gain, "model.norm.affine", "false", why)

    def make(self, width: int, bias: bool) -> nn.Module:
        """A norm over `width` channels, with a bias if it has a gain and `bias` says so."""
        return KINDS[self.kind](width, bias, self.affine)


class RMSNorm(nn.RMSNorm):
    """Root mean square norm, without a bias (Zhang & Sennrich 2019), in the precision of its gain.

    That is what autocast does to LayerNorm, and where torch has one kernel for it.
    """

    def __init__(self, width: int, affine: bool) -> None:
        super().__init__(width, eps=1e-5, elementwise_affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if self.weight is None else x.to(self.weight.dtype))


def inside(x: Tensor, norm: nn.Module, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
    """x + f(norm(x)): the residual stream stays free."""
    return x + sublayer(norm(x))


def outside(x: Tensor, norm: nn.Module, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
    """norm(x + f(x)): the residual stream itself is normalised."""
    return norm(x + sublayer(x))


@dataclass(frozen=True)
class Placement:
    """Where norms stand: around a sublayer, and whether a sublayer's result, the embeddings and the
    last block's output have one of their own."""

    around: Callable[[Tensor, nn.Module, Callable[[Tensor], Tensor]], Tensor]
    result: bool = False
    embeddings: bool = False
    last: bool = True


PLACEMENTS = {
    "pre": Placement(inside),  # GPT-2; Xiong et al. 2020
    "post": Placement(outside, last=False),  # the original Transformer (Vaswani et al. 2017)
    "sandwich": Placement(inside, result=True),  # CogView (Ding et al. 2021)
    "peri": Placement(inside, result=True, embeddings=True),  # Peri-LN (Kim et al. 2025)
}
KINDS = {
    "layernorm": lambda width, bias, affine: nn.LayerNorm(
        width, elementwise_affine=affine, bias=bias
    ),
    "rmsnorm": lambda width, bias, affine: RMSNorm(width, affine),
}
