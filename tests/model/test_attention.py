"""Attention under every positional scheme and backend, against a reference written in loops."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference import POSITIONS, reference_logits, reference_loss
from tiny import (
    N_VOCAB,
    composed,
    default_dtype,
    gradients,
    random_model,
    random_tokens,
    tiny_config,
)
from torch import Tensor

from minigpt.errors import UserError
from minigpt.model import GPT, ModelConfig
from minigpt.model.attention import BACKENDS, BackendConfig, choose_backend
from minigpt.model.ffn import FFN
from minigpt.model.norm import KINDS, PLACEMENTS
from minigpt.model.positional import POSITIONAL
from minigpt.model.positional.alibi import alibi_slopes
from minigpt.model.scores import Scores

SCHEMES = POSITIONAL.names()
RELATIVE = ["alibi", "nope", "rope"]  # see distances only, or nothing

# (n_head, n_embd): even and, where the scheme allows it, odd head sizes.
ODD = {"rope": (3, 6), "sinusoidal": (2, 6)}
SIZES = [(name, *size) for name in SCHEMES for size in ((3, 12), ODD.get(name, (3, 15)))]


@pytest.fixture
def float64() -> Iterator[None]:
    with default_dtype(torch.float64):
        yield


def loss_of(logits: Tensor) -> Tensor:
    """A loss in the logits' own precision; GPT.loss has that of fp32."""
    targets = random_tokens(*logits.shape[:2], seed=1)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def assert_equal(actual: Any, expected: Any) -> None:
    """Equal but for the order of float64 sums. Tensors, or tensors by name."""
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_registered_scheme_has_a_reference(scheme: str) -> None:
    assert scheme in POSITIONS, (
        f"positional={scheme} is registered: give it a row in POSITIONS of reference.py, "
        f"its formula written again from its paper"
    )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("per_row", [False, True], ids=["arange", "positions"])
@pytest.mark.parametrize("length", [1, 7])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("scheme", "n_head", "n_embd"), SIZES)
def test_equals_the_reference(
    scheme: str, n_head: int, n_embd: int, backend: str, length: int, per_row: bool
) -> None:
    config = tiny_config(scheme, backend=backend, n_head=n_head, n_embd=n_embd)
    model = random_model(config)
    tokens = random_tokens(2, length)
    arange = torch.arange(length)
    positions = torch.stack((2 * arange, arange + 5)) if per_row else arange.expand(2, -1)

    logits = model(tokens, positions if per_row else None)
    weights = dict(model.named_parameters())
    expected = reference_logits(config, weights, N_VOCAB, tokens, positions)
    assert_equal(logits, expected)

    found = gradients(loss_of(logits), model)
    wanted = gradients(reference_loss(expected, random_tokens(2, length, seed=1)), model)
    assert_equal(found, wanted)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-12)], ids=str
)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_backends_agree(scheme: str, dtype: torch.dtype, tolerance: float) -> None:
    with default_dtype(dtype):
        model = random_model(tiny_config(scheme, block_size=64))
        tokens = random_tokens(2, 33)
        results: dict[str, tuple[Tensor, dict[str, Tensor]]] = {}
        for name, backend in BACKENDS.items():
            model.backend = backend
            logits = model(tokens)
            results[name] = logits, gradients(loss_of(logits), model)
    expected, wanted = results.pop("eager")
    for logits, found in results.values():
        torch.testing.assert_close(logits, expected, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
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


@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_weights_drop_out_without_bias(backend: str) -> None:
    torch.manual_seed(0)
    config = tiny_config("nope", n_head=1)
    positions = torch.arange(4)[None]
    scores = Scores(POSITIONAL.build(config.positional, config), 1, positions, positions, True)
    q = k = torch.zeros(4000, 1, 4, 2)
    v = torch.eye(4)[None, None].expand(4000, -1, -1, -1)
    mixed = BACKENDS[backend](q, k, v, scores, 0, 0.5)
    # Equal weights over i + 1 keys, each kept half of the time and then doubled.
    for i in range(4):
        kept = mixed[:, 0, i, : i + 1] * (i + 1)
        assert set(kept.unique().round().tolist()) == {0.0, 2.0}
        torch.testing.assert_close(kept.mean(0), torch.ones(i + 1), rtol=0, atol=0.1)
        assert not mixed[:, 0, i, i + 1 :].any()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_positions_mean_arange(scheme: str, backend: str) -> None:
    model = random_model(tiny_config(scheme, backend=backend))
    tokens = random_tokens(2, 9)
    for positions in (torch.arange(9)[None], torch.arange(9).expand(2, -1)):
        assert_equal(model(tokens, positions), model(tokens))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_each_row_has_its_own_positions(scheme: str, backend: str) -> None:
    model = random_model(tiny_config(scheme, backend=backend))
    tokens = random_tokens(3, 5)
    positions = torch.tensor([[0, 1, 2, 3, 4], [11, 12, 13, 14, 15], [1, 2, 4, 8, 15]])
    together = model(tokens, positions)
    for row in range(3):
        alone = model(tokens[row : row + 1], positions[row : row + 1])
        assert_equal(together[row], alone[0])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_order_is_that_of_positions(scheme: str, backend: str) -> None:
    model = random_model(tiny_config(scheme, backend=backend))
    tokens, shuffled = random_tokens(2, 6), torch.tensor([3, 0, 5, 1, 4, 2])
    assert_equal(model(tokens[:, shuffled], shuffled[None]), model(tokens)[:, shuffled])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scheme", RELATIVE)
def test_relative_schemes_see_no_absolute_position(scheme: str, backend: str) -> None:
    model = random_model(tiny_config(scheme, backend=backend))
    tokens, positions = random_tokens(2, 9), torch.arange(9)[None]
    for shift in (1, 1000):
        assert_equal(model(tokens, positions + shift), model(tokens))


@pytest.mark.parametrize("scheme", sorted({*SCHEMES} - {"nope"}))
def test_schemes_see_an_order_beyond_the_mask(scheme: str) -> None:
    model = random_model(tiny_config(scheme))
    tokens = random_tokens(1, 9)
    apart = model(tokens, torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 12]]))
    assert not torch.allclose(apart[:, -1], model(tokens)[:, -1], atol=1e-3)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ffn", FFN.names())
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_later_tokens_change_nothing_before(
    scheme: str, backend: str, ffn: str, kind: str, placement: str
) -> None:
    model = random_model(tiny_config(scheme, ffn, backend, placement=placement, kind=kind))
    tokens = random_tokens(1, 9)
    changed = tokens.clone()
    changed[:, 5:] = (changed[:, 5:] + 3) % N_VOCAB
    with torch.inference_mode():
        before, after = model(tokens), model(changed)
    torch.testing.assert_close(after[:, :5], before[:, :5])
    assert not torch.allclose(after[:, 5:], before[:, 5:])


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


