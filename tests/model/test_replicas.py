"""Several models in one vmapped program, compared with each model alone."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from minigpt.data import Batch
from minigpt.model import GPT, ModelConfig, gpt
from minigpt.model.config import EmbeddingConfig
from minigpt.model.ffn import FFN
from minigpt.model.norm import PLACEMENTS, NormConfig
from minigpt.runtime import Runtime
from minigpt.train.replicas import Program
from tests.model.contract import ATTENTION_IDS, ATTENTIONS, VARIANT_IDS, VARIANTS
from tests.model.tiny import N_VOCAB, first_problem, random_tokens, tiny_config

pytestmark = pytest.mark.usefixtures("float64")

N = 3
# The loss is computed in fp32 even if the weights are float64.
CLOSE: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-6}


def models_of(config: ModelConfig) -> list[GPT]:
    """Return N models with random parameters from different seeds."""
    models = []
    for seed in range(N):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = GPT(config, N_VOCAB).train()
            for parameter in model.parameters():
                nn.init.normal_(parameter, std=0.4)
        models.append(model)
    return models


def batches(length: int = 9, documents: bool = False) -> list[Batch]:
    """Return a batch for each model."""
    return [
        Batch(
            random_tokens(2, length, seed=seed),
            random_tokens(2, length, seed=seed + N),
            random_tokens(2, length, 3, seed=seed).sort(dim=1).values if documents else None,
        )
        for seed in range(N)
    ]


def assert_equals_separate(
    config: ModelConfig, batches: list[Batch], compiled: bool = False
) -> None:
    """Assert that losses, metrics and accumulated grads equal those of separate models."""
    models = models_of(config)
    program = Program(models, Runtime("cpu", "", "fp32", ""), compiled)
    metrics, _ = (program.backward(batches, grad_accum_steps=2) for _ in range(2))
    batched_grads = [[p.grad for p in model.parameters()] for model in models]
    for model, batch, logged, grads in zip(models, batches, metrics, batched_grads, strict=True):
        model.zero_grad()
        loss, expected = model.training_loss(batch.inputs, batch.targets, batch.document_ids)
        loss.backward()
        torch.testing.assert_close(logged, expected, **CLOSE)
        torch.testing.assert_close(grads, [p.grad for p in model.parameters()], **CLOSE)


@pytest.mark.parametrize(("scheme", "options"), VARIANTS, ids=VARIANT_IDS)
def test_positional_schemes(scheme: str, options: Mapping[str, Any]) -> None:
    config = tiny_config(scheme, options=options, n_embd=24, n_head=3)
    assert_equals_separate(config, batches())


@pytest.mark.parametrize(("attention", "options"), ATTENTIONS, ids=ATTENTION_IDS)
def test_attentions(attention: str, options: Mapping[str, Any]) -> None:
    chosen: dict[str, Any] = {"attention": attention, "attention_options": options}
    for scheme in ("rope", "relative"):
        config = tiny_config(scheme, **chosen)
        if first_problem(config) is None:
            assert_equals_separate(config, batches())
            assert_equals_separate(config, batches(length=16))


@pytest.mark.medium
@pytest.mark.parametrize("ffn", sorted({*FFN.names()} - {"moe"}))
@pytest.mark.parametrize(
    ("placement", "embedding"),
    [*zip(PLACEMENTS, itertools.cycle(("tied", "untied")), strict=False)],
)
def test_block_options(placement: str, embedding: str, ffn: str) -> None:
    parts: dict[str, Any] = {"qk_norm": "gain", "value_residual": True, "unet_skips": True}
    config = tiny_config(placement=placement, embedding=embedding, ffn=ffn, **parts)
    assert_equals_separate(config, batches())
    parts |= {"value_residual": "x0", "head_gates": True}
    assert_equals_separate(replace(config, **parts), batches())
    assert_equals_separate(tiny_config(kind="layernorm", n_kv_head=1, logit_softcap=0.5), batches())


def test_options_of_families() -> None:
    norm = NormConfig("output", "rmsnorm", unit_offset=True, on_embeddings=True)
    heads: dict[str, Any] = {"head_size": 6, "qk_norm": "all_channels", "score_scale": 0.3}
    config = tiny_config(block="parallel", bias="qkv", final_softcap=2.0, **heads)
    config = replace(config, norm=norm, embedding=EmbeddingConfig("tied", scale=True))
    assert_equals_separate(config, batches())


def test_packed_documents() -> None:
    for scheme in ("rope", "t5"):
        assert_equals_separate(tiny_config(scheme), batches(documents=True))


def test_loss_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpt, "MAX_LOGITS", 5 * N_VOCAB)
    assert_equals_separate(tiny_config(), batches())


def test_expert_routing_raises() -> None:
    with pytest.raises(RuntimeError):
        assert_equals_separate(tiny_config(ffn="moe"), batches())


@pytest.mark.exhaustive
@pytest.mark.slow
def test_compiled() -> None:
    assert_equals_separate(tiny_config(n_layer=1), batches(), compiled=True)
