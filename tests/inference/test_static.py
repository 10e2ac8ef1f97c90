"""Decoding as CUDA graphs: without a GPU, the same static code without capture."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from minigpt.capture import WARMUP_CALLS, CaptureError
from minigpt.inference import generate as generation
from minigpt.inference.generate import Decoder, Sampling, generate
from minigpt.inference.static import MAX_CHUNK, StaticTokens, static_limit
from minigpt.model import GPT
from minigpt.model.attention import ATTENTION
from minigpt.model.kv_cache import StaticKVCache
from minigpt.model.positional import POSITIONAL
from minigpt.runtime import Runtime, choose_runtime
from tests.inference.test_decoding import DESIGNS, random_texts
from tests.model.tiny import random_model, tiny_config
from tests.train.test_graph import HostWaits

CPU = Runtime("cpu", "", "fp32", "")
SCHEMES = POSITIONAL.names()
SAMPLINGS = {
    "greedy": Sampling(0.0),
    "plain": Sampling(),
    "top_k": Sampling(0.8, top_k=3),
    "top_p": Sampling(1.5, top_p=0.7),
    "min_p": Sampling(min_p=0.1),
}
DTYPE = torch.float64
FAMILIES: dict[str, dict[str, Any]] = {
    "parallel": {"block": "parallel_shared", "bias": "qkv", "final_softcap": 2.0},
    "heads": {"head_size": 6, "qk_norm": "all_channels", "score_scale": 0.3, "placement": "output"},
}


def both(
    monkeypatch: pytest.MonkeyPatch, model: GPT, n_tokens: int, *lengths: int, **options: Any
) -> list[list[list[int]]]:
    """Return the tokens of the usual path and of the static one."""
    prompts = random_texts(*lengths)
    options = {"seed": range(len(prompts)), **options}
    usual = list(generate(model, prompts, n_tokens, **options))
    monkeypatch.setattr(generation, "static_decoding", lambda *_: True)
    return [usual, list(generate(model, prompts, n_tokens, **options))]


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_static_tokens_equal_the_usual_ones(
    monkeypatch: pytest.MonkeyPatch, scheme: str, sampling: Sampling
) -> None:
    """Texts of different lengths, of which the longest does not fit into the context."""
    model = random_model(tiny_config(scheme)).to(DTYPE)
    usual, static = both(monkeypatch, model, 2 * MAX_CHUNK + 3, 3, 7, 20, sampling=sampling)
    assert static == usual


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("design", [*DESIGNS, *FAMILIES])
def test_static_tokens_of_designs(
    monkeypatch: pytest.MonkeyPatch, design: str, backend: str
) -> None:
    if (design, backend) == ("softcap", "sdpa"):
        pytest.skip("not supported")
    model = random_model(tiny_config("rope", backend=backend, **(DESIGNS | FAMILIES)[design])).to(
        DTYPE
    )
    usual, static = both(monkeypatch, model, 30, 1, 5)
    assert static == usual


@pytest.mark.parametrize("scheme", ["rope", "alibi", "t5", "nope"])
def test_a_static_cache_holds_a_context_of_all_tokens(
    monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    model = random_model(tiny_config(scheme)).to(DTYPE)
    usual, static = both(monkeypatch, model, 70, 2, 9, context="all")
    assert static == usual


@pytest.mark.parametrize("n_tokens", [0, 1, 2])
def test_few_tokens(monkeypatch: pytest.MonkeyPatch, n_tokens: int) -> None:
    model = random_model(tiny_config("rope")).to(DTYPE)
    usual, static = both(monkeypatch, model, n_tokens, 4)
    assert static == usual and len(static) == n_tokens


def test_chunks_are_short_where_noise_would_be_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minigpt.inference.static.MAX_NOISE", 1)
    model = random_model(tiny_config("rope")).to(DTYPE)
    usual, static = both(monkeypatch, model, 12, 4, 5)
    assert static == usual


@pytest.mark.fast
@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_token_never_waits_for_the_device(scheme: str, sampling: Sampling) -> None:
    model = random_model(tiny_config(scheme))
    tokens, decoder = static_tokens(model, 20, CPU, sampling)
    with torch.inference_mode():
        tokens.start(decoder.lengths(), decoder.next_logits)
        tokens.take(WARMUP_CALLS)
        addresses = [x.data_ptr() for x in static_tensors(tokens)]
        with HostWaits() as waits:
            tokens.compute()
    assert not waits.found
    assert addresses == [x.data_ptr() for x in static_tensors(tokens)]


def static_tokens(
    model: GPT, n: int, runtime: Runtime, sampling: Sampling, captured: bool = False
) -> tuple[StaticTokens, Decoder]:
    """Return static tokens after two prompts, and the decoder that prefilled them."""
    prompts = random_texts(2, 4)
    with torch.inference_mode(), runtime.autocast():
        decoder = Decoder(model, prompts, None, static_tokens=n)
        cache = decoder.static_cache
        assert cache is not None
        generators = [torch.Generator(runtime.device) for _ in prompts]
        parts = (model, cache, sampling.choose, generators, runtime)
        return StaticTokens(*parts, captured), decoder


def static_tensors(tokens: StaticTokens) -> list[torch.Tensor]:
    """Return what must stay where it is between two tokens."""
    (buffer,) = tokens.cache.buffers.values()
    stored = [*buffer.keys.values(), *buffer.values.values(), buffer.positions]
    return [tokens.newest, tokens.positions, tokens.index, tokens.noise, tokens.chosen, *stored]


def test_a_token_that_cannot_be_captured_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed capture has computed nothing, so the token is not lost."""

    def fail() -> None:
        raise CaptureError("operation not permitted when stream is capturing")

    model = random_model(tiny_config("rope")).to(DTYPE)
    expected, _ = static_tokens(model, 20, CPU, Sampling())
    tokens, decoder = static_tokens(model, 20, CPU, Sampling())
    with torch.inference_mode():
        firsts = [x.start(decoder.lengths(), decoder.next_logits) for x in (expected, tokens)]
        tokens.replay = fail
        with pytest.warns(UserWarning, match="without a CUDA graph, more slowly: operation not"):
            assert tokens.take(5) == expected.take(5)
    assert firsts[0] == firsts[1]


