"""Attention backends: one formula, several ways to compute it, and what each is able to do."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from minigpt.errors import UserError, require_one_of
from minigpt.model.attention import ATTENTION
from minigpt.model.bias import Scores
from minigpt.model.positional import PositionalScheme

if TYPE_CHECKING:
    from minigpt.model.gpt import ModelConfig

Backend = Callable[[Tensor, Tensor, Tensor, Scores, int, float], Tensor]
Use = Literal["train", "decode"]
USES: tuple[Use, ...] = ("train", "decode")
FLEX_SMALLEST_HEAD = 16  # of its GPU kernels
SHORT = 64  # tokens; see docs/performance.md


def attention_weights(q: Tensor, k: Tensor, scores: Scores, layer: int) -> Tensor:
    """softmax(cap(q k^T / sqrt(e)) + term + mask), written out: (b, h, i, j)."""
    products = (q / math.sqrt(q.shape[-1])) @ k.mT
    return (scores.capped(products) + scores.additive(q, k, layer)).softmax(dim=-1)


def eager(q: Tensor, k: Tensor, v: Tensor, scores: Scores, layer: int, dropout: float) -> Tensor:
    """The weights times v. q, k, v and result (b, h, t, e)."""
    weights = F.dropout(attention_weights(q, k, scores, layer), dropout)
    return weights.to(v.dtype) @ v


def sdpa(q: Tensor, k: Tensor, v: Tensor, scores: Scores, layer: int, dropout: float) -> Tensor:
    """The same through torch's scaled_dot_product_attention: flash kernels where they apply."""
    if scores.plainly_causal:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
    additive = scores.additive(q, k, layer).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=additive, dropout_p=dropout)


def flex(q: Tensor, k: Tensor, v: Tensor, scores: Scores, layer: int, dropout: float) -> Tensor:
    """The same through torch's FlexAttention, which calls the formulas inside its kernel.

    Fused on a GPU; on a CPU it is written out, forward only.
    """
    assert dropout == 0, "`why_not` refuses dropout"
    term = scores.term(q, k, layer)

    def score_mod(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        score = scores.capped(score)
        return score if term is None else score + term(b, h, i, j)

    block_mask = scores.block_mask(len(q))
    with warnings.catch_warnings():  # that it is not fused is known
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        return _flex_attention(q.device.type)(q, k, v, score_mod=score_mod, block_mask=block_mask)


@cache
def _flex_attention(device: str) -> Callable[..., Any]:
    # A full graph: past the limit of recompiling it raises instead of running unfused.
    return torch.compile(flex_attention, fullgraph=True) if device == "cuda" else flex_attention


BACKENDS: dict[str, Backend] = {"eager": eager, "sdpa": sdpa, "flex": flex}


def why_not(
    backend: str, use: Use, device: str, scheme: PositionalScheme, config: ModelConfig
) -> str | None:
    """Why a backend cannot compute a design for a use on a device type; None if it can."""
    if backend != "eager" and not ATTENTION.variant(config.attention.name).softmax:
        return "the attention is computed in a way of its own"
    if backend == "sdpa" and config.logit_softcap is not None:
        return "it has no logit soft-cap"
    if backend != "flex":
        return None
    if device == "mps":
        return "FlexAttention has no kernels for mps"
    if device == "cuda" and config.head_size < FLEX_SMALLEST_HEAD:
        return f"its GPU kernels need heads of {FLEX_SMALLEST_HEAD} channels or more"
    if use == "decode":
        return None
    if device == "cpu":
        return "FlexAttention has no backward on CPUs"
    if config.dropout > 0:
        return "FlexAttention has no dropout"
    if scheme.score_learns:
        return "FlexAttention sums a learned term's gradients in no fixed order"
    return None


@dataclass
class BackendConfig:
    """`name`: an entry of BACKENDS, or auto."""

    name: str

    def __post_init__(self) -> None:
        require_one_of("model.backend.name", self.name, [*BACKENDS, "auto"])


def choose_backend(
    config: ModelConfig, scheme: PositionalScheme, device: str, bf16: bool, use: Use
) -> tuple[str, str]:
    """The backend's name for a device type, precision and use, and the reason for it.

    Raises UserError where an explicit choice cannot be honoured.
    """

    def refusal(name: str) -> str | None:
        return why_not(name, use, device, scheme, config)

    name = config.backend.name
    if name != "auto":
        why = refusal(name)
        if why is not None:
            able = [other for other in BACKENDS if refusal(other) is None]
            raise UserError(
                f"model.backend.name={name}: cannot {use} this design on {device}: {why}; "
                f"use {', '.join(able)} or auto"
            )
        return name, "as configured"
    why = refusal("sdpa")
    if why is not None:
        return "eager", f"sdpa: {why}"
    if device == "cpu" and bf16 and use == "train":
        return "eager", "the backward pass of torch's bf16 flash attention is slow on CPUs"
    if device == "cpu" and use == "train" and config.block_size <= SHORT:
        return "eager", "torch's flash attention is slower than plain products of this length"
    return "sdpa", "torch's fused kernels"
