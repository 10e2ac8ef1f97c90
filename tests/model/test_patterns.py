"""Attention variants: against the reference, in decoding, and in chunks of queries."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from minigpt.inference.generate import Decoder
from minigpt.model import GPT, ModelConfig
from minigpt.model.attention import ATTENTION, Attention, base, landmark
from minigpt.model.attention.bigbird import BigBird
from minigpt.model.attention.performer import Performer, orthogonal
from minigpt.model.backends import eager
from minigpt.model.context import ForwardContext
from minigpt.model.kv_cache import SPARE
from tests.model.contract import (
    ATTENTION_IDS,
    ATTENTIONS,
    SCHEMES,
    TRAINABLE,
    VARIANTS,
    assert_cached_equals_full,
    assert_causal,
    assert_equal,
    assert_equals_reference,
    assert_order_follows_positions,
    assert_positions_are_per_row,
    assert_positions_default_to_arange,
    random_target_loss,
)
from tests.model.reference import ATTENTION_OPTIONS
from tests.model.reference import ATTENTIONS as ROWS
from tests.model.tiny import (
    N_VOCAB,
    composed_model,
    first_problem,
    gradients,
    random_model,
    random_tokens,
    tiny_config,
)

Options = Mapping[str, Any]
each_attention = pytest.mark.parametrize(("attention", "options"), ATTENTIONS, ids=ATTENTION_IDS)
SOFTMAX = [name for name in ATTENTION.names() if ATTENTION.variant(name).uses_backend]
# One scheme per interface: rotated vectors, each kind of score bias, added embeddings.
SCHEME_KINDS = ["rope", "alibi", "relative", "integrated", "cope", "sinusoidal"]


def design(attention: str, options: Options, scheme: str = "rope", **changes: Any) -> ModelConfig:
    """Return a tiny config whose block size is below the tests' lengths if the scheme permits."""
    small = {
        "n_head": 2,
        "n_embd": 8,
        "block_size": 36 if scheme in ("relative", "integrated") else 6,
    }
    return tiny_config(
        scheme, attention=attention, attention_options=options, **{**small, **changes}
    )


def backends_of(attention: str) -> list[str]:
    return TRAINABLE if attention in SOFTMAX else ["eager"]


@pytest.mark.parametrize("attention", ATTENTION.names())
def test_every_attention_has_a_reference(attention: str) -> None:
    assert attention in ROWS and attention in ATTENTION_OPTIONS, (
        f"attention={attention} is registered: give it a row in ATTENTIONS of reference.py, its "
        f"formula written again from its paper, and options in ATTENTION_OPTIONS"
    )


@pytest.mark.medium
@pytest.mark.parametrize("per_row", [False, True], ids=["arange", "positions"])
@pytest.mark.parametrize("scheme", SCHEME_KINDS)
@each_attention
def test_equals_the_reference(attention: str, options: Options, scheme: str, per_row: bool) -> None:
    config = design(attention, options, scheme)
    if first_problem(config) is not None:
        return
    for backend in backends_of(attention):
        assert_equals_reference(config, backend, 11, per_row)


@pytest.mark.medium
@pytest.mark.parametrize(("scheme", "scheme_options"), VARIANTS, ids=str)
@pytest.mark.parametrize("attention", ATTENTION.names())
def test_every_scheme_equals_the_reference(
    attention: str, scheme: str, scheme_options: Options
) -> None:
    config = design(attention, ATTENTION_OPTIONS[attention][0], scheme, block_size=36, n_embd=16)
    config = replace(config, positional=replace(config.positional, **scheme_options))
    if first_problem(config) is None:
        assert_equals_reference(config, "eager", 7, per_row=True)


@pytest.mark.medium
@each_attention
def test_grouped_queries_and_soft_caps(attention: str, options: Options) -> None:
    config = design(attention, options, n_head=4, n_embd=16, n_kv_head=2)
    assert_equals_reference(config, "eager", 9, per_row=True)
    assert_cached_equals_full(config, "eager")
    capped = replace(config, logit_softcap=0.5)
    if first_problem(capped) is None:
        assert_equals_reference(capped, "eager", 9, per_row=False)


@pytest.mark.medium
@pytest.mark.parametrize("attention", SOFTMAX)
def test_flex_equals_the_reference(attention: str) -> None:
    for options in ATTENTION_OPTIONS[attention]:
        assert_equals_reference(design(attention, options), "flex", 9, per_row=False)


@pytest.mark.parametrize("scheme", SCHEME_KINDS)
@each_attention
def test_cached_equals_full(attention: str, options: Options, scheme: str) -> None:
    config = design(attention, options, scheme)
    if first_problem(config) is None:
        for backend in backends_of(attention):
            assert_cached_equals_full(config, backend)


