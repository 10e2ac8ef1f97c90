"""Decoding with a KV cache, compared with full passes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minigpt.errors import UserError
from minigpt.inference.generate import (
    CACHE_MARGIN,
    CONTEXT_STEPS,
    Decoder,
    Sampling,
    context_start,
    generate,
)
from minigpt.model import GPT
from minigpt.model.backends import BACKENDS
from minigpt.model.kv_cache import KVCache
from minigpt.model.positional import POSITIONAL
from tests.model.contract import ATTENTION_IDS, ATTENTIONS, assert_equal
from tests.model.tiny import default_dtype, first_problem, random_model, random_tokens, tiny_config

SCHEMES = POSITIONAL.names()
BLOCK = 8
GROUPED: dict[str, Any] = {"n_head": 4, "n_embd": 16}
DESIGNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two of four": {**GROUPED, "n_kv_head": 2},
    "multi-query": {**GROUPED, "n_kv_head": 1},
    "softcap": {"logit_softcap": 0.5},
}
BACKEND_DESIGNS = [
    (backend, design)
    for backend in BACKENDS
    for design in DESIGNS
    if (backend, design) != ("sdpa", "softcap")  # not supported
    and (backend != "flex" or design == "two of four")  # slow on CPUs
]


def random_texts(*lengths: int) -> list[list[int]]:
    """Return a random text of each length."""
    return [random_tokens(1, length, seed=length)[0].tolist() for length in lengths]


def build_model(scheme: str, backend: str, design: str) -> GPT:
    """Return a tiny random model, with one layer for flex, which is slow on CPUs."""
    changes = {**DESIGNS[design], "n_layer": 1 if backend == "flex" else 2}
    return random_model(tiny_config(scheme, backend=backend, **changes))


def through_cache(
    model: GPT, tokens: Tensor, sizes: list[int], prefill: bool = False, per_row: bool = False
) -> Tensor:
    """Return the logits of tokens (b, t) computed in chunks of `sizes`.

    `prefill`: the first chunk has no explicit positions. `per_row`: each row has its positions.
    """
    batch, length = tokens.shape
    cache = KVCache(batch, length, tokens.device)
    arange = torch.arange(length).expand(batch if per_row else 1, -1)
    logits: list[Tensor] = []
    for part, positions in zip(tokens.split(sizes, 1), arange.split(sizes, 1), strict=True):
        in_order = prefill and not logits
        logits.append(model(part, None if in_order else positions, cache))
    return torch.cat(logits, dim=1)


def next_logits(model: GPT, text: list[int], first: int, context: int | None) -> Tensor:
    """Return the logits (t, n) after each token from `first` on, by full passes."""
    if context is None:
        return model(torch.tensor([text]))[0, first:]
    ends = [text[context_start(end, context) : end] for end in range(first + 1, len(text) + 1)]
    return torch.cat([model(torch.tensor([end]))[:, -1] for end in ends])


def assert_decodes(
    model: GPT, prompts: list[list[int]], n: int, context: int | None, visible: int | None
) -> list[int]:
    """Assert that n steps of a Decoder equal full passes over a context of `visible` tokens.

    Return the number of positions of each pass of the Decoder.
    """
    new = random_tokens(len(prompts), n).tolist()
    texts = [
        (prompt + tokens, len(prompt) - 1) for prompt, tokens in zip(prompts, new, strict=True)
    ]
    expected = torch.stack([next_logits(model, text, first, visible) for text, first in texts], 1)
    widths: list[int] = []
    hook = model.token_embedding.register_forward_hook(
        lambda _module, inputs, _output: widths.append(inputs[0].shape[1])
    )
    decoder = Decoder(model, prompts, context)
    assert_equal(decoder.next_logits, expected[0])
    for step in range(n):
        decoder.append([tokens[step] for tokens in new])
        assert_equal(decoder.next_logits, expected[step + 1])
    hook.remove()
    return widths


# --- the KV cache


@pytest.mark.usefixtures("float64_inference")
@pytest.mark.parametrize(("backend", "design"), BACKEND_DESIGNS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_cached_equals_full(scheme: str, backend: str, design: str) -> None:
    model = build_model(scheme, backend, design)
    tokens = random_tokens(2, 7)
    full = model(tokens)
    assert_equal(through_cache(model, tokens, [4, 2, 1], prefill=True), full)
    if backend != "flex":
        for sizes in ([1] * 7, [1, 3, 2, 1], [5, 1, 1], [7]):
            assert_equal(through_cache(model, tokens, sizes), full)


@settings(max_examples=100)
@given(
    scheme=st.sampled_from(SCHEMES),
    kv_heads=st.sampled_from([1, 2, 4]),
    batch=st.integers(1, 3),
    length=st.integers(1, 12),
    cuts=st.sets(st.integers(1, 11)),
    prefill=st.booleans(),
    per_row=st.booleans(),
    seed=st.integers(0, 99),
)
def test_random_chunks_equal_the_full_pass(
    scheme: str,
    kv_heads: int,
    batch: int,
    length: int,
    cuts: set[int],
    prefill: bool,
    per_row: bool,
    seed: int,
) -> None:
    ends = [*sorted(cut for cut in cuts if cut < length), length]
    sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    tokens = random_tokens(batch, length, seed=seed)
    with default_dtype(torch.float64), torch.inference_mode():
        model = random_model(tiny_config(scheme, **GROUPED, n_kv_head=kv_heads))
        assert_equal(through_cache(model, tokens, sizes, prefill, per_row), model(tokens))


@pytest.mark.parametrize("n_kv_head", [None, 3, 1])
def test_cache_stores_the_keys_and_values_of_kv_heads(n_kv_head: int | None) -> None:
    config = tiny_config("rope", n_kv_head=n_kv_head)
    model, cache = random_model(config), KVCache(2, 9, torch.device("cpu"))
    with torch.inference_mode():
        model(random_tokens(2, 4), cache=cache)
        model(random_tokens(2, 1), torch.tensor([[4], [2]]), cache)
    slots = cache.buffers[None]
    tensors = [
        tensor[:, :, : slots.capacity] for tensor in (*slots.keys.values(), *slots.values.values())
    ]
    assert len(tensors) == 2 * config.n_layer
    assert {tensor.shape for tensor in tensors} == {(2, n_kv_head or 3, 9, 4)}
    assert sum(tensor.numel() for tensor in tensors) == 2 * 2 * 2 * 9 * (n_kv_head or 3) * 4
    for tensor in tensors:
        assert tensor[0, :, :5].any(-1).all() and not tensor[0, :, 5:].any()
        assert tensor[1, :, :4].any(-1).all() and not tensor[1, :, 4:].any()


def test_a_full_cache_raises() -> None:
    model = random_model(tiny_config("rope"))
    cache = KVCache(1, 4, torch.device("cpu"))
    with torch.inference_mode():
        model(random_tokens(1, 4), cache=cache)
        with pytest.raises(AssertionError, match="position 4 in a cache of 4 slots"):
            model(random_tokens(1, 1), torch.tensor([[4]]), cache)
        cache = KVCache(1, 4, torch.device("cpu"))
        with pytest.raises(AssertionError, match="position 4 in a cache of 4 slots"):
            model(random_tokens(1, 5), cache=cache)


@pytest.mark.usefixtures("float64_inference")
@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_select_and_rewind_a_cache(scheme: str, design: str) -> None:
    model = build_model(scheme, "eager", design)
    tokens, rows = random_tokens(3, 8), torch.tensor([2, 0, 2])
    cache = KVCache(3, 8, tokens.device)
    model(tokens[:, :6], cache=cache)
    other = random_tokens(3, 1, seed=1)
    model(other, torch.tensor([[6], [3], [7]]), cache)  # at different lengths
    cache.select(rows)
    assert cache.rewind(3)
    rest = model(tokens[rows][:, 3:], torch.arange(3, 8)[None], cache)
    assert_equal(rest, model(tokens[rows])[:, 3:])


@pytest.mark.usefixtures("float64_inference")
def test_rewind_restores_the_cache_of_a_shorter_text() -> None:
    model, tokens = random_model(tiny_config("rope")), random_tokens(1, 6)
    rewound, other = (KVCache(1, 9, tokens.device) for _ in range(2))
    model(tokens, cache=rewound)
    model(tokens[:, :4], cache=other)
    for length in (4, 9):  # 9 is beyond the cached text
        assert rewound.rewind(length)
        slots, others = rewound.buffers[None], other.buffers[None]
        assert slots.end == others.end == 4
        assert torch.equal(slots.positions, others.positions)


# --- batches of texts


@pytest.mark.medium
@pytest.mark.usefixtures("float64_inference")
@pytest.mark.parametrize(("backend", "design"), BACKEND_DESIGNS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_rows_equal_separate_texts(scheme: str, backend: str, design: str) -> None:
    # The first row's new tokens fill the slots of its padding first, then unused slots.
    model = build_model(scheme, backend, design)
    longest, n = (3, 3) if backend == "flex" else (5, 6)
    widths = assert_decodes(model, random_texts(1, longest, 2), n, context=None, visible=None)
    assert widths == [longest] + [1] * n


@pytest.mark.usefixtures("float64_inference")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_texts_longer_than_block_size(scheme: str) -> None:
    model = random_model(tiny_config(scheme, block_size=BLOCK))
    limit = model.positional.max_length
    if limit is not None:
        assert_decodes(model, random_texts(5, 1, BLOCK + 3), BLOCK + 3, context=None, visible=limit)
        return
    slots = 2 * 5 + CACHE_MARGIN  # the initial capacity
    widths = assert_decodes(model, random_texts(5, 2), slots, context=None, visible=None)
    assert widths == [5] + [1] * (slots - 5 + 5)  # the cache grew without recomputing the text


@pytest.mark.usefixtures("float64_inference")
def test_a_cache_grows_with_the_text() -> None:
    decoder = Decoder(random_model(tiny_config("rope")), random_texts(3, 1), None)
    capacities: list[int] = []
    for _ in range(300):
        capacities.append(decoder.cache.capacity)
        decoder.append([0, 0])
    first = 2 * 3 + CACHE_MARGIN
    second = 2 * (first + 1) + CACHE_MARGIN
    assert sorted(set(capacities)) == [first, second, 2 * (second + 1) + CACHE_MARGIN]
    assert capacities.count(first) == first - 3 + 1


# --- context


@pytest.mark.usefixtures("float64_inference")
@pytest.mark.parametrize("context", [1, 5, BLOCK, BLOCK + 4])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_decoder_equals_full_passes_over_the_context(scheme: str, context: int) -> None:
    model = random_model(tiny_config(scheme, block_size=BLOCK))
    limit = model.positional.max_length
    if limit is not None and context > limit:
        with pytest.raises(UserError, match=rf"^--context={context}: {scheme} has {limit} "):
            Decoder(model, [[0]], context)
        with pytest.raises(UserError, match=rf"^--context={context}: "):
            next(generate(model, [[0]], 1, context=context))
        return
    assert_decodes(model, random_texts(3, 1), context + 2, context, visible=context)
    # One prompt exceeds the context, one text soon exceeds it, one never does.
    assert_decodes(
        model, random_texts(context + 3, max(1, context - 2), 1), 4, context, visible=context
    )


@pytest.mark.usefixtures("float64_inference")
def test_the_context_moves_only_when_it_is_full() -> None:
    model = random_model(tiny_config("rope", block_size=BLOCK))
    assert assert_decodes(model, random_texts(3, 1), 5, context=6, visible=6) == [3, 1, 1, 1, 6, 6]
    decoder = Decoder(model, random_texts(3, 1), 6)
    assert decoder.cache.capacity == 6


def test_context_start() -> None:
    for context in (
        1,
        5,
        CONTEXT_STEPS - 1,
        CONTEXT_STEPS,
        2 * CONTEXT_STEPS + 1,
        5 * CONTEXT_STEPS,
    ):
        lengths = range(1, 4 * context + 3)
        starts = [context_start(length, context) for length in lengths]
        stride = max(1, context // CONTEXT_STEPS)
        for length, start in zip(lengths, starts, strict=True):
            assert start % stride == 0 and start <= max(0, length - 1)
            if length <= context:
                assert start == 0
            else:
                assert context - stride < length - start <= context
        assert starts == sorted(starts)
    assert context_start(10**9, None) == 0


@pytest.mark.medium
@pytest.mark.usefixtures("float64_inference")
@pytest.mark.parametrize(("attention", "options"), ATTENTIONS, ids=ATTENTION_IDS)
@pytest.mark.parametrize("scheme", ["nope", "learned", "rope", "relative"])
def test_texts_far_longer_than_the_context(
    scheme: str, attention: str, options: Mapping[str, Any]
) -> None:
    context = 3 * CONTEXT_STEPS  # a move is 3 tokens
    chosen = {"attention": attention, "attention_options": options}
    config = tiny_config(scheme, block_size=context, **chosen)
    if first_problem(config) is not None:
        return
    model = random_model(config)
    prompts = random_texts(context - 4, 1, context + 7)
    assert_decodes(model, prompts[:1], 14, context, visible=context)
    assert_decodes(model, prompts, 12, context, visible=context)


@pytest.mark.usefixtures("float64_inference")
def test_the_context_is_recomputed_once_per_move() -> None:
    context = 3 * CONTEXT_STEPS
    model = random_model(tiny_config("rope", block_size=BLOCK))
    widths = assert_decodes(model, random_texts(context), 7, context, visible=context)
    assert widths == [context, context - 2, 1, 1, context - 2, 1, 1, context - 2]


@pytest.mark.usefixtures("float64_inference")
def test_decoder_does_not_modify_the_prompts() -> None:
    prompts = random_texts(3, 1)
    Decoder(random_model(tiny_config("rope")), prompts, None).append([0, 0])
    assert prompts == random_texts(3, 1)


# --- extend, rewind and select


@pytest.mark.medium
@pytest.mark.usefixtures("float64_inference")
@pytest.mark.parametrize("context", [4, BLOCK, 2 * CONTEXT_STEPS, None])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_extend_and_rewind(scheme: str, context: int | None) -> None:
    # Texts stay within the context, cross its end and return, or stay beyond it.
    model = random_model(tiny_config(scheme, block_size=max(BLOCK, context or 0)))
    visible = model.positional.max_length if context is None else context
    for prompt in random_texts(1, 3, BLOCK + 1, 2 * CONTEXT_STEPS - 1):
        decoder, text = Decoder(model, [prompt], context), list(prompt)
        for n_new, n_kept in ((2, 0), (3, 1), (1, 1), (5, 2), (4, 4), (3, 0), (2, 1)):
            new = random_tokens(1, n_new, seed=len(text)).tolist()
            logits = decoder.extend(new)
            expected = next_logits(model, text + new[0], len(text), visible)
            assert_equal(logits, expected[None])
            assert_equal(decoder.next_logits, expected[-1:])
            text += new[0][:n_kept]
            decoder.rewind(len(text))
            assert decoder.sequences == [text] and decoder.cache.buffers[None].end <= len(text)


@pytest.mark.usefixtures("float64_inference")
@pytest.mark.parametrize("context", [4, None])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_select(scheme: str, context: int | None) -> None:
    model = random_model(tiny_config(scheme, block_size=BLOCK))
    visible = model.positional.max_length if context is None else context
    decoder = Decoder(model, random_texts(3, 1, 2), context)
    for rows in ([2, 0, 2, 1], [0, 3], [1, 1, 0], [2]):
        expected = [decoder.sequences[row] for row in rows]
        decoder.select(rows)
        assert decoder.sequences == expected
        new = random_tokens(len(rows), 2, seed=len(rows)).tolist()
        logits = decoder.extend(new)
        for row, text in enumerate(expected):
            assert_equal(logits[row], next_logits(model, text + new[row], len(text), visible))


# --- generation


def generated(
    model: GPT, prompts: list[list[int]], n: int, sampling: Sampling, seeds: list[int]
) -> list[list[int]]:
    """Return the new tokens of each prompt."""
    steps = [*generate(model, prompts, n, sampling, seed=seeds, context="all")]
    return [[step[row] for step in steps] for row in range(len(prompts))]


@pytest.mark.usefixtures("float64_inference")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_texts_of_a_batch_are_independent(scheme: str) -> None:
    model = random_model(tiny_config(scheme, block_size=BLOCK))
    prompts, seeds = random_texts(1, 4, 4, BLOCK + 2), [1, 2, 3, 4]
    batch = generated(model, prompts, 10, Sampling(top_p=0.95), seeds)
    for row, prompt in enumerate(prompts):
        single = generated(model, [prompt], 10, Sampling(top_p=0.95), [seeds[row]])
        assert single == [batch[row]]
    assert batch[1] != batch[2]  # equal prompts, different seeds


@pytest.mark.usefixtures("float64_inference")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_greedy_equals_repeated_argmax(scheme: str) -> None:
    model = random_model(tiny_config(scheme, block_size=BLOCK))
    prompts = random_texts(1, 6, 3)
    texts = [list(prompt) for prompt in prompts]
    for _ in range(12):  # exceeds block_size
        for text in texts:
            logits = next_logits(model, text, len(text) - 1, model.positional.max_length)
            text.append(int(logits.argmax()))
    new_tokens = generated(model, prompts, 12, Sampling(temperature=0), [0, 0, 0])
    assert new_tokens == [text[-12:] for text in texts]


def test_an_error_restores_the_training_mode() -> None:
    model = random_model(tiny_config("learned", block_size=BLOCK)).train()
    with pytest.raises(UserError):
        next(generate(model, [[0]], 1, context=BLOCK + 1))
    assert model.training


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_bf16_decoding_is_close_to_fp32(scheme: str, backend: str) -> None:
    model = random_model(tiny_config(scheme, backend=backend))
    tokens = random_tokens(2, 12)
    with torch.inference_mode():
        expected = model(tokens)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = through_cache(model, tokens, [9, 1, 1, 1], prefill=True)
    error = (rounded.float() - expected).square().mean().sqrt() / expected.std()
    assert error < 0.03


@pytest.mark.usefixtures("float64_inference")
def test_select_after_a_row_exceeds_the_context() -> None:
    for attention in ("full", "sliding_window"):
        model = random_model(tiny_config("rope", attention=attention))
        short, long = random_texts(1, 7)
        decoder = Decoder(model, [short, long], 8)
        more = random_tokens(2, 3).tolist()
        decoder.extend(more)
        decoder.select([0])
        text = [*short, *more[0]]
        assert_equal(decoder.next_logits[0], next_logits(model, text, len(text) - 1, None)[0])
        decoder.extend([[4]])
        assert_equal(decoder.next_logits[0], next_logits(model, [*text, 4], len(text), None)[0])
