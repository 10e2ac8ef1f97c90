"""Performer: softmax attention estimated with random features, linear in the length."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from minigpt.errors import require, require_at_least
from minigpt.model.attention.base import ATTENTION, AlternatingAttentionConfig, Attention
from minigpt.model.context import ForwardContext
from minigpt.model.grouped import repeat_kv
from minigpt.model.shape import ModelShape
from minigpt.model.visibility import earlier

MAX_FEATURES = 65536
CHUNK = 128  # tokens per chunk, computed as pairs; earlier tokens are in the state
MIN_LOG = -1e30  # finite, so that differences of logarithms are finite


@dataclass
class PerformerConfig(AlternatingAttentionConfig):
    """`features`: number of random features per query and key."""

    features: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, "model.attention", self, "features")
        why = f"must be at most {MAX_FEATURES}"
        require(self.features <= MAX_FEATURES, "model.attention.features", self.features, why)


@ATTENTION.register("performer", PerformerConfig)
class Performer(Attention):
    """exp(q . k / sqrt(e)) estimated by phi(q) . phi(k), FAVOR+ (Choromanski et al. 2020).

    phi(x)_m = exp(w_m . x' - |x'|^2 / 2), x' = x / e^(1/4): positive, and the mean over m is
    unbiased over w, which are normal vectors made orthogonal to each other in groups of head_size.
    They are drawn once per layer and saved with the weights. Computed in fp32. Time and memory are
    linear in the length; the decoding state has features * (head_size + 1) + 1 numbers per head, at
    any length.
    """

    uses_backend, supports_documents = False, False
    without_prefix = "its state is of earlier keys, or of all"

    def __init__(self, config: PerformerConfig, shape: ModelShape) -> None:
        super().__init__(config, shape)
        self.features: Tensor
        by_layer = [orthogonal(config.features, shape.head_size) for _ in range(shape.n_layer)]
        empty = torch.zeros(0, config.features, shape.head_size)
        self.register_buffer("features", torch.stack(by_layer) if by_layer else empty)

    def flops_per_query(self, length: int) -> float:
        """Return the FLOPs of phi(q) and phi(k), the pairs of a chunk, and the state.

        The features of x have no gradient, so that they count twice. The first chunk uses no state,
        the last one adds nothing to it.
        """
        _, n, e = self.features.shape
        n_head, chunk = self.width // e, min(length, CHUNK)
        features = 2 * 2 * 2 * n * e
        pairs = 3 * 2 * chunk * (n + e + 1)
        state = 3 * 2 * 2 * n * (e + 1) * (1 - chunk / length)
        return n_head * (features + pairs + state)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, ctx: ForwardContext, layer: int, dropout: float
    ) -> Tensor:
        assert dropout == 0, "`compatibility` should have rejected this"
        dtype = v.dtype
        q, k = ctx.positional.rotate(q, k, ctx.positions, layer)
        k, v = repeat_kv(k, q), repeat_kv(v, q)
        with torch.autocast(q.device.type, enabled=False):
            full_precision = torch.promote_types(dtype, torch.float32)
            log_q, log_k = (self.log_features(x.to(full_precision), layer) for x in (q, k))
            # Each query's largest feature is scaled to 1: the scale cancels in the quotient.
            q_features = (log_q - log_q.detach().amax(-1, keepdim=True)).exp()
            ones = torch.ones_like(v[..., :1], dtype=full_precision)
            v = torch.cat((v.to(full_precision), ones), -1)
            if ctx.cache is not None:
                log_k = log_k.masked_fill(~ctx.cache.is_token[:, None, :, None], -math.inf)
            if ctx.visible is earlier:
                y = self.weighted_means(q_features, log_k, v, ctx, layer)
            else:
                y = mean_of_all(q_features, log_k, v, ctx.visible_keys(len(q)))
        return y.to(dtype)

    def log_features(self, x: Tensor, layer: int) -> Tensor:
        """Return log phi(x) of x (b, h, t, e): (b, h, t, m)."""
        x = x / x.shape[-1] ** 0.25
        return x @ self.features[layer].to(x.dtype).mT - x.square().sum(-1, keepdim=True) / 2

    def weighted_means(
        self, q: Tensor, log_k: Tensor, v: Tensor, ctx: ForwardContext, layer: int
    ) -> Tensor:
        """Return each query's weighted mean of the values (b, h, t, e), whose last channel is 1.

        The state is sum_j phi(k_j) v_j^T / exp(largest). The scale of each key is kept as a
        logarithm, and each query subtracts the largest among its keys, so that a key with a large
        norm does not make earlier keys underflow.
        """
        b, h, length, n = log_k.shape
        states = {} if ctx.cache is None else ctx.cache.states
        state = states.get(("performer state", layer), v.new_zeros(b, h, n, v.shape[-1]))
        largest = states.get(("performer largest", layer), v.new_full((b, h, 1), MIN_LOG))
        later = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=v.device).triu(1)
        means = []
        for start in range(0, length, CHUNK):
            chunk = slice(start, start + CHUNK)
            q_part, v_part, log_part = q[:, :, chunk], v[:, :, chunk], log_k[:, :, chunk]
            log_scale = log_part.detach().amax(-1).clamp(min=MIN_LOG)  # per key: (b, h, j)
            # Largest scale among the keys of each query: (b, h, i).
            running = torch.cat((largest, log_scale), -1).cummax(-1).values[..., 1:]
            k_part = (log_part - log_scale[..., None]).exp()
            log_factors = log_scale[..., None, :] - running[..., None]
            n_part = log_scale.shape[-1]
            log_factors = log_factors.masked_fill(later[:n_part, :n_part], -math.inf)
            sums = ((q_part @ k_part.mT) * log_factors.exp()) @ v_part
            if start > 0 or states:
                sums = sums + (q_part @ state) * (largest - running).exp()[..., None]
            means.append(sums[..., :-1] / sums[..., -1:].clamp(min=torch.finfo(v.dtype).tiny))
            if start + CHUNK < length or ctx.cache is not None:  # the state is used later
                new_largest = running[..., -1:]
                k_part = k_part * (log_scale - new_largest).exp()[..., None]
                state = state * (largest - new_largest).exp()[..., None] + k_part.mT @ v_part
                largest = new_largest
        if ctx.cache is not None:
            states["performer state", layer], states["performer largest", layer] = state, largest
        return torch.cat(means, 2)


def mean_of_all(q: Tensor, log_k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """Return each query's weighted mean of the values of all visible (b, t) keys: (b, h, t, e)."""
    log_k = log_k.masked_fill(~visible[:, None, :, None], -math.inf)
    largest = log_k.detach().amax((-2, -1), keepdim=True)  # cancels in the quotient
    sums = q @ ((log_k - largest).exp().mT @ v)
    return sums[..., :-1] / sums[..., -1:].clamp(min=torch.finfo(v.dtype).tiny)


def orthogonal(n: int, e: int) -> Tensor:
    """Draw n normal vectors (n, e), orthogonal in groups of e, with independent norms.

    Q of a QR factorisation is uniform (Haar) only if R has a positive diagonal (Mezzadri 2007).
    """
    q, r = torch.linalg.qr(torch.randn(-(-n // e), e, e))
    groups = (q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None]).mT
    return groups.flatten(0, 1)[:n] * torch.randn(n, e).norm(dim=1, keepdim=True)