@each_attention
def test_attention_is_causal(attention: str, options: Options) -> None:
    for backend in backends_of(attention):
        config = design(
            attention, {**options, "layers": [attention]} if "layers" in options else options
        )
        assert_causal(replace(config, n_layer=3), backend)


@each_attention
def test_explicit_positions(attention: str, options: Options) -> None:
    config = design(attention, options, block_size=36)
    for backend in backends_of(attention):
        assert_positions_are_per_row(config, backend)
        assert_positions_default_to_arange(config, backend)
        if attention != "performer":  # its sums follow the order of the rows
            assert_order_follows_positions(config, backend)


# --- decoding


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("ffn", ["relu2", "conv"])
@each_attention
def test_texts_decode_in_one_batch(attention: str, options: Options, ffn: str) -> None:
    config = design(attention, options, n_layer=3, ffn=ffn)
    if first_problem(config) is not None:
        return
    model = random_model(config)
    texts = [random_tokens(1, n, seed=n)[0].tolist() for n in (1, 7, 4, 13)]
    new = random_tokens(4, 12).tolist()
    with torch.inference_mode():
        decoder = Decoder(model, texts, None)
        for step in range(12):
            for row, text in enumerate(texts):
                expected = model(torch.tensor([text + new[row][:step]]))[0, -1]
                assert_equal(decoder.next_logits[row], expected)
            decoder.append([tokens[step] for tokens in new])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("sizes", [[1] * 12, [5, 7], [7, 1, 4], [2, 3, 7], [12]], ids=str)
@pytest.mark.parametrize("ffn", ["relu2", "conv"])
@each_attention
def test_chunked_prefill_equals_the_full_pass(
    attention: str, options: Options, ffn: str, sizes: list[int]
) -> None:
    from tests.inference.test_decoding import through_cache

    config = design(attention, options, ffn=ffn)
    if first_problem(config) is not None:
        return
    model, tokens = random_model(config), random_tokens(2, 12)
    with torch.inference_mode():
        assert_equal(through_cache(model, tokens, sizes), model(tokens))
        assert_equal(through_cache(model, tokens, sizes, prefill=True), model(tokens))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("ffn", ["relu2", "conv"])
