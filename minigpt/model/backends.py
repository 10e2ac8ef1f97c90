"""Attention backends: implementations of softmax attention with the same result."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention
from torch.utils.checkpoint import checkpoint

from minigpt.errors import require_one_of
from minigpt.model.bias import AttentionBias
from minigpt.model.grouped import grouped_matmul, repeat_kv

Backend = Callable[[Tensor, Tensor, Tensor, AttentionBias, int, float], Tensor]
"""backend(q, k, v, bias, layer, dropout) -> (b, h, t, e).

q: (b, h, t, e). k and v: (b, h or fewer, s, e)."""

BLOCK_QUERIES = 128  # per block of `blockwise`; its scores then fit into a cache


def capped_scores(q: Tensor, k: Tensor, bias: AttentionBias) -> Tensor:
    """Return softcap(q k^T / sqrt(e)): (b, h, i, j)."""
    return bias.softcap(grouped_matmul(q / math.sqrt(q.shape[-1]), k.mT))


def attention_weights(q: Tensor, k: Tensor, bias: AttentionBias, layer: int) -> Tensor:
    """Return softmax(softcap(q k^T / sqrt(e)) + bias + mask): (b, h, i, j)."""
    return (capped_scores(q, k, bias) + bias.dense(q, k, layer)).softmax(dim=-1)


def eager(
    q: Tensor, k: Tensor, v: Tensor, bias: AttentionBias, layer: int, dropout: float
) -> Tensor:
    """Compute attention from a dense matrix of attention weights."""
    weights = F.dropout(attention_weights(q, k, bias, layer), dropout)
    return grouped_matmul(weights.to(v.dtype), v)


# Compiling each block takes minutes. The public torch.compiler.disable imports dynamo at once.
@torch._disable_dynamo  # pyright: ignore[reportPrivateImportUsage]
def blockwise(
    q: Tensor, k: Tensor, v: Tensor, bias: AttentionBias, layer: int, dropout: float
) -> Tensor:
    """Compute `eager` in blocks of queries, and again in the backward pass (Chen et al. 2016).

    Keeps the dense bias, but no scores; skips the keys after a block if tokens are in order.
    Compiled models call it as it is.
    """

    def attend(q: Tensor, k: Tensor, v: Tensor, dense: Tensor) -> Tensor:
        weights = (capped_scores(q, k, bias) + dense).softmax(dim=-1)
        return grouped_matmul(F.dropout(weights, dropout).to(v.dtype), v)

    n, mixed = BLOCK_QUERIES, []
    rows = bias.dense(q, k, layer)
    rows = rows.expand(*rows.shape[:-2], q.shape[-2], -1).split(n, dim=-2)  # may have one row
    for index, (queries, dense) in enumerate(zip(q.split(n, dim=-2), rows, strict=True)):
        end = (index + 1) * n if bias.hides_later_keys else k.shape[-2]
        block = (queries, k[..., :end, :], v[..., :end, :], dense[..., :end])
        rng = dropout > 0  # reading the RNG state is slow
        mixed.append(checkpoint(attend, *block, use_reentrant=False, preserve_rng_state=rng))
    return torch.cat(mixed, dim=-2)


def sdpa(
    q: Tensor, k: Tensor, v: Tensor, bias: AttentionBias, layer: int, dropout: float
) -> Tensor:
    """Compute attention with torch's scaled_dot_product_attention, which has flash kernels."""
    if q.shape[2] == 1 and q.device.type == "cpu":  # where the kernel is slower than products
        return eager(q, k, v, bias, layer, dropout)
    k, v = repeat_kv(k, q), repeat_kv(v, q)
    if bias.is_causal or bias.is_absent:
        causal = bias.is_causal
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=causal)
    attn_mask = bias.dense(q, k, layer).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout)


def flex(
    q: Tensor, k: Tensor, v: Tensor, bias: AttentionBias, layer: int, dropout: float
) -> Tensor:
    """Compute attention with torch's FlexAttention: score_mod and mask_mod run in its kernel.

    Fused on a GPU. On a CPU it is unfused and has no backward pass.
    """
    assert dropout == 0, "`compatibility` should have rejected this"
    k, v = repeat_kv(k, q), repeat_kv(v, q)
    positional_score_mod = bias.score_mod(q, k, layer)

    def score_mod(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        score = bias.softcap(score)
        if positional_score_mod is None:
            return score
        return positional_score_mod(score, b, h, q_idx, kv_idx)

    block_mask = bias.block_mask(len(q))
    with warnings.catch_warnings():  # unfused on purpose on a CPU
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        return _flex_attention(q.device.type)(q, k, v, score_mod=score_mod, block_mask=block_mask)


@cache
def _flex_attention(device: str) -> Callable[..., Any]:
    # fullgraph: past the recompile limit it raises instead of running unfused.
    return torch.compile(flex_attention, fullgraph=True) if device == "cuda" else flex_attention


BACKENDS: dict[str, Backend] = {
    "eager": eager,
    "blockwise": blockwise,
    "sdpa": sdpa,
    "flex": flex,
}


@dataclass
class BackendConfig:
    """`name`: an entry of BACKENDS, or auto."""

    name: str

    def __post_init__(self) -> None:
        require_one_of("model.backend.name", self.name, [*BACKENDS, "auto"])
