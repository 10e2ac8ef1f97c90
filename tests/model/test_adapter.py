"""Low-rank adapters: outputs and gradients equal those of the formula and of the peft library."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

from minigpt.errors import UserError
from minigpt.model import GPT
from minigpt.model.adapter import (
    ADAPTERS,
    LoRA,
    LoRAConfig,
    adapted_layers,
    adapter_parameters,
    merge_adapters,
)
from tests.model.contract import VARIANT_IDS, VARIANTS, variant_config
from tests.model.tiny import random_model, random_tokens, tiny_config

pytestmark = pytest.mark.usefixtures("float64")
TARGETS = ["qkv", "self_attention.out", "ffn.up"]


def lora(rank: int = 2, targets: list[str] | None = None, dropout: float = 0.0) -> LoRAConfig:
    return LoRAConfig("lora", rank, 3.0, dropout, targets or TARGETS)


def adapted(model: GPT, config: LoRAConfig) -> GPT:
    """Return a copy with adapters whose second factor is not zero."""
    model = deepcopy(model)
    torch.manual_seed(1)
    ADAPTERS.build(config).attach(model)
    for _, layer in adapted_layers(model):
        nn.init.normal_(layer.lora_b.weight, std=0.1)
    return model


def loss_and_gradients(model: nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    tokens, targets = random_tokens(2, 13), random_tokens(2, 13, seed=1)
    logits = model(tokens)
    logits = getattr(logits, "logits", logits)
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    names = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(loss, [*names.values()])
    return loss.detach(), dict(zip(names, gradients, strict=True))


def test_training_starts_from_the_model_as_it_is() -> None:
    model = random_model(tiny_config())
    expected = model(random_tokens(2, 13))
    copy = deepcopy(model)
    LoRA(lora()).attach(copy)
    assert torch.equal(copy(random_tokens(2, 13)), expected)


@pytest.mark.parametrize(("scheme", "options"), VARIANTS, ids=VARIANT_IDS)
def test_outputs_and_gradients_equal_those_of_the_product(
    scheme: str, options: Mapping[str, Any]
) -> None:
    """dL/dA = s B^T dL/dW and dL/dB = s dL/dW A^T, with dL/dW of W + s B A."""
    config = variant_config(scheme, options)
    model = adapted(random_model(config), lora(targets=["qkv"]))
    whole = deepcopy(model)
    merge_adapters(whole)
    loss, gradients = loss_and_gradients(model)
    assert {*gradients} == {*adapter_parameters(model)}
    whole.requires_grad_(True)
    expected_loss, of_whole = loss_and_gradients(whole)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-10, atol=1e-12)
    for name, layer in adapted_layers(model):
        of_weight, scale = of_whole[f"{name}.weight"], layer.scale
        a, b = layer.lora_a.weight, layer.lora_b.weight
        expected = {"lora_a": scale * b.T @ of_weight, "lora_b": scale * of_weight @ a.T}
        for part, gradient in expected.items():
            torch.testing.assert_close(
                gradients[f"{name}.{part}.weight"], gradient, rtol=1e-8, atol=1e-10
            )


@pytest.mark.parametrize("ffn", ["gelu", "swiglu", "moe"])
@pytest.mark.parametrize("embedding", ["tied", "untied"])
def test_a_merged_model_has_the_same_outputs(ffn: str, embedding: str) -> None:
    targets = ["qkv", "out"] + ([] if embedding == "tied" else ["head"])
    config = tiny_config(ffn=ffn, embedding=embedding)
    model = adapted(random_model(config), lora(3, targets, dropout=0.5)).eval()
    expected = model(random_tokens(2, 13))
    merge_adapters(model)
    assert not [*adapted_layers(model)]
    torch.testing.assert_close(model(random_tokens(2, 13)), expected, rtol=1e-10, atol=1e-12)


def test_dropout_acts_in_training_only() -> None:
    model = adapted(random_model(tiny_config()), lora(dropout=0.5))
    tokens = random_tokens(2, 13)
    assert not torch.equal(model.train()(tokens), model(tokens))
    assert torch.equal(model.eval()(tokens), model(tokens))


@pytest.mark.parametrize(
    ("target", "message"),
    [("q_proj", "adapter.targets=q_proj: no linear layer of this model; use some of"),
     ("head", "adapter.targets=head"), ("kv", "adapter.targets=kv")],
)  # fmt: skip
def test_unknown_targets_are_refused(target: str, message: str) -> None:
    model = random_model(tiny_config(embedding="tied"))
    with pytest.raises(UserError, match=message):
        LoRA(lora(targets=[target])).attach(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "adapter.rank=0"),
        ({"alpha": 0.0}, "adapter.alpha=0.0"),
        ({"dropout": 1.0}, "adapter.dropout=1.0"),
        ({"targets": []}, "adapter.targets="),
    ],
)
def test_wrong_options_are_refused(changes: dict[str, Any], message: str) -> None:
    options = {"name": "lora", "rank": 2, "alpha": 2.0, "dropout": 0.0, "targets": ["qkv"]}
    with pytest.raises(UserError, match=message):
        LoRAConfig(**options | changes)


def test_equals_peft() -> None:
    """The same weights in peft's adapters of the same layers give the same loss and gradients."""
    peft = pytest.importorskip("peft")
    model = adapted(random_model(tiny_config()), lora(2))
    plain = deepcopy(model)
    for name, layer in list(adapted_layers(plain)):
        parent, _, child = name.rpartition(".")
        linear = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
        linear.weight, linear.bias = layer.weight, layer.bias
        setattr(plain.get_submodule(parent), child, linear)
    config = peft.LoraConfig(
        r=2, lora_alpha=3.0, target_modules=[n for n, _ in adapted_layers(model)]
    )
    theirs = peft.inject_adapter_in_model(config, plain)
    for name, layer in adapted_layers(model):
        module = theirs.get_submodule(name)
        module.lora_A["default"].weight.data = layer.lora_a.weight.data.clone()
        module.lora_B["default"].weight.data = layer.lora_b.weight.data.clone()
    loss, gradients = loss_and_gradients(model)
    their_loss, their_gradients = loss_and_gradients(theirs)
    torch.testing.assert_close(loss, their_loss, rtol=1e-12, atol=1e-12)
    for name, gradient in gradients.items():
        key = name.replace("lora_a.", "lora_A.default.").replace("lora_b.", "lora_B.default.")
        torch.testing.assert_close(gradient, their_gradients[key], rtol=1e-10, atol=1e-12)