@pytest.mark.fast
def test_limits() -> None:
    def limit(**changes: Any) -> str | None:
        return static_limit(random_model(tiny_config("rope", **changes)))

    assert limit() is None
    assert "moe" in (limit(ffn="moe") or "") and "conv" in (limit(ffn="conv") or "")
    assert "FlexAttention" in (limit(backend="flex") or "")
    for name in ATTENTION.names():
        assert (limit(attention=name) is None) == (name == "full")


@pytest.mark.fast
def test_a_repetition_penalty_takes_the_usual_path() -> None:
    model = random_model(tiny_config("rope"))
    gpu = Runtime("cuda", "", "bf16", "")
    assert generation.static_decoding(model, Sampling(), gpu)
    assert not generation.static_decoding(model, Sampling(repetition_penalty=1.1), gpu)
    assert not generation.static_decoding(model, Sampling(), CPU)


@pytest.mark.fast
def test_choose_draws_from_the_distribution() -> None:
    """A chi-square test with 9 degrees of freedom; 27.9 is exceeded in 1 of 1,000 draws."""
    generator, n = torch.Generator().manual_seed(1), 20_000
    logits = torch.randn(10, generator=generator)
    noise = torch.empty(n, 10).exponential_(generator=generator)
    counts = Sampling(0.7).choose(logits.expand(n, -1), noise).bincount(minlength=10)
    expected = n * (logits / 0.7).softmax(0)
    assert ((counts - expected) ** 2 / expected).sum() < 27.9


@pytest.mark.fast
def test_a_static_cache_forgets_its_content() -> None:
    cache = StaticKVCache(2, 6, torch.device("cpu"))
    model = random_model(tiny_config("rope")).to(DTYPE)

    def logits(cache: StaticKVCache, text: torch.Tensor) -> list[torch.Tensor]:
        cache.reset([text.shape[1]] * 2)
        return [model(text, cache=cache), model(text[:, :1], torch.tensor([[5]]), cache)]

    first, second = (torch.tensor(random_texts(n, n)) for n in (4, 3))
    with torch.inference_mode():
        logits(cache, first)
        fresh = StaticKVCache(2, 6, torch.device("cpu"))
        assert all(map(torch.equal, logits(cache, second), logits(fresh, second)))


# ---- on a GPU ----


@pytest.mark.gpu
@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_captured_tokens_equal_the_usual_ones(
    monkeypatch: pytest.MonkeyPatch, scheme: str, sampling: Sampling
) -> None:
    model = random_model(tiny_config(scheme)).to("cuda", DTYPE)
    runtime = Runtime("cuda", "", "fp32", "")
    prompts = random_texts(3, 7, 20)
    options = {"sampling": sampling, "seed": range(3), "runtime": runtime}
    with warnings.catch_warnings(action="error"):  # of a token that is not captured
        captured = list(generate(model, prompts, 2 * MAX_CHUNK + 3, **options))
    monkeypatch.setattr(generation, "static_decoding", lambda *_: False)
    assert captured == list(generate(model, prompts, 2 * MAX_CHUNK + 3, **options))


@pytest.mark.gpu
def test_captured_logits_in_bf16_are_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every token is 0: one that rounding changes would change all later logits."""
    model = random_model(tiny_config("rope")).to("cuda")
    runtime = choose_runtime("cuda", "bf16")
    logits = []
    for captured in (True, False):
        tokens, decoder = static_tokens(model, 20, runtime, Sampling(0.0), captured)
        seen: list[torch.Tensor] = []

        def choose(x: torch.Tensor, noise: torch.Tensor, seen: Any = seen) -> torch.Tensor:
            seen.append(x)  # of a graph: the tensor that each replay overwrites
            return torch.zeros_like(x[:, 0], dtype=torch.int64)

        tokens.choose = choose
        with torch.inference_mode():
            tokens.start(decoder.lengths(), decoder.next_logits)
            for _ in range(WARMUP_CALLS + 4):
                tokens.take(1)
            logits.append(seen[-1].clone())
    torch.testing.assert_close(*logits, rtol=0.05, atol=0.05)
