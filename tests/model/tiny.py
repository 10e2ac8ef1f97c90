"""Small models of every design."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from minigpt.config.compose import composed_config
from minigpt.model import GPT, ModelConfig
from minigpt.model.backends import BackendConfig
from minigpt.model.compatibility import problems
from minigpt.model.config import EmbeddingConfig
from minigpt.model.norm import NormConfig

N_VOCAB = 11


@cache
def composed_model(*overrides: str) -> ModelConfig:
    """Return the model section that Hydra composes from overrides."""
    return composed_config(list(overrides)).model


def tiny_config(
    positional: str = "rope",
    ffn: str = "relu2",
    backend: str = "eager",
    embedding: str = "untied",
    placement: str = "pre",
    kind: str = "rmsnorm",
    options: Mapping[str, Any] = MappingProxyType({}),
    attention: str = "full",
    attention_options: Mapping[str, Any] = MappingProxyType({}),
    **changes: Any,
) -> ModelConfig:
    """Return a config of two layers, three heads and twelve channels, updated with `changes`.

    `options` and `attention_options` override the defaults of the positional scheme and the
    attention.
    """
    small: dict[str, Any] = {"n_layer": 2, "n_head": 3, "n_embd": 12, "block_size": 16}
    # Groups are composed one by one and cached: Hydra is slow.
    scheme = composed_model(f"positional={positional}").positional
    chosen = composed_model(f"attention={attention}").attention
    return replace(
        composed_model(),
        positional=replace(scheme, **options),
        ffn=composed_model(f"ffn={ffn}").ffn,
        attention=replace(chosen, **attention_options),
        backend=BackendConfig(backend),
        embedding=EmbeddingConfig(embedding),
        norm=NormConfig(placement, kind),
        **{**small, **changes},
    )


def random_model(config: ModelConfig, n_vocab: int = N_VOCAB) -> GPT:
    """Return a model in eval mode whose parameters are all random with a large variance.

    Zeros and ones of the initialization would hide errors.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # buffers may be random too
        model = GPT(config, n_vocab)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4, generator=generator)
    return model.eval()


def first_problem(config: ModelConfig) -> str | None:
    """Return the first reason why a config is invalid, or None."""
    reported = problems(config)
    return str(reported[0]) if reported else None


def random_tokens(batch: int, length: int, n_vocab: int = N_VOCAB, seed: int = 0) -> Tensor:
    """Return random tokens (b, t)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(n_vocab, (batch, length), generator=generator)


def gradients(loss: Tensor, model: GPT) -> dict[str, Tensor]:
    """Return the gradient of every parameter by name, zeros if the loss does not depend on it."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    grads = torch.autograd.grad(loss, parameters, materialize_grads=True)
    return dict(zip(names, grads, strict=True))


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Set torch's default dtype within a block."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
