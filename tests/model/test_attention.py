"""Attention under every positional scheme and backend, against a reference written in loops."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from minigpt.errors import UserError
from minigpt.model import GPT, ModelConfig
from minigpt.model.backends import BACKENDS, BackendConfig
from minigpt.model.bias import AttentionBias
from minigpt.model.compatibility import SHORT_BLOCK, USES, Use, backend_limit, choose_backend
from minigpt.model.ffn import FFN
from minigpt.model.norm import KINDS, PLACEMENTS
from minigpt.model.positional import POSITIONAL
from minigpt.model.positional.alibi import alibi_slopes
from tests.model.contract import (
    RELATIVE,
    SCHEMES,
    TRAINABLE,
    VARIANT_IDS,
    VARIANTS,
    assert_equal,
    bare_scores_do_not_decay,
    cached_equals_full,
    dense_is_the_formula,
    each_row_has_its_positions,
    equals_reference,
    later_tokens_change_nothing,
    loss_of,
    no_positions_mean_arange,
    order_is_that_of_positions,
    score_is_truthful,
    sees_gaps,
    shift_changes_nothing,
    shift_changes_something,
    variant_config,
)
from tests.model.reference import OPTIONS, POSITIONS, Positions, row_of
from tests.model.tiny import (
    N_VOCAB,
    composed,
    default_dtype,
    gradients,
    random_model,
    random_tokens,
    tiny_config,
)

Options = Mapping[str, Any]
each_variant = pytest.mark.parametrize(("scheme", "options"), VARIANTS, ids=VARIANT_IDS)
each_backend = pytest.mark.parametrize("backend", BACKENDS)
per_row_or_not = pytest.mark.parametrize("per_row", [False, True], ids=["arange", "positions"])


@pytest.fixture
def float64() -> Iterator[None]:
    with default_dtype(torch.float64):
        yield


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_registered_scheme_has_a_reference(scheme: str) -> None:
    row_of(scheme)


def test_other_options_are_those_of_registered_schemes() -> None:
    assert {*OPTIONS} <= {*POSITIONS} <= {*SCHEMES}


@per_row_or_not
@pytest.mark.parametrize("length", [1, 7])
@pytest.mark.parametrize("backend", TRAINABLE)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_equals_the_reference(scheme: str, backend: str, length: int, per_row: bool) -> None:
    equals_reference(tiny_config(scheme), backend, length, per_row)


@pytest.mark.parametrize("backend", TRAINABLE)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_odd_head_sizes_equal_the_reference(scheme: str, backend: str) -> None:
    odd = POSITIONS.get(scheme, Positions).odd_widths
    equals_reference(tiny_config(scheme, n_embd=15 if odd else 6), backend, 7, per_row=True)


@pytest.mark.medium
@per_row_or_not
@pytest.mark.parametrize("backend", TRAINABLE)
@each_variant
def test_options_equal_the_reference(
    scheme: str, options: Options, backend: str, per_row: bool
) -> None:
    equals_reference(variant_config(scheme, options), backend, 7, per_row)


@pytest.mark.parametrize("n_kv_head", [1, 2])
@pytest.mark.parametrize("backend", TRAINABLE)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_grouped_queries_equal_the_reference(scheme: str, backend: str, n_kv_head: int) -> None:
    config = tiny_config(scheme, n_head=4, n_embd=16, n_kv_head=n_kv_head)
    equals_reference(config, backend, 7, per_row=True)


@pytest.mark.medium
@pytest.mark.parametrize("backend", ["eager", "flex"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_soft_caps_equal_the_reference(scheme: str, backend: str) -> None:
    config = tiny_config(scheme, n_head=4, n_embd=16, n_kv_head=2, logit_softcap=0.5)
    equals_reference(config, backend, 7, per_row=True)


@pytest.mark.medium
@per_row_or_not
@pytest.mark.parametrize("scheme", SCHEMES)
def test_flex_equals_the_reference(scheme: str, per_row: bool) -> None:
    equals_reference(tiny_config(scheme), "flex", 7, per_row)


def test_yarn_ramps_within_long_blocks() -> None:
    options = {"scaling": "yarn", "factor": 8.0}
    for block_size in (4, 64, 4096):  # all, some and no slow pairs
        config = variant_config("rope", options, n_head=2, n_embd=32, block_size=block_size)
        equals_reference(config, "eager", 3, per_row=True)


@pytest.mark.parametrize("n_layer", [2, 3, 4])
def test_unet_skips_equal_the_reference(n_layer: int) -> None:
    config = tiny_config("alibi", n_layer=n_layer, unet_skips=True)
    equals_reference(config, "eager", 5, per_row=False)
    cached_equals_full(config, "eager")


@pytest.mark.parametrize("backend", TRAINABLE)
@pytest.mark.parametrize("n_kv_head", [None, 1])
def test_value_residuals_equal_the_reference(backend: str, n_kv_head: int | None) -> None:
    config = tiny_config(
        *("rope", "relu2"), n_layer=3, n_kv_head=n_kv_head, n_embd=24, value_residual=True
    )
    equals_reference(config, backend, 7, per_row=False)
    cached_equals_full(config, backend)


@pytest.mark.medium
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-12)], ids=str
)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_backends_agree(scheme: str, dtype: torch.dtype, tolerance: float) -> None:
    with default_dtype(dtype):
        model = random_model(tiny_config(scheme, block_size=64))
        tokens = random_tokens(2, 33)
        logits: dict[str, Tensor] = {}
        found: dict[str, dict[str, Tensor]] = {}
        for name, backend in BACKENDS.items():
            model.backend = backend
            with torch.set_grad_enabled(name in TRAINABLE):
                logits[name] = model(tokens)
            if name in TRAINABLE:
                found[name] = gradients(loss_of(logits[name]), model)
    for results in (logits, found):
        for result in results.values():
            expected = results["eager"]
            torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("softcap", [None, 2.0])
@each_variant
def test_flex_on_a_gpu(scheme: str, options: Options, softcap: float | None) -> None:
    config = variant_config(
        *(scheme, options), n_head=4, n_kv_head=2, n_embd=64, block_size=64, logit_softcap=softcap
    )
    torch.compiler.reset()  # it compiles a function so many times and no more
    model = random_model(config).to("cuda")
    tokens = random_tokens(2, 33).to("cuda")
    expected = model(tokens)
    wanted = gradients(loss_of(expected), model)
    model.backend = BACKENDS["flex"]
    with torch.no_grad():
        logits = model(tokens)
    torch.testing.assert_close(logits, expected.detach(), rtol=1e-4, atol=1e-4)
    why = backend_limit(config, "flex", "cuda", "training")
    assert (why is None) == (not model.positional.has_learned_bias(config.positional)), why
    if why is None:
        found = gradients(loss_of(model(tokens)), model)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", TRAINABLE)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_dropout_works_in_training_only(scheme: str, backend: str) -> None:
    tokens = random_tokens(2, 9)
    torch.manual_seed(0)
    model = random_model(tiny_config(scheme, backend=backend, dropout=0.5))
    without = random_model(tiny_config(scheme, backend=backend))
    assert torch.equal(model.eval()(tokens), without(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))
    assert torch.equal(without.train()(tokens), without(tokens))


@pytest.mark.parametrize("backend", TRAINABLE)
def test_attention_weights_drop_out_without_bias(backend: str) -> None:
    torch.manual_seed(0)
    config = tiny_config("nope", n_head=1)
    positions = torch.arange(4)[None]
    scores = AttentionBias(
        POSITIONAL.build(config.positional, config.shape), 1, positions, positions, True
    )
    q = k = torch.zeros(4000, 1, 4, 2)
    v = torch.eye(4)[None, None].expand(4000, -1, -1, -1)
    mixed = BACKENDS[backend](q, k, v, scores, 0, 0.5)
    # Equal weights over i + 1 keys, each kept half of the time and then doubled.
    for i in range(4):
        kept = mixed[:, 0, i, : i + 1] * (i + 1)
        assert set(kept.unique().round().tolist()) == {0.0, 2.0}
        torch.testing.assert_close(kept.mean(0), torch.ones(i + 1), rtol=0, atol=0.1)
        assert not mixed[:, 0, i, i + 1 :].any()


Check = Callable[[ModelConfig, str], None]


def of_few_layers(scheme: str, backend: str) -> ModelConfig:
    """A tiny design; of one layer where layers are slow. With two flex equals the reference."""
    return tiny_config(scheme, n_layer=1 if backend == "flex" else 2)


@pytest.mark.medium
@pytest.mark.parametrize("check", [each_row_has_its_positions, order_is_that_of_positions])
@each_backend
@pytest.mark.parametrize("scheme", SCHEMES)
def test_positions_are_data(scheme: str, backend: str, check: Check) -> None:
    check(of_few_layers(scheme, backend), backend)


@pytest.mark.parametrize("check", [no_positions_mean_arange, later_tokens_change_nothing])
@pytest.mark.parametrize("backend", TRAINABLE)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_causal_path(scheme: str, backend: str, check: Check) -> None:
    check(tiny_config(scheme), backend)


@pytest.mark.parametrize("backend", TRAINABLE)
@each_variant
def test_cached_equals_full(scheme: str, options: Options, backend: str) -> None:
    cached_equals_full(variant_config(scheme, options), backend)


@pytest.mark.parametrize("backend", TRAINABLE)
@pytest.mark.parametrize(
    ("scheme", "options"), [variant for variant in VARIANTS if variant[0] in RELATIVE], ids=str
)
def test_relative_schemes_see_no_absolute_position(
    scheme: str, options: Options, backend: str
) -> None:
    shift_changes_nothing(variant_config(scheme, options), backend)


@pytest.mark.parametrize("backend", TRAINABLE)
@pytest.mark.parametrize("scheme", sorted({*SCHEMES} - {*RELATIVE}))
def test_the_others_see_absolute_positions(scheme: str, backend: str) -> None:
    shift_changes_something(tiny_config(scheme), backend)


@pytest.mark.parametrize("backend", TRAINABLE)
@each_variant
def test_who_sees_gaps_between_positions(scheme: str, options: Options, backend: str) -> None:
    seen = sees_gaps(variant_config(scheme, options), backend)
    assert seen == POSITIONS.get(scheme, Positions).counts_gaps


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ffn", FFN.names())
@pytest.mark.parametrize("backend", TRAINABLE)
def test_no_layer_shows_later_tokens(backend: str, ffn: str, kind: str, placement: str) -> None:
    config = tiny_config("learned", ffn, placement=placement, kind=kind)
    later_tokens_change_nothing(config, backend)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_lengths_beyond_the_block(scheme: str) -> None:
    model = random_model(tiny_config(scheme, block_size=8))
    limit = model.positional.max_length
    if limit is None:
        logits = model(random_tokens(1, 40))
        assert logits.shape == (1, 40, N_VOCAB)
        assert logits.isfinite().all()
        return
    assert model(random_tokens(1, limit)).isfinite().all()
    with pytest.raises(UserError, match=rf"^model\.positional\.name={scheme}: .*position {limit} "):
        model(random_tokens(1, limit + 1))
    with pytest.raises(UserError, match=f"position {limit + 3} "):
        model(random_tokens(1, 2), torch.tensor([[0, limit + 3]]))


def limit(scheme: str, **options: Any) -> int | None:
    return random_model(variant_config(scheme, options, block_size=8)).positional.max_length


def test_tables_of_positions_end_at_block_size() -> None:
    for scheme in ("block_input", "integrated", "learned", "relative", "relative_bias"):
        assert limit(scheme) == 8, scheme
    assert limit("block_input", table="sinusoidal", base=10000.0) is None
    assert limit("relative", max_distance=3) is None
    for scheme in ("alibi", "cope", "fire", "kerple", "nope", "rope", "sinusoidal", "t5", "xpos"):
        assert limit(scheme) is None, scheme


@each_variant
def test_dense_is_the_formula(scheme: str, options: Options) -> None:
    dense_is_the_formula(variant_config(scheme, options))


@each_variant
def test_score_is_truthful(scheme: str, options: Options) -> None:
    score_is_truthful(variant_config(scheme, options))


@each_variant
def test_bare_scores_do_not_decay(scheme: str, options: Options) -> None:
    bare_scores_do_not_decay(variant_config(scheme, options))


@pytest.mark.parametrize(
    ("n_head", "exponents"),
    [
        (6, [2, 4, 6, 8, 1, 3]),
        (8, [1, 2, 3, 4, 5, 6, 7, 8]),
        (12, [1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5]),
    ],
)
def test_alibi_slopes_are_the_papers(n_head: int, exponents: list[float]) -> None:
    assert alibi_slopes(n_head) == pytest.approx([2.0**-exponent for exponent in exponents])


def rotated(config: ModelConfig, x: Tensor, positions: list[int]) -> Tensor:
    scheme = POSITIONAL.build(config.positional, config.shape)
    return scheme.rotate(x, x, torch.tensor([positions]), 0)[0]


@pytest.mark.usefixtures("float64")
def test_rope_keeps_lengths_and_sees_distances_only() -> None:
    config = tiny_config("rope", n_head=1, n_embd=8)
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0))
    both = torch.cat((q, k), dim=2)
    dots = []
    for shift in (0, 1, 500):
        turned = rotated(config, both, [7 + shift, 4 + shift])
        assert_equal(turned.norm(dim=-1), both.norm(dim=-1))
        dots.append((turned[..., 0, :] * turned[..., 1, :]).sum())
    assert_equal(dots[1], dots[0])
    assert_equal(dots[2], dots[0])
    closer = rotated(config, both, [7, 5])
    assert not torch.allclose((closer[..., 0, :] * closer[..., 1, :]).sum(), dots[0])


def test_rope_leaves_position_zero_and_keeps_the_dtype() -> None:
    config = tiny_config("rope", n_head=1, n_embd=8)
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        x = torch.randn(1, 1, 2, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
        turned = rotated(config, x, [0, 3])
        assert turned.dtype == dtype
        assert torch.equal(turned[..., 0, :], x[..., 0, :])


@pytest.mark.usefixtures("float64")
def test_sinusoidal_values_are_the_papers() -> None:
    config = tiny_config("sinusoidal", n_head=1, n_embd=4)
    scheme = POSITIONAL.build(config.positional, config.shape)
    table = scheme.embed(torch.zeros(1, 2, 4), torch.tensor([[0, 50]]))
    # Four channels: wavelengths 2 pi and 2 pi * 100.
    expected = [[0.0, 1.0, 0.0, 1.0], [math.sin(50), math.cos(50), math.sin(0.5), math.cos(0.5)]]
    assert_equal(table[0], torch.tensor(expected))
    ones = scheme.embed(torch.ones(1, 2, 4), torch.tensor([[0, 50]]))
    assert_equal(ones - table, torch.full((1, 2, 4), 2.0))  # sqrt(d)


@pytest.mark.medium
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_bf16_stays_close_to_fp32(scheme: str, backend: str) -> None:
    model = random_model(replace(of_few_layers(scheme, backend), backend=BackendConfig(backend)))
    tokens = random_tokens(2, 16)
    with torch.inference_mode():
        exact = model(tokens)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(tokens)
    error = (rounded.float() - exact).square().mean().sqrt() / exact.std()
    assert error < 0.03


@pytest.mark.parametrize("use", USES)
def test_choice_of_backend(use: Use) -> None:
    auto = tiny_config(backend="auto")
    assert choose_backend(auto, "cuda", True, use)[0] == "sdpa"
    assert choose_backend(auto, "mps", False, use)[0] == "sdpa"
    short, long = replace(auto, block_size=SHORT_BLOCK), replace(auto, block_size=SHORT_BLOCK + 1)
    assert choose_backend(long, "cpu", False, use)[0] == "sdpa"
    assert choose_backend(short, "cuda", False, use)[0] == "sdpa"
    for config, bf16 in ((short, False), (short, True), (long, True)):
        expected = "eager" if use == "training" else "sdpa"
        assert choose_backend(config, "cpu", bf16, use)[0] == expected
    capped = tiny_config(backend="auto", logit_softcap=1.0)
    assert choose_backend(capped, "cuda", True, use) == ("eager", "sdpa: it has no logit soft-cap")
    for name in TRAINABLE:
        config = tiny_config(backend=name)
        assert choose_backend(config, "cpu", True, use) == (name, "as configured")


def test_choice_reaches_the_model() -> None:
    model = GPT(tiny_config(backend="auto"), N_VOCAB)
    assert model.use_backend("cpu", bf16=True, use="training").startswith("eager (")
    assert model.backend is BACKENDS["eager"]
    with model.evaluating():
        assert model.backend is BACKENDS["sdpa"]  # without gradients it is the faster
    assert model.backend is BACKENDS["eager"]
    explicit = GPT(tiny_config(backend="eager"), N_VOCAB)
    explicit.use_backend("cpu", bf16=True, use="training")
    with explicit.evaluating():
        assert explicit.backend is BACKENDS["eager"]
    with pytest.raises(UserError, match=r"^model\.backend\.name=spda: .*Did you mean sdpa\?"):
        BackendConfig("spda")
    for name, backend in BACKENDS.items():
        assert GPT(composed(f"backend={name}"), N_VOCAB).backend is backend


WIDE: dict[str, Any] = {"n_head": 2, "n_embd": 32}  # heads of 16 channels


@pytest.mark.parametrize(
    ("backend", "use", "device", "changes", "why"),
    [
        ("sdpa", "training", "cpu", {"logit_softcap": 9.0}, "it has no logit soft-cap"),
        ("sdpa", "inference", "cuda", {"logit_softcap": 9.0}, "it has no logit soft-cap"),
        ("flex", "training", "mps", WIDE, "FlexAttention has no kernels for mps"),
        ("flex", "inference", "mps", WIDE, "FlexAttention has no kernels for mps"),
        ("flex", "training", "cpu", WIDE, "FlexAttention has no backward on CPUs"),
        ("flex", "training", "cuda", {}, "its GPU kernels need heads of 16 channels or more"),
        ("flex", "inference", "cuda", {}, "its GPU kernels need heads of 16 channels or more"),
        ("flex", "training", "cuda", {**WIDE, "dropout": 0.1}, "FlexAttention has no dropout"),
    ],
)
def test_refusals(backend: str, use: Use, device: str, changes: dict[str, Any], why: str) -> None:
    config = tiny_config("rope", backend=backend, **changes)
    assert backend_limit(config, backend, device, use) == why
    asked = (
        f"model.backend.name={backend}: does not support {use} of this design on {device}: {why}; "
    )
    with pytest.raises(UserError, match="^" + re.escape(asked) + "use eager.* or auto$"):
        choose_backend(config, device, False, use)
    assert (
        choose_backend(replace(config, backend=BackendConfig("auto")), device, False, use)[0]
        != backend
    )


@each_variant
def test_flex_refuses_to_train_learned_terms(scheme: str, options: Options) -> None:
    config = variant_config(scheme, options, backend="flex", **WIDE)
    model = random_model(config)
    positions, layers = torch.arange(9)[None], range(config.n_layer)
    q, k = torch.randn(2, 2, 2, 9, 16, requires_grad=True)
    bias = AttentionBias(model.positional, 2, positions, positions, True)
    learns = any(bias.dense(q, k, layer).requires_grad for layer in layers)
    assert model.positional.has_learned_bias(config.positional) == learns
    why = backend_limit(config, "flex", "cuda", "training")
    assert (why is not None) == learns
    if learns:
        assert why == "FlexAttention sums the gradients of a learned bias in no fixed order"
        asked = (
            f"^model.backend.name=flex: does not support training of this design on cuda: {why}; "
        )
        with pytest.raises(UserError, match=asked + "use eager, sdpa or auto$"):
            choose_backend(config, "cuda", True, "training")
    assert choose_backend(config, "cuda", True, "inference") == ("flex", "as configured")
