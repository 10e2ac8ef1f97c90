"""Mixture of experts: outputs, load balancing, metrics, parameter and FLOP counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.model import GPT, ModelConfig
from minigpt.model.context import Auxiliary
from minigpt.model.ffn.moe import ROWS, MixtureOfExperts
from minigpt.model.ffn.moe import balance_loss as layer_balance_loss
from tests.model.contract import (
    assert_cached_equals_full,
    assert_equal,
    assert_positions_are_per_row,
    random_target_loss,
)
from tests.model.reference import (
    Vectors,
    balance_loss,
    chosen_experts,
    reference_logits,
    reference_loss,
    router_probabilities,
)
from tests.model.tiny import (
    N_VOCAB,
    default_dtype,
    gradients,
    random_model,
    random_tokens,
    tiny_config,
)


def mixture_config(**options: Any) -> ModelConfig:
    """Return a mixture-of-experts config, its defaults overridden by `options`."""
    config = tiny_config("rope", "moe", bias=True)
    return replace(config, ffn=replace(config.ffn, **options))


def router_inputs(model: GPT, tokens: Tensor) -> list[Tensor]:
    """Return the input (b, t, d) of each mixture-of-experts layer."""
    inputs: list[Tensor] = []
    layers = [module for module in model.modules() if isinstance(module, MixtureOfExperts)]
    hooks = [layer.register_forward_pre_hook(lambda _, x: inputs.append(x[0])) for layer in layers]
    model(tokens)
    for hook in hooks:
        hook.remove()
    return inputs


def reference_probabilities(model: GPT, tokens: Tensor) -> list[list[Vectors]]:
    """Return the router probabilities of each token, by layer, computed in loops."""
    weights = dict(model.named_parameters())
    return [
        [router_probabilities(x, weights, f"blocks.{layer}.ffn") for x in xs.flatten(0, 1)]
        for layer, xs in enumerate(router_inputs(model, tokens))
    ]


@pytest.mark.parametrize(
    ("expert", "n_expert", "n_active"),
    [("relu2", 3, 1), ("gelu", 5, 5), ("geglu", 1, 1), ("relu", 7, 3), ("swiglu", 4, 2)],
)
def test_equals_the_reference(expert: str, n_expert: int, n_active: int) -> None:
    with default_dtype(torch.float64):
        config = mixture_config(expert=expert, n_expert=n_expert, n_active=n_active)
        model, tokens = random_model(config), random_tokens(3, 5)
        weights, positions = dict(model.named_parameters()), torch.arange(5).expand(3, -1)
        logits = model(tokens)
        expected = reference_logits(config, weights, N_VOCAB, tokens, positions)
        assert_equal(logits, expected)
        grads = gradients(random_target_loss(logits), model)
        assert_equal(grads, gradients(reference_loss(expected, random_tokens(3, 5, seed=1)), model))
        for layer in range(2 if n_expert > 1 else 0):  # with one expert its weight is always 1
            assert grads[f"blocks.{layer}.ffn.router.weight"].abs().max() > 1e-6


def test_one_expert_equals_a_dense_ffn() -> None:
    model, plain = (
        random_model(config)
        for config in (
            mixture_config(n_expert=1, n_active=1),
            tiny_config("rope", "swiglu", bias=True),
        )
    )
    state = {
        name.replace("experts.0.", ""): weight
        for name, weight in model.state_dict().items()
        if "router" not in name
    }
    plain.load_state_dict(state)
    tokens = random_tokens(2, 7)
    torch.testing.assert_close(model(tokens), plain(tokens))


def test_no_token_is_dropped_if_all_choose_the_same_experts() -> None:
    """Nine equal tokens get the logits of a single one."""
    with default_dtype(torch.float64), torch.no_grad():
        model = random_model(mixture_config())
        tokens = torch.full((9, 1), 3)
        auxiliary = Auxiliary()
        logits = model(tokens, auxiliary=auxiliary)
        usage = [x.tolist() for x in auxiliary.metrics.values()]
        assert len(usage) == 2 and all(sorted(x)[-2:] == [0.5, 0.5] for x in usage)
        assert_equal(logits, model(tokens[:1]).expand_as(logits))


def test_logits_do_not_depend_on_the_batch_size() -> None:
    """The large batch pads the tokens of an expert to a multiple of ROWS, single rows do not."""
    with default_dtype(torch.float64):
        model = random_model(mixture_config(n_expert=3))
        tokens, targets = random_tokens(40, 7), random_tokens(40, 7, seed=1).flatten()
        auxiliary = Auxiliary()
        logits = model(tokens, auxiliary=auxiliary)
        usage = [x.tolist() for x in auxiliary.metrics.values()]
        counts = [share * 40 * 7 * 2 for shares in usage for share in shares]
        assert max(counts) > ROWS and any(round(count) % ROWS for count in counts)
        row_by_row = torch.cat([model(row[None]) for row in tokens])
        assert_equal(logits, row_by_row)
        grads, expected_grads = (
            gradients(F.cross_entropy(x.flatten(0, 1), targets), model)
            for x in (logits, row_by_row)
        )
        assert_equal(grads, expected_grads)


@pytest.mark.parametrize("n_active", [1, 2, 8])
def test_decoding_equals_the_full_pass(n_active: int) -> None:
    assert_cached_equals_full(mixture_config(n_active=n_active), "eager")
    assert_positions_are_per_row(mixture_config(n_active=n_active), "eager")


@pytest.mark.parametrize(("n_active", "coefficient"), [(2, 0.01), (1, 0.5), (3, 0.0)])
def test_balance_loss_equals_the_reference(n_active: int, coefficient: float) -> None:
    """It is part of the minimised loss only; gradients flow through the router probabilities."""
    with default_dtype(torch.float64):
        model = random_model(mixture_config(n_active=n_active, balance=coefficient))
        tokens, targets = random_tokens(3, 5), random_tokens(3, 5, seed=1)
        loss, logged = model.training_loss(tokens, targets)
        cross_entropy = model.loss(tokens, targets)
        assert torch.equal(logged["train_loss"], cross_entropy)
        expected = balance_loss(reference_probabilities(model, tokens), n_active)
        assert 1 < expected < 8
        assert_equal(logged["balance_loss"], expected)
        assert_equal(loss - cross_entropy, coefficient * expected)
        grads = gradients(loss - cross_entropy, model)
        assert_equal(grads, gradients(coefficient * expected, model))
        assert bool(grads["blocks.1.ffn.router.weight"].any()) == (coefficient > 0)


def test_balance_loss_of_uniform_and_collapsed_routers() -> None:
    uniform, collapsed = torch.full((8,), 1 / 8), F.one_hot(torch.tensor(5), 8).float()
    assert layer_balance_loss(uniform, uniform) == 1
    assert layer_balance_loss(collapsed, collapsed) == 8


def test_usage_counts_assignments() -> None:
    with default_dtype(torch.float64):
        model, tokens = random_model(mixture_config(n_active=3)), random_tokens(3, 5)
        _, logged = model.training_loss(tokens, tokens)
        assert set(logged) == {
            *("train_loss", "balance_loss"),
            *("expert_usage/layer_0/expert", "expert_usage/layer_1/expert"),
        }
        assert not any(number.requires_grad for number in logged.values())
        for layer, probabilities in enumerate(reference_probabilities(model, tokens)):
            counts = [0] * 8
            for p in probabilities:
                for expert in chosen_experts(p, 3):
                    counts[expert] += 1
            usage = logged[f"expert_usage/layer_{layer}/expert"]
            assert_equal(usage, torch.tensor(counts) / 45)
            assert usage.sum().item() == pytest.approx(1, abs=1e-12)


def test_other_designs_minimise_only_the_cross_entropy() -> None:
    model, tokens = random_model(tiny_config()), random_tokens(3, 5)
    loss, logged = model.training_loss(tokens, tokens)
    assert logged.keys() == {"train_loss"}
    assert torch.equal(loss, model.loss(tokens, tokens)) and torch.equal(logged["train_loss"], loss)


def test_router_computes_in_fp32_under_autocast() -> None:
    model = random_model(mixture_config())
    layer = model.blocks[0].get_submodule("ffn")
    assert isinstance(layer, MixtureOfExperts)
    inputs: list[Tensor] = []
    results: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module) -> None:
        def hook(module: nn.Module, arguments: tuple[Tensor, ...], result: Tensor) -> None:
            inputs.append(arguments[0])
            results[name] = result

        module.register_forward_hook(hook)

    keep("logits", layer.router)
    keep("expert", layer.experts[0])
    with torch.autocast("cpu", torch.bfloat16):
        model(random_tokens(2, 9))
    assert torch.equal(results["logits"], F.linear(inputs[0], layer.router.weight))
    assert results["logits"].dtype == torch.float32
    assert results["expert"].dtype == torch.bfloat16


def test_gradients_are_deterministic() -> None:
    """Also with several threads, which may add in any order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(2, threads))
    try:
        config = replace(mixture_config(n_active=4), n_embd=48, block_size=256)
        model, tokens = random_model(config), random_tokens(8, 256)
        first = gradients(model.training_loss(tokens, tokens)[0], model)
        for _ in range(3):
            again = gradients(model.training_loss(tokens, tokens)[0], model)
            assert all(torch.equal(again[name], first[name]) for name in first)
    finally:
        torch.set_num_threads(threads)


