"""Normalisation layers and their placement around a sublayer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from minigpt.errors import require, require_one_of
from minigpt.model.shape import ModelShape

KINDS = ("layernorm", "rmsnorm")


@dataclass
class NormConfig:
    """`placement`: in PLACEMENTS. `kind`: in KINDS. `affine`: whether norms have a learned gain.

    `eps`: added to the variance, or to the mean square.
    """

    placement: str
    kind: str
    affine: bool = True
    eps: float = 1e-5

    def __post_init__(self) -> None:
        require_one_of("model.norm.placement", self.placement, PLACEMENTS)
        require_one_of("model.norm.kind", self.kind, KINDS)
        require(self.eps > 0, "model.norm.eps", self.eps, "must be above 0")
        why = (
            f"with norm={self.placement} the gain of the output norm sets the initial scale of a "
            f"branch; leave it true, or use norm=pre or post"
        )
        has_gain = self.affine or not PLACEMENTS[self.placement].on_output
        require(has_gain, "model.norm.affine", "false", why)

    def build(self, shape: ModelShape, present: bool = True) -> nn.Module:
        """Return a norm over n_embd channels, or the identity if the placement omits it."""
        if not present:
            return nn.Identity()
        if self.kind == "rmsnorm":
            return RMSNorm(shape.n_embd, self.eps, elementwise_affine=self.affine)
        return nn.LayerNorm(shape.n_embd, self.eps, self.affine, bias=shape.bias)


class RMSNorm(nn.RMSNorm):
    """Root mean square norm without a bias (Zhang & Sennrich 2019), in the precision of its gain.

    Autocast does the same for LayerNorm. torch has a fused kernel for this case.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if self.weight is None else x.to(self.weight.dtype))


Sublayer = Callable[[Tensor], Tensor]


def pre_norm(x: Tensor, norm: nn.Module, sublayer: Sublayer) -> Tensor:
    """x + f(norm(x)): the residual stream is not normalised."""
    return x + sublayer(norm(x))


def post_norm(x: Tensor, norm: nn.Module, sublayer: Sublayer) -> Tensor:
    """norm(x + f(x)): the residual stream itself is normalised."""
    return norm(x + sublayer(x))


@dataclass(frozen=True)
class Placement:
    """Where a model has norms.

    `residual`: pre_norm or post_norm, for each sublayer. `on_output`: a second norm on the output
    of each sublayer. `on_embeddings`, `final`: a norm after the embeddings, after the last block.
    """

    residual: Callable[[Tensor, nn.Module, Sublayer], Tensor]
    on_output: bool = False
    on_embeddings: bool = False
    final: bool = True


PLACEMENTS = {
    "pre": Placement(pre_norm),  # GPT-2; Xiong et al. 2020
    "post": Placement(post_norm, final=False),  # the original Transformer (Vaswani et al. 2017)
    "sandwich": Placement(pre_norm, on_output=True),  # CogView (Ding et al. 2021)
    # Peri-LN (Kim et al. 2025)
    "peri": Placement(pre_norm, on_output=True, on_embeddings=True),
}
