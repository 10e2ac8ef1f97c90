"""Small models for tests, of every design."""

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
def composed(*overrides: str) -> ModelConfig:
    """The model section that overrides give, as a user would get it."""
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
    """A design of two layers, three heads and twelve channels, with `changes` to it.

    `options` and `attention_options` are those of its positional scheme and its attention that are
    not as configured.
    """
    small: dict[str, Any] = {"n_layer": 2, "n_head": 3, "n_embd": 12, "block_size": 16}
    # Each group by itself: composing every combination would take longer than the tests.
    scheme = composed(f"positional={positional}").positional
    chosen = composed(f"attention={attention}").attention
    return replace(
        composed(),
        positional=replace(scheme, **options),
        ffn=composed(f"ffn={ffn}").ffn,
        attention=replace(chosen, **attention_options),
        backend=BackendConfig(backend),
        embedding=EmbeddingConfig(embedding),
        norm=NormConfig(placement, kind),
        **{**small, **changes},
    )


def random_model(config: ModelConfig, n_vocab: int = N_VOCAB) -> GPT:
    """A model whose every parameter is far from its start, so that every part shows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of what is drawn and no parameter
        model = GPT(config, n_vocab)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4, generator=generator)
    return model.eval()


def refused(config: ModelConfig) -> str | None:
    """Return why a design is refused, or None."""
    every = problems(config)
    return str(every[0]) if every else None


def random_tokens(batch: int, length: int, n_vocab: int = N_VOCAB, seed: int = 0) -> Tensor:
    """Tokens (b, t)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(n_vocab, (batch, length), generator=generator)


def gradients(loss: Tensor, model: GPT) -> dict[str, Tensor]:
    """Of every parameter, by name; zeros where the loss does not depend on one."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, materialize_grads=True)
    return dict(zip(names, found, strict=True))


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make models, tables and masks of a dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
