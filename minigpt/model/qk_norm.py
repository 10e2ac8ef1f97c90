"""Norms and scale of queries and keys."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minigpt.model.norm import NormConfig, RMSNorm
from minigpt.model.shape import ModelShape


class QKNorm(nn.Module):
    """The base class of attention layers, whose queries and keys may be normalised.

    With QK-norm, they are divided by their root mean square (Henry et al. 2020; Dehghani et al.
    2023), so that no score exceeds sqrt(head_size); with `gain`, each head multiplies its queries
    by a learned number that starts at 1, as in Swin v2 (Liu et al. 2021): n_head parameters per
    layer. `all_channels` is an RMSNorm of the channels of all heads together, with a learned gain
    per channel, as in OLMo 2 (2024): (n_head + n_kv_head) head_size parameters per layer.

    `score_scale` replaces 1 / sqrt(head_size) as the factor of q . k, and of what positional
    schemes compute from q: the queries are multiplied by the quotient of both. T5 uses 1.
    """

    def add_qk_norm(self, shape: ModelShape, norm: NormConfig) -> None:
        """Add the parameters. A method, so that they follow those of the projections."""
        self.qk_norm = shape.qk_norm
        self.q_factor = None
        if shape.score_scale is not None:
            self.q_factor = shape.score_scale * math.sqrt(shape.head_size)
        self.qk_gain, self.q_norm, self.k_norm = None, None, None
        if shape.qk_norm == "all_channels":
            self.q_norm = RMSNorm(shape.attention_width, norm.eps)
            self.k_norm = RMSNorm(shape.n_kv_head * shape.head_size, norm.eps)
        if shape.qk_norm == "gain":
            self.qk_gain = nn.Parameter(torch.ones(shape.n_head))

    def normed_queries(self, q: Tensor) -> Tensor:
        """Return queries (b, h, t, e), normalised and scaled, in their dtype."""
        dtype = q.dtype
        q = self._normed(q, self.q_norm)
        if self.qk_gain is not None:
            q = (q * self.qk_gain[:, None, None]).to(dtype)
        return q if self.q_factor is None else q * self.q_factor

    def normed_keys(self, k: Tensor) -> Tensor:
        """Return keys (b, h, t, e), normalised, in their dtype."""
        return self._normed(k, self.k_norm)

    def _normed(self, x: Tensor, norm: RMSNorm | None) -> Tensor:
        if norm is not None:
            y = norm(rearrange(x, "b h t e -> b t (h e)")).to(x.dtype)
            return rearrange(y, "b t (h e) -> b h t e", h=x.shape[1])
        return F.rms_norm(x, x.shape[-1:]).to(x.dtype) if self.qk_norm else x
