"""Tokens of packed documents attend only to their own document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from minigpt.errors import UserError
from minigpt.model import stack as stack_module
from minigpt.model.attention import ATTENTION
from minigpt.model.backends import BACKENDS
from minigpt.model.bias import AttentionBias
from minigpt.model.ffn import FFN
from minigpt.model.kv_cache import KVCache
from minigpt.model.positional import POSITIONAL
from minigpt.model.stack import positions_in_documents
from tests.model.contract import (
    ATTENTION_IDS,
    ATTENTIONS,
    DOCUMENT_LENGTHS,
    RELATIVE,
    SCHEMES,
    VARIANT_IDS,
    VARIANTS,
    assert_packed_equals_separate,
    document_ids,
    variant_config,
)
from tests.model.tiny import random_model, random_tokens, tiny_config

Options = Mapping[str, Any]
each_backend = pytest.mark.parametrize("backend", BACKENDS)


@pytest.mark.medium
@each_backend
@pytest.mark.parametrize(("scheme", "options"), VARIANTS, ids=VARIANT_IDS)
def test_packed_equals_separate(scheme: str, options: Options, backend: str) -> None:
    assert_packed_equals_separate(variant_config(scheme, options), backend)


@each_backend
@pytest.mark.parametrize("scheme", SCHEMES)
def test_packed_equals_separate_at_explicit_positions(scheme: str, backend: str) -> None:
    assert_packed_equals_separate(tiny_config(scheme), backend, first_position=2)


@each_backend
def test_packed_equals_separate_with_value_residuals_and_skips(backend: str) -> None:
    wide: dict[str, Any] = {"n_layer": 4, "n_head": 4, "n_embd": 16, "n_kv_head": 2}
    assert_packed_equals_separate(
        tiny_config(**wide, value_residual=True, unet_skips=True), backend
    )


@pytest.mark.medium
@each_backend
@pytest.mark.parametrize(("attention", "options"), ATTENTIONS, ids=ATTENTION_IDS)
def test_packed_equals_separate_with_every_attention(
    attention: str, options: Options, backend: str
) -> None:
    config = tiny_config("fire", attention=attention, attention_options=options, n_layer=3)
    if ATTENTION.variant(attention).supports_documents:
        assert_packed_equals_separate(config, backend)
        return
    model = random_model(tiny_config("rope", attention=attention, attention_options=options))
    with pytest.raises(AssertionError, match="should have rejected"):
        model(random_tokens(1, 6), document_ids=document_ids((2, 4))[None])


@pytest.mark.parametrize("ffn", FFN.names())
def test_packed_equals_separate_with_every_feed_forward(ffn: str) -> None:
    assert_packed_equals_separate(tiny_config("alibi", ffn), "eager")


def test_loss_of_a_packed_row_is_the_mean_over_all_tokens() -> None:
    model, tokens = random_model(tiny_config("fire")), random_tokens(1, 13)
    targets = random_tokens(1, 13, seed=1)
    for lengths in DOCUMENT_LENGTHS:
        documents = document_ids(lengths)[None]
        parts = zip(tokens.split(lengths, 1), targets.split(lengths, 1), strict=True)
        nats = torch.cat([model.loss(*part, reduction="none") for part in parts])
        torch.testing.assert_close(model.loss(tokens, targets, documents), nats.mean())
        by_token = model.loss(tokens, targets, documents, reduction="none")
        torch.testing.assert_close(by_token, nats)


def test_positions_restart_in_each_document() -> None:
    documents = torch.stack([document_ids(lengths) for lengths in DOCUMENT_LENGTHS])
    expected = [[place for n in lengths for place in range(n)] for lengths in DOCUMENT_LENGTHS]
    assert positions_in_documents(documents).tolist() == expected


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_mask_across_documents_fails(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def causal(self: AttentionBias, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        q, k = self.q_positions, self.k_positions
        return k[b % k.shape[0], j] <= q[b % q.shape[0], i]

    monkeypatch.setattr(AttentionBias, "mask_mod", causal)
    with pytest.raises(AssertionError, match="not close"):
        assert_packed_equals_separate(tiny_config(scheme), "eager")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_positions_that_do_not_restart_fail(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative schemes pass, because they do not depend on absolute positions."""

    def arange_positions(documents: Tensor) -> Tensor:
        return torch.arange(documents.shape[1])[None]

    monkeypatch.setattr(stack_module, "positions_in_documents", arange_positions)
    if scheme in RELATIVE:
        assert_packed_equals_separate(tiny_config(scheme), "eager")
        return
    with pytest.raises(AssertionError, match="not close"):
        assert_packed_equals_separate(tiny_config(scheme), "eager")


def test_cope_without_a_token_order_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(POSITIONAL.variant("cope"), "reads_order_only", False)
    with pytest.raises(AssertionError, match="not close"):
        assert_packed_equals_separate(tiny_config("cope"), "eager")


def test_invalid_documents_are_rejected() -> None:
    model = random_model(tiny_config("learned", block_size=8))
    documents = document_ids((5, 4))[None]
    with pytest.raises(UserError, match="position 8 was asked for"):  # the row exceeds the table
        model(random_tokens(1, 9), document_ids=documents)
    cache = KVCache(1, 9, torch.device("cpu"))
    with pytest.raises(AssertionError, match="one document per row"):
        model(random_tokens(1, 4), cache=cache, document_ids=documents[:, :4])