@each_attention
def test_extend_and_rewind(
    attention: str, options: Options, ffn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minigpt.model.kv_cache.SPARE", 3)  # some rewinds below exceed it
    config = design(attention, options, ffn=ffn)
    if first_problem(config) is not None:
        return
    model, text, n_rebuilt = random_model(config), [1, 2], 0
    with torch.inference_mode():
        decoder = Decoder(model, [text], None)
        for n_new, n_kept in ((4, 4), (2, 0), (3, 1), (7, 7), (3, 1), (6, 0), (3, 3), (1, 0)):
            new = random_tokens(1, n_new, seed=len(text)).tolist()
            full = model(torch.tensor([text + new[0]]))[:, len(text) :]
            assert_equal(decoder.extend(new), full)
            text = text + new[0][:n_kept]
            before = decoder.cache
            decoder.rewind(len(text))
            n_rebuilt += decoder.cache is not before
    has_state = attention == "performer" or ffn == "conv"
    has_window = attention in ("sliding_window", "chunked")
    assert n_rebuilt == (5 if has_state else 1 if has_window else 0)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("ffn", ["relu2", "conv"])
@each_attention
def test_select(attention: str, options: Options, ffn: str) -> None:
    config = design(attention, options, ffn=ffn)
    if first_problem(config) is not None:
        return
    model = random_model(config)
    texts = [random_tokens(1, n, seed=n)[0].tolist() for n in (1, 7, 4)]
    with torch.inference_mode():
        decoder = Decoder(model, texts, None)
        for rows in ([2, 0, 2, 1], [0, 3], [1, 1, 0], [2]):
            decoder.select(rows)
            texts = [texts[row] for row in rows]
            new = random_tokens(len(rows), 3, seed=len(rows)).tolist()
            logits = decoder.extend(new)
            texts = [text + more for text, more in zip(texts, new, strict=True)]
            for row, text in enumerate(texts):
                assert_equal(logits[row], model(torch.tensor([text]))[0, -3:])


@pytest.mark.parametrize("attention", ["sliding_window", "chunked", "performer"])
def test_cache_size_is_bounded(attention: str) -> None:
    options = {
        "sliding_window": {"window": 3},
        "chunked": {"chunk": 3},
        "performer": {"features": 5},
    }
    model = random_model(design(attention, options[attention]))
    sizes = []
    with torch.inference_mode():
        decoder = Decoder(model, [[1, 2, 3]], None)
        for step in range(200):
            if step in (60, 199):
                cache = decoder.cache
                tensors = [
                    x
                    for s in cache.buffers.values()
                    for x in (*s.keys.values(), *s.values.values())
                ]
                sizes.append(sum(x.numel() for x in (*tensors, *cache.states.values())))
            decoder.append([step % N_VOCAB])
    layers, heads, e = 2, 2, 4
    per_head = {"performer": 5 * (e + 1) + 1}.get(attention, 2 * (3 + SPARE + 1) * e)
    assert sizes == [layers * heads * per_head] * 2


def test_only_windowed_layers_have_a_windowed_cache() -> None:
    layers = ["sliding_window", "full", "sliding_window"]
    model = random_model(design("sliding_window", {"window": 3, "layers": layers}, n_layer=3))
    with torch.inference_mode():
        decoder = Decoder(model, [[1, 2, 3] * 9], None)
    full, windows = decoder.cache.buffers[None], decoder.cache.buffers[3]
    assert sorted(full.keys) == [1] and sorted(windows.keys) == [0, 2]
    assert full.capacity == decoder.cache.capacity and windows.capacity == 3 + SPARE


# --- chunks of queries


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("attention", ["sliding_window", "chunked"])
def test_chunks_of_queries_equal_one_pass(
    attention: str, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    option = {"sliding_window": "window", "chunked": "chunk"}[attention]
    tokens = random_tokens(2, 23)
    for span in (1, 3, 5):
        config = design(attention, {option: span}, scheme, block_size=23)
        for backend in TRAINABLE:
            model = random_model(replace(config, backend=replace(config.backend, name=backend)))
            logits = model(tokens)
            grads = gradients(random_target_loss(logits), model)
            with monkeypatch.context() as patch:
                patch.setattr(base, "MIN_BLOCK_QUERIES", 4)
                batch_sizes: list[int] = []
                backend_function = model.backend

                def count_and_attend(
                    q: Tensor, *rest: Any, attend: Any = backend_function
                ) -> Tensor:
                    batch_sizes.append(len(q))  # noqa: B023
                    return attend(q, *rest)

                model.backend = count_and_attend
                chunked = model(tokens)
            assert batch_sizes == [2 * -(-23 // max(span, 4))] * 2
            assert_equal(chunked, logits)
            assert_equal(gradients(random_target_loss(chunked), model), grads)


# --- patterns


def test_bigbird_draws_blocks_uniformly() -> None:
    drawn = []
    for seed in (0, 1):
        config = design("bigbird", {"block": 1, "n_window": 1, "n_global": 0, "seed": seed})
        attention = ATTENTION.build(config.attention, config.shape)
        assert isinstance(attention, BigBird)
        own, heads = torch.full((4000,), 20), torch.arange(4000)
        for draw in range(3):
            drawn.append(attention.random_block(own, heads, draw))
            counts = torch.bincount(drawn[-1], minlength=20)
            # 4000 draws of 20 blocks: 200 each, with a standard deviation of 14.
            assert len(counts) == 20 and (counts - 200).abs().max() < 60
    assert all(not torch.equal(one, other) for one, other in itertools.combinations(drawn, 2))


def test_default_spans_depend_on_block_size() -> None:
    for block_size, window, block in ((32, 8, 2), (128, 32, 8), (2, 1, 1)):
        options = [f"model.block_size={block_size}", "model.n_layer=1"]
        for name, key, expected in (
            ("sliding_window", "window", window),
            ("chunked", "chunk", window),
            ("bigbird", "block", block),
        ):
            model = GPT(composed_model(f"attention={name}", *options), N_VOCAB)
            assert getattr(model.attention, key) == expected


def test_default_landmark_block_divides_block_size() -> None:
    for block_size, block in ((7, 1), (60, 6), (100, 10), (128, 16)):
        model = GPT(composed_model("attention=landmark", f"model.block_size={block_size}"), N_VOCAB)
        assert model.attention.block == block


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("scheme", ["rope", "alibi", "t5"])
def test_gathered_landmark_blocks_equal_all_blocks(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model(design("landmark", {"block": 2, "retrieved": 1}, scheme))
    tokens = random_tokens(2, 41)
    results = []
    for gather_from, max_numbers in ((10**9, 2**24), (0, 2**24), (0, 300), (10**9, 300)):
        monkeypatch.setattr(landmark, "GATHER_FROM", gather_from)
        monkeypatch.setattr(landmark, "MAX_NUMBERS", max_numbers)
        logits = model(tokens)
        results.append((logits, gradients(random_target_loss(logits), model)))
    for result in results[1:]:
        assert_equal(result, results[0])


# --- performer


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("size", [1.0, 8.0, 100.0])
def test_performer_is_stable_with_long_keys(size: float) -> None:
    """Values of one average to one, and later tokens have no effect."""
    config = composed_model("attention=performer", "positional=nope", "model.n_layer=1")
    performer = ATTENTION.build(config.attention, config.shape)
    scheme, generator = GPT(config, N_VOCAB).positional, torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 4, 300, config.shape.head_size, generator=generator)
    k[:, :, 3:90] *= size
    positions = torch.arange(300)[None]

    def mixed(v: Tensor, length: int) -> Tensor:
        part, n_head = positions[:, :length], config.n_head
        ctx = ForwardContext(scheme, eager, n_head, None, part, length, length - 1, True)
        return performer(*(x[:, :, :length] for x in (q, k, v)), ctx, 0, 0.0)

    ones = mixed(torch.ones_like(v), 300)
    torch.testing.assert_close(ones, torch.ones_like(ones))
    for length in (2, 50, 140):
        assert_equal(mixed(v, length), mixed(v, 300)[:, :, :length])


@pytest.mark.parametrize("head_size", [1, 2, 3, 8, 16, 64])
@pytest.mark.parametrize("direction", [1.0, -1.0])
def test_performer_estimate_is_unbiased(head_size: int, direction: float) -> None:
    """The mean of phi(q)_m phi(k)_m over thousands of draws is exp(q . k / sqrt(e)).

    Aligned q and k along an axis: features whose direction is not uniform miss it by the most.
    """
    torch.manual_seed(0)
    n_draws = min(4096, 2**15 // head_size)  # groups of orthogonal features, in each layer
    sizes = ("model.n_layer=16", "model.n_head=1", f"model.n_embd={head_size}")
    options = f"model.attention.features={n_draws * head_size}"
    config = composed_model("attention=performer", "positional=nope", *sizes, options)
    performer = ATTENTION.build(config.attention, config.shape)
    assert isinstance(performer, Performer)
    for axis in {0, head_size // 2, head_size - 1}:
        q = torch.zeros(1, 1, 1, head_size)
        q[..., axis] = direction * 0.7 * head_size**0.25
        estimates = [(2 * performer.log_features(q, layer)).exp() for layer in range(16)]
        draws = torch.cat(estimates).view(-1, head_size).mean(1) / math.exp(0.7**2)
        error = draws.std().item() / math.sqrt(len(draws))
        assert error < 0.02, error
        assert abs(draws.mean().item() - 1) < 4 * error, (axis, draws.mean(), error)


def estimate_error(n_features: int, seed: int) -> float:
    """Return the RMS difference between the outputs of Performer and softmax attention."""
    small = ("model.n_embd=32", "model.n_head=2")
    config = composed_model("attention=performer", "positional=nope", *small)
    config = replace(config, attention=replace(config.attention, features=n_features), n_layer=1)
    torch.manual_seed(seed)
    performer, full = (
        ATTENTION.build(config.attention, config.shape),
        Attention(config.attention, config.shape),
    )
    scheme = GPT(config, N_VOCAB).positional
    q, k, v = torch.randn(3, 8, 2, 40, config.shape.head_size)
    q, k = q / 2, k / 2  # the estimate of long vectors has a large variance
    positions = torch.arange(40)[None]

    def mixed(attention: Attention) -> Tensor:
        ctx = ForwardContext(scheme, eager, config.n_head, None, positions, 40, 39, True)
        return attention(q, k, v, ctx, 0, 0.0)

    return (mixed(performer) - mixed(full)).square().mean().sqrt().item()


def test_performer_error_decreases_with_features() -> None:
    counts = [4, 16, 64, 256, 1024]
    errors = [sum(estimate_error(n, seed) for seed in range(5)) / 5 for n in counts]
    # The error of a mean of n samples is O(1 / sqrt(n)): four times as many halve it.
    for error, next_error in itertools.pairwise(errors):
        assert next_error < 0.75 * error, errors
    assert errors[-1] < 0.12, errors


def test_performer_features_are_orthogonal_and_normal() -> None:
    torch.manual_seed(0)
    vectors = orthogonal(7, 3)
    assert vectors.shape == (7, 3)
    for group in vectors.split(3):
        products = group @ group.T
        torch.testing.assert_close(products, products.diag().diag(), atol=1e-5, rtol=0)
    many = torch.cat([orthogonal(8, 8) for _ in range(2000)])
    torch.testing.assert_close(many.T @ many / len(many), torch.eye(8), atol=0.04, rtol=0)
    # chi-squared of 8 degrees: mean 8, variance 16
    squares = many.square().sum(1)
    assert abs(squares.mean().item() - 8) < 0.1 and abs(squares.var().item() - 16) < 0.8


def test_performer_features_are_saved_with_the_weights() -> None:
    config = design("performer", {"features": 5})
    torch.manual_seed(1)
    one = GPT(config, N_VOCAB)
    torch.manual_seed(2)
    other = GPT(config, N_VOCAB)
    tokens = random_tokens(1, 9)
    assert isinstance(one.attention, Performer) and isinstance(other.attention, Performer)
    assert not torch.equal(one.attention.features, other.attention.features)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(tokens), other(tokens))
    assert sum(p.numel() for p in one.attention.parameters()) == 0
