"""Performer: softmax attention estimated with random features, linear in the length."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minigpt.errors import require
from minigpt.model.attention.base import (
    ATTENTION,
    Attention,
    LayersConfig,
    Pass,
    for_each_head,
    require_whole,
)

if TYPE_CHECKING:
    from minigpt.model.gpt import ModelConfig
    from minigpt.model.positional import PositionalScheme

MOST_FEATURES = 65536
CHUNK = 128  # tokens whose pairs are written out; what came before is one state
LOWEST = -1e30  # of a logarithm


@dataclass
class PerformerConfig(LayersConfig):
    """`features`: random features of each query and key."""

    features: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole("features", self.features)
        why = f"more than {MOST_FEATURES} serve no text that fits in memory; use fewer"
        require(self.features <= MOST_FEATURES, "model.attention.features", self.features, why)


@ATTENTION.register("performer", PerformerConfig)
class Performer(Attention):
    """exp(q . k / sqrt(e)) estimated by phi(q) . phi(k), FAVOR+ (Choromanski et al. 2020).

    phi(x)_m = exp(w_m . x' - |x'|^2 / 2), x' = x / e^(1/4): positive, and right on average over w,
    which are normal vectors made orthogonal to each other in groups of head_size. They are drawn
    once for each layer and saved with the weights. Computed in fp32. Time and memory are linear in
    the length; a decoder keeps features * (head_size + 1) + 1 numbers a head, whatever the length.
    """

    softmax, documents = False, False

    def __init__(self, config: PerformerConfig, model: ModelConfig) -> None:
        super().__init__(config, model)
        self.features: Tensor
        drawn = [orthogonal(config.features, model.head_size) for _ in range(model.n_layer)]
        empty = torch.zeros(0, config.features, model.head_size)
        self.register_buffer("features", torch.stack(drawn) if drawn else empty)

    def why_not(self, model: ModelConfig, scheme: PositionalScheme) -> str | None:
        if scheme.score != "none":
            return (
                "it never writes scores out, and the positional scheme adds to them; use one that "
                "does not, as positional=rope"
            )
        if model.logit_softcap is not None:
            return "it never writes scores out, and model.logit_softcap bounds them; set it to null"
        if model.dropout > 0:
            return "it has no weights for model.dropout to drop; set it to 0"
        return None

    def keys(self, length: int) -> float:
        """Features of query and key, the state's update and its use, and the pairs of a chunk."""
        _, n, e = self.features.shape
        return 2 * n + min(length, CHUNK) * (1 + n / e) / 2

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, shared: Pass, layer: int, dropout: float
    ) -> Tensor:
        assert dropout == 0, "`why_not` refuses dropout"
        dtype = v.dtype
        q, k = shared.scheme.rotate(q, k, shared.positions, layer)
        k, v = for_each_head(k, q), for_each_head(v, q)
        with torch.autocast(q.device.type, enabled=False):
            exact = torch.promote_types(dtype, torch.float32)
            log_q, log_k = (self.log_features(x.to(exact), layer) for x in (q, k))
            # Each query's largest feature is 1: it cancels in the quotient.
            q_features = (log_q - log_q.detach().amax(-1, keepdim=True)).exp()
            v = torch.cat((v.to(exact), torch.ones_like(v[..., :1], dtype=exact)), -1)
            if shared.cache is not None:
                log_k = log_k.masked_fill(~shared.cache.real[:, None, :, None], -math.inf)
            y = self.mixed(q_features, log_k, v, shared, layer)
        return y.to(dtype)

    def log_features(self, x: Tensor, layer: int) -> Tensor:
        """log phi(x) of x (b, h, t, e): (b, h, t, m)."""
        x = x / x.shape[-1] ** 0.25
        return x @ self.features[layer].to(x.dtype).mT - x.square().sum(-1, keepdim=True) / 2

    def mixed(self, q: Tensor, log_k: Tensor, v: Tensor, shared: Pass, layer: int) -> Tensor:
        """Each query's weighted mean of the values (b, h, t, e) so far; their last channel is 1.

        The state is sum_j phi(k_j) v_j^T over exp(largest). What a key counts for is kept as a
        logarithm of its own, and a query takes off the largest of those it sees: no key, however
        long, makes another vanish from what came before it.
        """
        b, h, length, n = log_k.shape
        held = {} if shared.cache is None else shared.cache.states
        state = held.get(("performer state", layer), v.new_zeros(b, h, n, v.shape[-1]))
        largest = held.get(("performer largest", layer), v.new_full((b, h, 1), LOWEST))
        later = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=v.device).triu(1)
        means = []
        for start in range(0, length, CHUNK):
            q_part, v_part = q[:, :, start : start + CHUNK], v[:, :, start : start + CHUNK]
            log_part = log_k[:, :, start : start + CHUNK]
            size = log_part.detach().amax(-1).clamp(min=LOWEST)  # (b, h, j)
            seen = torch.cat((largest, size), -1).cummax(-1).values[..., 1:]  # (b, h, i)
            k_part = (log_part - size[..., None]).exp()
            factors = size[..., None, :] - seen[..., None]
            factors = factors.masked_fill(later[: size.shape[-1], : size.shape[-1]], -math.inf)
            sums = ((q_part @ k_part.mT) * factors.exp()) @ v_part
            if start > 0 or held:  # there is something before
                sums = sums + (q_part @ state) * (largest - seen).exp()[..., None]
            means.append(sums[..., :-1] / sums[..., -1:].clamp(min=torch.finfo(v.dtype).tiny))
            if start + CHUNK < length or shared.cache is not None:  # or to come
                new_largest = seen[..., -1:]
                k_part = k_part * (size - new_largest).exp()[..., None]
                state = state * (largest - new_largest).exp()[..., None] + k_part.mT @ v_part
                largest = new_largest
        if shared.cache is not None:
            held["performer state", layer], held["performer largest", layer] = state, largest
        return torch.cat(means, 2)


def orthogonal(n: int, e: int) -> Tensor:
    """n normal vectors (n, e), orthogonal to each other in groups of e, of independent lengths."""
    groups = torch.linalg.qr(torch.randn(-(-n // e), e, e))[0].mT
    return groups.flatten(0, 1)[:n] * torch.randn(n, e).norm(dim=1, keepdim=True)
