"""Normalisation layers and their placement around a sublayer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.errors import require, require_one_of
from minigpt.model.shape import ModelShape

KINDS = ("layernorm", "rmsnorm")


@dataclass
class NormConfig:
    """`placement`: in PLACEMENTS. `kind`: in KINDS. `affine`: whether norms have a learned gain.

    `eps`: added to the variance, or to the mean square. `bias`: whether LayerNorms have a bias;
    None: as `model.bias` is true or not. `on_embeddings`: whether there is a norm after the
    embeddings, as in BLOOM; None: as the placement has it. `unit_offset`: the gain is 1 + w
    (Gemma), and w starts at 0, or in an output norm at the residual scale - 1.
    """

    placement: str
    kind: str
    affine: bool = True
    eps: float = 1e-5
    bias: bool | None = None
    on_embeddings: bool | None = None
    unit_offset: bool = False

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
        why = "an RMSNorm has no bias; use null, or model.norm.kind=layernorm"
        require(not self.bias or self.kind != "rmsnorm", "model.norm.bias", "true", why)
        for key, other in (("bias", "null"), ("unit_offset", "false")):
            why = f"norms have no gain with model.norm.affine=false; use {other}, or affine=true"
            require(not getattr(self, key) or self.affine, f"model.norm.{key}", "true", why)

    @property
    def has_embedding_norm(self) -> bool:
        """Whether there is a norm after the embeddings."""
        by_placement = PLACEMENTS[self.placement].on_embeddings
        return by_placement if self.on_embeddings is None else self.on_embeddings

    def build(self, shape: ModelShape, present: bool = True) -> nn.Module:
        """Return a norm over n_embd channels, or the identity if the placement omits it."""
        if not present:
            return nn.Identity()
        if self.kind == "rmsnorm":
            rms_norm = OffsetRMSNorm if self.unit_offset else RMSNorm
            return rms_norm(shape.n_embd, self.eps, elementwise_affine=self.affine)
        layer_norm = OffsetLayerNorm if self.unit_offset else nn.LayerNorm
        bias = shape.bias if self.bias is None else self.bias
        return layer_norm(shape.n_embd, self.eps, self.affine, bias=bias)


class RMSNorm(nn.RMSNorm):
    """Root mean square norm without a bias (Zhang & Sennrich 2019), in the precision of its gain.

    Autocast does the same for LayerNorm. torch has a fused kernel for this case.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if self.weight is None else x.to(self.weight.dtype))


class OffsetRMSNorm(nn.RMSNorm):
    """RMSNorm with the gain 1 + w, where w starts at 0 (Gemma, 2024)."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        gain = 1 + self.weight
        return F.rms_norm(x.to(gain.dtype), self.normalized_shape, gain, self.eps)


class OffsetLayerNorm(nn.LayerNorm):
    """LayerNorm with the gain 1 + w, where w starts at 0."""

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.zeros_(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(input, self.normalized_shape, 1 + self.weight, self.bias, self.eps)


Sublayer = Callable[[Tensor], Tensor]


def pre_norm(x: Tensor, norm: nn.Module, sublayer: Sublayer) -> Tensor:
    """x + f(norm(x)): the residual stream is not normalised."""
    return x + sublayer(norm(x))


def post_norm(x: Tensor, norm: nn.Module, sublayer: Sublayer) -> Tensor:
    """norm(x + f(x)): the residual stream itself is normalised."""
    return norm(x + sublayer(x))


def no_residual(x: Tensor, norm: nn.Module, sublayer: Sublayer) -> Tensor:
    """f(x): the output of a sublayer replaces its input."""
    return sublayer(x)


@dataclass(frozen=True)
class Placement:
    """Where a model has norms.

    `residual`: pre_norm, post_norm or no_residual, for each sublayer. `on_input`: the norm that
    this takes; without, sublayers read the residual stream. `on_output`: a norm on the output of
    each sublayer. `on_embeddings`, `final`: a norm after the embeddings, after the last block.
    """

    residual: Callable[[Tensor, nn.Module, Sublayer], Tensor]
    on_input: bool = True
    on_output: bool = False
    on_embeddings: bool = False
    final: bool = True


PLACEMENTS = {
    "pre": Placement(pre_norm),  # GPT-2; Xiong et al. 2020
    "post": Placement(post_norm, final=False),  # the original Transformer (Vaswani et al. 2017)
    "sandwich": Placement(pre_norm, on_output=True),  # CogView (Ding et al. 2021)
    # Peri-LN (Kim et al. 2025)
    "peri": Placement(pre_norm, on_output=True, on_embeddings=True),
    # Swin v2 (Liu et al. 2021), OLMo 2 (2024)
    "output": Placement(pre_norm, on_input=False, on_output=True),
    # the first models of Karpathy's lecture (Let's build GPT, 2023)
    "no_residual": Placement(no_residual, on_input=False, final=False),
}
