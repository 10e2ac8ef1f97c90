"""Attention under every positional scheme and backend, against a reference written in loops."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from minigpt.bench.measure import kept_bytes
from minigpt.errors import UserError
from minigpt.model import GPT, ModelConfig, backends
from minigpt.model.backends import BACKENDS, BackendConfig, blockwise, eager
from minigpt.model.bias import AttentionBias
from minigpt.model.compatibility import (
    LONG_CONTEXT,
    SHORT_BLOCK,
    USES,
    Use,
    backend_limit,
    choose_backend,
)
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
    assert_bias_depends_on_is_correct,
    assert_cached_equals_full,
    assert_causal,
    assert_dense_equals_score_mod,
    assert_equal,
    assert_equals_reference,
    assert_only_vectors_decay,
    assert_order_follows_positions,
    assert_positions_are_per_row,
    assert_positions_default_to_arange,
    assert_shift_dependent,
    assert_shift_invariant,
    depends_on_gaps,
    random_target_loss,
    variant_config,
)
from tests.model.reference import OPTIONS, POSITIONS, Positions, row_of
from tests.model.tiny import (
    N_VOCAB,
    composed_model,
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


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_has_a_reference(scheme: str) -> None:
    row_of(scheme)


def test_reference_tables_name_registered_schemes() -> None:
    assert {*OPTIONS} <= {*POSITIONS} <= {*SCHEMES}


@per_row_or_not
@pytest.mark.parametrize("length", [1, 7])
@pytest.mark.parametrize("backend", TRAINABLE)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_equals_the_reference(scheme: str, backend: str, length: int, per_row: bool) -> None:
    assert_equals_reference(tiny_config(scheme), backend, length, per_row)


@pytest.mark.parametrize("backend", TRAINABLE)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_odd_sizes_equal_the_reference(scheme: str, backend: str) -> None:
    odd = POSITIONS.get(scheme, Positions).odd_widths
    assert_equals_reference(tiny_config(scheme, n_embd=15 if odd else 6), backend, 7, per_row=True)


@pytest.mark.medium
@per_row_or_not
@pytest.mark.parametrize("backend", TRAINABLE)
@each_variant
def test_options_equal_the_reference(
    scheme: str, options: Options, backend: str, per_row: bool
) -> None:
    assert_equals_reference(variant_config(scheme, options), backend, 7, per_row)


@pytest.mark.parametrize("n_kv_head", [1, 2])
@pytest.mark.parametrize("backend", TRAINABLE)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_grouped_queries_equal_the_reference(scheme: str, backend: str, n_kv_head: int) -> None:
    config = tiny_config(scheme, n_head=4, n_embd=16, n_kv_head=n_kv_head)
    assert_equals_reference(config, backend, 7, per_row=True)


@pytest.mark.medium
@pytest.mark.parametrize("backend", ["eager", "blockwise", "flex"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_soft_caps_equal_the_reference(scheme: str, backend: str) -> None:
    config = tiny_config(scheme, n_head=4, n_embd=16, n_kv_head=2, logit_softcap=0.5)
    assert_equals_reference(config, backend, 7, per_row=True)


@pytest.mark.medium
@per_row_or_not
@pytest.mark.parametrize("scheme", SCHEMES)
def test_flex_equals_the_reference(scheme: str, per_row: bool) -> None:
    assert_equals_reference(tiny_config(scheme), "flex", 7, per_row)


def test_yarn_equals_the_reference_at_all_block_sizes() -> None:
    options = {"scaling": "yarn", "factor": 8.0}
    for block_size in (4, 64, 4096):  # all, some and none of the pairs are interpolated
        config = variant_config("rope", options, n_head=2, n_embd=32, block_size=block_size)
        assert_equals_reference(config, "eager", 3, per_row=True)


@pytest.mark.parametrize("n_layer", [2, 3, 4])
def test_unet_skips_equal_the_reference(n_layer: int) -> None:
    config = tiny_config("alibi", n_layer=n_layer, unet_skips=True)
    assert_equals_reference(config, "eager", 5, per_row=False)
    assert_cached_equals_full(config, "eager")


@pytest.mark.parametrize("backend", TRAINABLE)
@pytest.mark.parametrize("n_kv_head", [None, 1])
def test_value_residuals_equal_the_reference(backend: str, n_kv_head: int | None) -> None:
    config = tiny_config(
        *("rope", "relu2"), n_layer=3, n_kv_head=n_kv_head, n_embd=24, value_residual=True
    )
    assert_equals_reference(config, backend, 7, per_row=False)
    assert_cached_equals_full(config, backend)


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
        grads: dict[str, dict[str, Tensor]] = {}
        for name, backend in BACKENDS.items():
            model.backend = backend
            with torch.set_grad_enabled(name in TRAINABLE):
                logits[name] = model(tokens)
            if name in TRAINABLE:
                grads[name] = gradients(random_target_loss(logits[name]), model)
    for results in (logits, grads):
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
    torch.compiler.reset()  # the number of recompilations is limited
    model = random_model(config).to("cuda")
    tokens = random_tokens(2, 33).to("cuda")
    expected = model(tokens)
    expected_grads = gradients(random_target_loss(expected), model)
    model.backend = BACKENDS["flex"]
    with torch.no_grad():
        logits = model(tokens)
    torch.testing.assert_close(logits, expected.detach(), rtol=1e-4, atol=1e-4)
    reason = backend_limit(config, "flex", "cuda", "training")
    assert (reason is None) == (not model.positional.has_learned_bias(config.positional)), reason
    if reason is None:
        grads = gradients(random_target_loss(model(tokens)), model)
        torch.testing.assert_close(grads, expected_grads, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", TRAINABLE)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_dropout_applies_only_in_training(scheme: str, backend: str) -> None:
    tokens = random_tokens(2, 9)
    torch.manual_seed(0)
    model = random_model(tiny_config(scheme, backend=backend, dropout=0.5))
    without = random_model(tiny_config(scheme, backend=backend))
    assert torch.equal(model.eval()(tokens), without(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))
    assert torch.equal(without.train()(tokens), without(tokens))


@pytest.mark.parametrize("backend", TRAINABLE)
def test_attention_dropout_keeps_the_mean(backend: str) -> None:
    torch.manual_seed(0)
    config = tiny_config("nope", n_head=1)
    positions = torch.arange(4)[None]
    scores = AttentionBias(
        POSITIONAL.build(config.positional, config.shape), 1, positions, positions, True
    )
    q = k = torch.zeros(4000, 1, 4, 2)
    v = torch.eye(4)[None, None].expand(4000, -1, -1, -1)
    mixed = BACKENDS[backend](q, k, v, scores, 0, 0.5)
    # Uniform weights over i + 1 keys, each kept with probability 1/2 and doubled.
    for i in range(4):
        kept = mixed[:, 0, i, : i + 1] * (i + 1)
        assert set(kept.unique().round().tolist()) == {0.0, 2.0}
        torch.testing.assert_close(kept.mean(0), torch.ones(i + 1), rtol=0, atol=0.1)
        assert not mixed[:, 0, i, i + 1 :].any()


def one_layer_inputs(length: int, **changes: Any) -> tuple[list[Tensor], AttentionBias]:
    """Return random q, k, v (2, 3, length, 4) with gradients, and the bias of a design."""
    config = tiny_config("t5", block_size=length, **changes)
    positions = torch.arange(length)[None]
    scheme = random_model(config).positional
    bias = AttentionBias(scheme, 3, positions, positions, True, config.logit_softcap)
    qkv = torch.randn(3, 2, 3, length, 4, generator=torch.Generator().manual_seed(0))
    return [x.clone().requires_grad_() for x in qkv], bias


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("length", [1, 127, 128, 129, 300])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_blockwise_equals_eager_around_its_block(
    length: int, softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "BLOCK_QUERIES", 128)
    results: list[list[Tensor]] = []
    for backend in (eager, blockwise, blockwise):
        (q, k, v), bias = one_layer_inputs(length, logit_softcap=softcap)
        y = backend(q, k, v, bias, 0, 0.0)
        inputs = [q, k, v, *bias.positional.parameters()]
        results.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
    for expected, first, again in zip(*results, strict=True):
        assert_equal(first, expected)
        assert torch.equal(again, first)


def test_blockwise_repeats_its_dropout_in_the_backward_pass() -> None:
    (q, k, v), bias = one_layer_inputs(16)
    torch.manual_seed(0)
    y = blockwise(q, k, v, bias, 0, 0.5)
    (grad,) = torch.autograd.grad(y.sum(), v)
    # y is linear in v, so <grad, v> = sum(y) only if both passes drop the same weights.
    torch.testing.assert_close((grad * v).sum(), y.sum())
    torch.manual_seed(0)
    assert torch.equal(blockwise(q, k, v, bias, 0, 0.5), y)


def test_blockwise_keeps_no_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "BLOCK_QUERIES", 128)
    length, tokens = 512, random_tokens(1, 512)
    kept: dict[str, int] = {}
    for name in ("eager", "blockwise"):
        model = random_model(tiny_config("rope", block_size=length, backend=name))
        kept[name] = kept_bytes(model, tokens)
    scores_of_a_layer = 4 * 3 * length**2
    assert kept["blockwise"] < scores_of_a_layer < kept["eager"] / 2


Check = Callable[[ModelConfig, str], None]


def config_for_backend(scheme: str, backend: str) -> ModelConfig:
    """Return a tiny config, with one layer for flex, which is slow on CPUs."""
    return tiny_config(scheme, n_layer=1 if backend == "flex" else 2)


@pytest.mark.medium
@pytest.mark.parametrize("check", [assert_positions_are_per_row, assert_order_follows_positions])
@each_backend
@pytest.mark.parametrize("scheme", SCHEMES)
def test_explicit_positions(scheme: str, backend: str, check: Check) -> None:
    check(config_for_backend(scheme, backend), backend)


@pytest.mark.parametrize("check", [assert_positions_default_to_arange, assert_causal])
@pytest.mark.parametrize("backend", TRAINABLE)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_causal_path(scheme: str, backend: str, check: Check) -> None:
    check(tiny_config(scheme), backend)


@pytest.mark.parametrize("backend", TRAINABLE)
@each_variant
def test_cached_equals_full(scheme: str, options: Options, backend: str) -> None:
    assert_cached_equals_full(variant_config(scheme, options), backend)


@pytest.mark.parametrize("backend", TRAINABLE)
@pytest.mark.parametrize(
    ("scheme", "options"), [variant for variant in VARIANTS if variant[0] in RELATIVE], ids=str
)
def test_relative_schemes_ignore_absolute_positions(
    scheme: str, options: Options, backend: str
) -> None:
    assert_shift_invariant(variant_config(scheme, options), backend)


@pytest.mark.parametrize("backend", TRAINABLE)
@pytest.mark.parametrize("scheme", sorted({*SCHEMES} - {*RELATIVE}))
def test_absolute_schemes_use_absolute_positions(scheme: str, backend: str) -> None:
    assert_shift_dependent(tiny_config(scheme), backend)


@pytest.mark.parametrize("backend", TRAINABLE)
@each_variant
def test_dependence_on_gaps_between_positions(scheme: str, options: Options, backend: str) -> None:
    depends = depends_on_gaps(variant_config(scheme, options), backend)
    assert depends == POSITIONS.get(scheme, Positions).counts_gaps


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ffn", FFN.names())
@pytest.mark.parametrize("backend", TRAINABLE)
def test_every_block_is_causal(backend: str, ffn: str, kind: str, placement: str) -> None:
    config = tiny_config("learned", ffn, placement=placement, kind=kind)
    assert_causal(config, backend)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_lengths_beyond_block_size(scheme: str) -> None:
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


def max_length(scheme: str, **options: Any) -> int | None:
    """Return the largest length of a scheme with block size 8."""
    return random_model(variant_config(scheme, options, block_size=8)).positional.max_length


def test_schemes_with_tables_are_limited_to_block_size() -> None:
    for scheme in ("block_input", "integrated", "learned", "relative", "relative_bias"):
        assert max_length(scheme) == 8, scheme
    assert max_length("block_input", table="sinusoidal", base=10000.0) is None
    assert max_length("relative", max_distance=3) is None
    for scheme in ("alibi", "cope", "fire", "kerple", "nope", "rope", "sinusoidal", "t5", "xpos"):
        assert max_length(scheme) is None, scheme


@each_variant
def test_dense_bias_equals_score_mod(scheme: str, options: Options) -> None:
    assert_dense_equals_score_mod(variant_config(scheme, options))


@each_variant
def test_bias_depends_on_is_correct(scheme: str, options: Options) -> None:
    assert_bias_depends_on_is_correct(variant_config(scheme, options))


@each_variant
def test_only_vectors_decay(scheme: str, options: Options) -> None:
    assert_only_vectors_decay(variant_config(scheme, options))


@pytest.mark.parametrize(
    ("n_head", "exponents"),
    [
        (6, [2, 4, 6, 8, 1, 3]),
        (8, [1, 2, 3, 4, 5, 6, 7, 8]),
        (12, [1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5]),
    ],
)
def test_alibi_slopes_equal_the_paper(n_head: int, exponents: list[float]) -> None:
    assert alibi_slopes(n_head) == pytest.approx([2.0**-exponent for exponent in exponents])


def rotated(config: ModelConfig, x: Tensor, positions: list[int]) -> Tensor:
    """Return queries x rotated by positions."""
    scheme = POSITIONAL.build(config.positional, config.shape)
    return scheme.rotate(x, x, torch.tensor([positions]), 0)[0]


@pytest.mark.usefixtures("float64")
def test_rope_preserves_norms_and_depends_only_on_distances() -> None:
    config = tiny_config("rope", n_head=1, n_embd=8)
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0))
    vectors = torch.cat((q, k), dim=2)
    dots = []
    for shift in (0, 1, 500):
        rotated_both = rotated(config, vectors, [7 + shift, 4 + shift])
        assert_equal(rotated_both.norm(dim=-1), vectors.norm(dim=-1))
        dots.append((rotated_both[..., 0, :] * rotated_both[..., 1, :]).sum())
    assert_equal(dots[1], dots[0])
    assert_equal(dots[2], dots[0])
    rotated_closer = rotated(config, vectors, [7, 5])
    assert not torch.allclose(
        (rotated_closer[..., 0, :] * rotated_closer[..., 1, :]).sum(), dots[0]
    )


def test_rope_does_not_rotate_position_zero_and_keeps_the_dtype() -> None:
    config = tiny_config("rope", n_head=1, n_embd=8)
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        x = torch.randn(1, 1, 2, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
        rotated_x = rotated(config, x, [0, 3])
        assert rotated_x.dtype == dtype
        assert torch.equal(rotated_x[..., 0, :], x[..., 0, :])


@pytest.mark.usefixtures("float64")
def test_sinusoidal_values_equal_the_paper() -> None:
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
def test_bf16_logits_are_close_to_fp32(scheme: str, backend: str) -> None:
    model = random_model(
        replace(config_for_backend(scheme, backend), backend=BackendConfig(backend))
    )
    tokens = random_tokens(2, 16)
    with torch.inference_mode():
        exact = model(tokens)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(tokens)
    error = (rounded.float() - exact).square().mean().sqrt() / exact.std()
    assert error < 0.03


@pytest.mark.parametrize("use", USES)
def test_auto_chooses_the_backend(use: Use) -> None:
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


@pytest.mark.parametrize(
    ("scheme", "changes", "bf16", "fp32"),
    [
        ("rope", {}, "sdpa", "sdpa"),
        ("alibi", {}, "sdpa", "sdpa"),
        ("alibi", {"options": {"slopes": "learned"}}, "blockwise", "blockwise"),
        ("t5", {}, "blockwise", "blockwise"),
        ("rope", {"dropout": 0.1}, "blockwise", "blockwise"),
        ("rope", {"logit_softcap": 9.0}, "blockwise", "blockwise"),
        ("cope", {}, "eager", "sdpa"),
        ("rope", {"attention": "performer"}, "eager", "eager"),
        ("rope", {"attention": "bigbird"}, "sdpa", "sdpa"),
        ("rope", {"attention": "sliding_window"}, "eager", "sdpa"),  # its window is shorter
    ],
)
def test_auto_trains_long_contexts_without_dense_scores_on_a_cpu(
    scheme: str, changes: dict[str, Any], bf16: str, fp32: str
) -> None:
    config = tiny_config(scheme, backend="auto", block_size=LONG_CONTEXT, **changes)
    assert choose_backend(config, "cpu", True, "training")[0] == bf16
    assert choose_backend(config, "cpu", False, "training")[0] == fp32
    shorter = replace(config, block_size=LONG_CONTEXT - 1)
    assert choose_backend(shorter, "cpu", True, "training")[0] == "eager"
    for use in USES:
        assert choose_backend(config, "cuda", True, use)[0] in ("eager", "sdpa")
    assert choose_backend(config, "cpu", True, "inference")[0] in ("eager", "sdpa")


def test_model_uses_the_chosen_backend() -> None:
    model = GPT(tiny_config(backend="auto"), N_VOCAB)
    assert model.use_backend("cpu", bf16=True, use="training").startswith("eager (")
    assert model.backend is BACKENDS["eager"]
    with model.evaluating():
        assert model.backend is BACKENDS["sdpa"]  # the faster one without gradients
    assert model.backend is BACKENDS["eager"]
    explicit = GPT(tiny_config(backend="eager"), N_VOCAB)
    explicit.use_backend("cpu", bf16=True, use="training")
    with explicit.evaluating():
        assert explicit.backend is BACKENDS["eager"]
    with pytest.raises(UserError, match=r"^model\.backend\.name=spda: .*Did you mean sdpa\?"):
        BackendConfig("spda")
    for name, backend in BACKENDS.items():
        assert GPT(composed_model(f"backend={name}"), N_VOCAB).backend is backend


WIDE: dict[str, Any] = {"n_head": 2, "n_embd": 32}  # heads of 16 channels


@pytest.mark.parametrize(
    ("backend", "use", "device", "changes", "reason"),
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
def test_backends_reject_unsupported_designs(
    backend: str, use: Use, device: str, changes: dict[str, Any], reason: str
) -> None:
    config = tiny_config("rope", backend=backend, **changes)
    assert backend_limit(config, backend, device, use) == reason
    message = f"model.backend.name={backend}: does not support {use} of this design on {device}: "
    message += f"{reason}; "
    with pytest.raises(UserError, match="^" + re.escape(message) + "use eager.* or auto$"):
        choose_backend(config, device, False, use)
    assert (
        choose_backend(replace(config, backend=BackendConfig("auto")), device, False, use)[0]
        != backend
    )


@each_variant
def test_flex_rejects_training_of_learned_biases(scheme: str, options: Options) -> None:
    config = variant_config(scheme, options, backend="flex", **WIDE)
    model = random_model(config)
    positions, layers = torch.arange(9)[None], range(config.n_layer)
    q, k = torch.randn(2, 2, 2, 9, 16, requires_grad=True)
    bias = AttentionBias(model.positional, 2, positions, positions, True)
    is_learned = any(bias.dense(q, k, layer).requires_grad for layer in layers)
    assert model.positional.has_learned_bias(config.positional) == is_learned
    reason = backend_limit(config, "flex", "cuda", "training")
    assert (reason is not None) == is_learned
    if is_learned:
        assert reason == "FlexAttention sums the gradients of a learned bias in no fixed order"
        message = "^model.backend.name=flex: does not support training of this design on cuda: "
        message += f"{reason}; use eager, blockwise, sdpa or auto$"
        with pytest.raises(UserError, match=message):
            choose_backend(config, "cuda", True, "training")
    assert choose_backend(config, "cuda", True, "inference") == ("flex", "as configured")