def test_active_parameter_and_flop_counts() -> None:
    config = replace(mixture_config(n_expert=5, n_active=2, expansion=4.0), bias=False)
    d, hidden = 12, 48
    expert, router = 3 * d * hidden, 5 * d
    rest = 2 * (4 * d * d + 2 * d) + d  # attention and norms
    model = GPT(config, N_VOCAB)
    assert model.parameter_counts() == {
        "total": 2 * (5 * expert + router) + rest + 2 * N_VOCAB * d,
        "active": 2 * (2 * expert + router) + rest + 2 * N_VOCAB * d,
        "non_embedding": 2 * (5 * expert + router) + rest,
        "positional": 0,
    }
    matrices = 2 * (2 * expert + router + 4 * d * d) + N_VOCAB * d
    assert model.flops_per_token(1) == 6 * matrices + 12 * 2 * d * config.block_size


def test_weight_decay_applies_to_all_matrices() -> None:
    model = GPT(mixture_config(), N_VOCAB)
    layer = model.blocks[0].get_submodule("ffn")
    matrices = [m.weight for m in layer.modules() if isinstance(m, nn.Linear)]
    assert len(matrices) == 1 + 8 * 2
    assert set(matrices) <= set(model.decayed_parameters())
    biases = {p for p in layer.parameters() if p.ndim == 1}
    assert len(biases) == 8 * 2 and not biases & set(model.decayed_parameters())
