"""Equal designs: the same function with other options, and the weights that it then has.

An architecture may have scaled embeddings or not, gains of w or of 1 + w, and so on. A design that
differs from it only in this is rewritten.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from minigpt.model.config import ModelConfig

Conventions = Callable[[ModelConfig], ModelConfig]
"""conventions(config): the equal design that an architecture has."""


def plain(config: ModelConfig) -> ModelConfig:
    """Gains of w, embeddings as they are, scores divided by the square root of the head size."""
    embedding = replace(config.embedding, scale=False)
    return replace(_with_offset(config, False), embedding=embedding, score_scale=None)


def two_norms(config: ModelConfig) -> ModelConfig:
    """As `plain`, and parallel sublayers have a norm each."""
    block = "parallel" if config.block == "parallel_shared" else config.block
    return replace(plain(config), block=block)


def gemma(config: ModelConfig) -> ModelConfig:
    """Gains of 1 + w, and embeddings that are multiplied by sqrt(n_embd)."""
    embedding = replace(config.embedding, scale=True)
    return replace(_with_offset(config, True), embedding=embedding, score_scale=None)


def gemma2(config: ModelConfig) -> ModelConfig:
    """As `gemma`, but scores are divided by the square root of any whole number."""
    scalar = max(1, round(score_scale(config) ** -2))
    scale = None if scalar == config.shape.head_size else scalar**-0.5
    return replace(gemma(config), score_scale=scale)


def _with_offset(config: ModelConfig, offset: bool) -> ModelConfig:
    """Return the design with norms that have gains of w, or of 1 + w."""
    if config.norm.unit_offset == offset:
        return config
    return replace(config, norm=replace(config.norm, unit_offset=offset, affine=True))


def score_scale(config: ModelConfig) -> float:
    """Return the factor of q . k."""
    return config.shape.head_size**-0.5 if config.score_scale is None else config.score_scale


def rewritten(
    weights: Mapping[str, Tensor], config: ModelConfig, target: ModelConfig
) -> dict[str, Tensor]:
    """Return the weights in fp32 that an equal design `target` has, by name.

    With a tied head, another scale of the embeddings is another gain of the last norm in exchange.
    """
    new = {name: tensor.float().cpu() for name, tensor in weights.items()}
    before, after = int(config.norm.unit_offset), int(target.norm.unit_offset)
    embeddings, at_the_end = _embedding_scale(config) / _embedding_scale(target), 1.0
    if embeddings != 1:
        new["token_embedding.weight"] = new["token_embedding.weight"] * embeddings
        if config.embedding.name == "tied":
            new["head.weight"] = new["token_embedding.weight"]
            at_the_end = 1 / embeddings
            new.setdefault("final_norm.weight", torch.ones(config.n_embd))
    scores = score_scale(config) / score_scale(target)
    n_queries = config.shape.attention_width
    for name, tensor in new.items():
        module, _, kind = name.rpartition(".")
        factor = at_the_end if module == "final_norm" else 1.0
        if module.endswith("_norm") and ".self_attention." not in name:
            if kind == "bias":
                new[name] = tensor * factor
            elif factor != 1 or before != after:
                new[name] = (tensor + before) * factor - after
        elif not math.isclose(scores, 1, rel_tol=1e-12):
            if module.endswith(".q_norm"):
                new[name] = tensor * scores
            elif module.endswith(".qkv") and config.qk_norm is False:
                new[name] = torch.cat((tensor[:n_queries] * scores, tensor[n_queries:]))
    if config.block != target.block:
        assert (config.block, target.block) == ("parallel_shared", "parallel")
        shared = {name: tensor for name, tensor in new.items() if ".attention_norm." in name}
        new |= {
            name.replace("attention_norm", "ffn_norm"): tensor for name, tensor in shared.items()
        }
    return new


def _embedding_scale(config: ModelConfig) -> float:
    return math.sqrt(config.n_embd) if config.embedding.scale else 1.0