def test_learned_positions_end_at_block_size() -> None:
    assert random_model(tiny_config("learned", block_size=8)).positional.max_length == 8


@pytest.mark.parametrize("scheme", SCHEMES)
def test_score_is_shared_is_truthful(scheme: str) -> None:
    model = random_model(tiny_config(scheme))
    positions = torch.arange(6)[None]
    if not model.positional.score_is_shared:
        return

    def bias(seed: int, layer: int) -> Tensor | None:
        generator = torch.Generator().manual_seed(seed)
        q, k = torch.randn(2, 2, 3, 6, 4, generator=generator)
        return Scores(model.positional, 3, positions, positions, True).additive(q, k, layer)

    first, second = bias(0, 0), bias(1, 1)
    assert first is not None and second is not None
    assert torch.equal(first, second)


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
    scheme = POSITIONAL.build(config.positional, config)
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
    scheme = POSITIONAL.build(config.positional, config)
    table = scheme.embed(torch.zeros(1, 2, 4), torch.tensor([[0, 50]]))
    # Four channels: wavelengths 2 pi and 2 pi * 100.
    expected = [[0.0, 1.0, 0.0, 1.0], [math.sin(50), math.cos(50), math.sin(0.5), math.cos(0.5)]]
    assert_equal(table[0], torch.tensor(expected))
    ones = scheme.embed(torch.ones(1, 2, 4), torch.tensor([[0, 50]]))
    assert_equal(ones - table, torch.full((1, 2, 4), 2.0))  # sqrt(d)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_bf16_stays_close_to_fp32(scheme: str, backend: str) -> None:
    model = random_model(tiny_config(scheme, backend=backend))
    tokens = random_tokens(2, 16)
    with torch.inference_mode():
        exact = model(tokens)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(tokens)
    error = (rounded.float() - exact).square().mean().sqrt() / exact.std()
    assert error < 0.03


def test_choice_of_backend() -> None:
    auto = BackendConfig("auto")
    assert choose_backend(auto, "cuda", bf16=True)[0] == "sdpa"
    assert choose_backend(auto, "cpu", bf16=False)[0] == "sdpa"
    assert choose_backend(auto, "cpu", bf16=True)[0] == "eager"
    for name in BACKENDS:
        assert choose_backend(BackendConfig(name), "cpu", bf16=True) == (name, "as configured")
    model = GPT(tiny_config(backend="auto"), N_VOCAB)
    assert model.use_backend("cpu", bf16=True).startswith("eager (")
    assert model.backend is BACKENDS["eager"]
    with pytest.raises(UserError, match=r"^model\.backend\.name=spda: .*Did you mean sdpa\?"):
        BackendConfig("spda")


def test_explicit_backend_reaches_the_model() -> None:
    for name, backend in BACKENDS.items():
        assert GPT(composed(f"backend={name}"), N_VOCAB).backend is backend
