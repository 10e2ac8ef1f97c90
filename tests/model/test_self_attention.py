"""Head gates and values from x0: equal to loops in every backend, and identities at the start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from minigpt.model import GPT, ModelConfig
from minigpt.model.attention import ATTENTION
from minigpt.model.backends import BACKENDS
from minigpt.model.context import ForwardContext
from minigpt.model.linear import ZeroLinear
from minigpt.model.norm import PLACEMENTS
from minigpt.model.self_attention import SelfAttention
from tests.model.contract import (
    assert_cached_equals_full,
    assert_causal,
    assert_equals_reference,
    assert_packed_equals_separate,
)
from tests.model.reference import ATTENTION_OPTIONS
from tests.model.tiny import N_VOCAB, random_tokens, tiny_config

Options = Mapping[str, Any]
OPTIONS: dict[str, dict[str, Any]] = {
    "gates": {"head_gates": True},
    "x0": {"value_residual": "x0"},
    "both": {"head_gates": True, "value_residual": "x0"},
}
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def assert_correct(config: ModelConfig, backend: str = "eager") -> None:
    """Compare outputs and gradients with the reference, and decoding with a full pass."""
    for per_row in (False, True):
        assert_equals_reference(config, backend, 7, per_row)
    assert_cached_equals_full(config, backend)


@each_option
def test_equal_the_reference(options: Options) -> None:
    assert_correct(tiny_config(n_layer=3, bias=True, **options))


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_the_reference_in_every_backend(backend: str) -> None:
    config = tiny_config(n_kv_head=1, n_embd=24, **OPTIONS["both"])
    assert_correct(config, backend)
    assert_causal(config, backend)
    assert_packed_equals_separate(config, backend)


@pytest.mark.parametrize("attention", ATTENTION.names())
def test_equal_the_reference_with_every_attention(attention: str) -> None:
    options = ATTENTION_OPTIONS[attention][0]
    config = tiny_config(attention=attention, attention_options=options, **OPTIONS["both"])
    assert_equals_reference(config, "eager", 7, per_row=True)
    assert_cached_equals_full(config, "eager")


@pytest.mark.parametrize(
    ("scheme", "placement"),  # learned positions change x0, those of block_input a layer's x
    [*(("learned", placement) for placement in PLACEMENTS), ("block_input", "pre")],
)
def test_equal_the_reference_with_every_norm(scheme: str, placement: str) -> None:
    skips: dict[str, Any] = {"n_layer": 3, "unet_skips": True, "qk_norm": "gain"}
    if placement == "no_residual":  # without norms, the squares of relu2 overflow
        skips["ffn"] = "gelu"
    config = tiny_config(scheme, placement=placement, **skips, **OPTIONS["both"])
    assert_equals_reference(config, "eager", 5, per_row=True)


@each_option
def test_start_without_effect(options: Options) -> None:
    """So paired seeds start from the same function and weights, and differ only by the option."""
    models = []
    for chosen in ({}, options):
        torch.manual_seed(0)
        models.append(GPT(tiny_config(residual_init="scaled", **chosen), N_VOCAB))
    plain, other = models
    tokens = random_tokens(2, 9)
    assert torch.equal(plain(tokens), other(tokens))
    shared = dict(plain.named_parameters())
    added = {name: p for name, p in other.named_parameters() if name not in shared}
    assert all(torch.equal(p, dict(other.named_parameters())[name]) for name, p in shared.items())
    names = {name.split(".")[-2] for name in added}
    assert names == {"head_gates", "x0_values"} & {*names} and not any(
        p.any() for p in added.values()
    )
    other.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    assert all(p.grad is not None and p.grad.any() for p in added.values())


def test_true_is_first_layer() -> None:
    """The only value in earlier versions."""
    assert tiny_config(value_residual=True) == tiny_config(value_residual="first_layer")


# ---- mutations: what the tests above must find ----


def of_gates(change: Callable[[Tensor], Tensor]) -> Callable[[ZeroLinear, Tensor], Tensor]:
    """Return a forward pass of the layers of gates, here of 3 heads, with a changed result."""

    def forward(self: ZeroLinear, x: Tensor) -> Tensor:
        y = x @ self.weight.T
        return change(y) if self.out_features == 3 else y

    return forward


GATE_MUTATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "heads the other way round": lambda y: y.flip(-1),
    "of the token before": lambda y: torch.cat((y[:, :1], y[:, :-1]), 1),
    "of the first head": lambda y: y[..., :1].expand_as(y),
    "not of the input": torch.zeros_like,
}


@pytest.mark.parametrize("change", GATE_MUTATIONS.values(), ids=GATE_MUTATIONS)
def test_broken_gates_fail(
    change: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ZeroLinear, "forward", of_gates(change))
    with pytest.raises(AssertionError, match="not close"):
        assert_correct(tiny_config(head_gates=True))


X0_MUTATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "not normalized": lambda x0: 2 * x0,
    "of the token before": lambda x0: torch.cat((x0[:, :1], x0[:, :-1]), 1),
    "of the first row": lambda x0: x0[:1].expand_as(x0),
}


@pytest.mark.parametrize("change", X0_MUTATIONS.values(), ids=X0_MUTATIONS)
def test_broken_x0_values_fail(
    change: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = SelfAttention.forward

    def broken(self: SelfAttention, x: Tensor, attention: Any, ctx: ForwardContext) -> Tensor:
        assert ctx.x0 is not None
        if self.layer == 0:
            ctx.x0 = change(ctx.x0)
        return forward(self, x, attention, ctx)

    monkeypatch.setattr(SelfAttention, "forward", broken)
    with pytest.raises(AssertionError, match="not close"):
        assert_correct(tiny_config(value_residual="x0"))
