"""Normalisation: which one, and where it stands around a sublayer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from minigpt.errors import require_one_of


@dataclass
class NormConfig:
    """`placement` and `kind` name entries of PLACEMENTS and KINDS."""

    placement: str
    kind: str

    def __post_init__(self) -> None:
        require_one_of("model.norm.placement", self.placement, PLACEMENTS)
        require_one_of("model.norm.kind", self.kind, KINDS)


def pre_norm(x: Tensor, norm: nn.Module, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
    """x + f(norm(x)): the residual stream stays free (GPT-2; Xiong et al. 2020)."""
    return x + sublayer(norm(x))


def post_norm(x: Tensor, norm: nn.Module, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
    """norm(x + f(x)): the original Transformer (Vaswani et al. 2017)."""
    return norm(x + sublayer(x))


PLACEMENTS = {"pre": pre_norm, "post": post_norm}
KINDS = {
    "layernorm": lambda width, bias: nn.LayerNorm(width, bias=bias),
    "rmsnorm": lambda width, bias: nn.RMSNorm(width, eps=1e-5),  # has no bias (Zhang 2019)
}
