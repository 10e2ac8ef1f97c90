"""Causal multi-head self-attention and the backends that compute it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minigpt.errors import did_you_mean, require
from minigpt.model.scores import Scores

if TYPE_CHECKING:
    from minigpt.model.gpt import ModelConfig

Backend = Callable[[Tensor, Tensor, Tensor, Scores, int, float], Tensor]


def eager(q: Tensor, k: Tensor, v: Tensor, scores: Scores, layer: int, dropout: float) -> Tensor:
    """softmax(q k^T / sqrt(e) + term + mask) v, written out. q, k, v and result (b, h, t, e)."""
    weights = (q / math.sqrt(q.shape[-1])) @ k.mT + scores.additive(q, k, layer)
    weights = F.dropout(weights.softmax(dim=-1), dropout)
    return weights.to(v.dtype) @ v


def sdpa(q: Tensor, k: Tensor, v: Tensor, scores: Scores, layer: int, dropout: float) -> Tensor:
    """The same through torch's scaled_dot_product_attention: flash kernels where they apply."""
    if scores.plain_causal and scores.term(q, k, layer) is None:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
    additive = scores.additive(q, k, layer).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=additive, dropout_p=dropout)


BACKENDS: dict[str, Backend] = {"eager": eager, "sdpa": sdpa}


@dataclass
class BackendConfig:
    """`name`: an entry of BACKENDS, or auto."""

    name: str

    def __post_init__(self) -> None:
        known = [*BACKENDS, "auto"]
        require(
            self.name in known,
            "model.backend.name",
            self.name,
            f"not one of {', '.join(known)}.{did_you_mean(self.name, known)}",
        )


def choose_backend(config: BackendConfig, device: str, bf16: bool) -> tuple[str, str]:
    """The backend's name for a device type and precision, and the reason for it."""
    if config.name != "auto":
        return config.name, "as configured"
    if device == "cpu" and bf16:
        return "eager", "torch's bf16 flash backward is slow on CPUs"
    return "sdpa", "torch's fused kernels"


class SelfAttention(nn.Module):
    """Multi-head causal self-attention with one fused projection for q, k and v."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.n_head = layer, config.n_head
        self.qk_norm, self.dropout = config.qk_norm, config.dropout
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.out = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor, scores: Scores, backend: Backend) -> Tensor:
        scheme, positions = scores.scheme, scores.q_positions
        x = scheme.block_input(x, positions, self.layer)
        qkv = rearrange(self.qkv(x), "b t (n h e) -> n b h t e", n=3, h=self.n_head)
        q, k, v = qkv.unbind()
        if self.qk_norm:  # without parameters (Henry et al. 2020; Dehghani et al. 2023)
            q, k = F.rms_norm(q, q.shape[-1:]), F.rms_norm(k, k.shape[-1:])
        q, k = scheme.rotate(q, k, positions, self.layer)
        y = backend(q, k, v, scores, self.layer, self.dropout if self.training else 0.0)
        return self.out(rearrange(y, "b h t e -> b t (h e)"))
