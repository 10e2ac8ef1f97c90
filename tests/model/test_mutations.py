"""Mutation tests: the checks in contract.py must fail for deliberately broken schemes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from minigpt.model import ModelConfig, backends
from minigpt.model.bias import AttentionBias
from minigpt.model.positional import (
    POSITIONAL,
    DenseScoreMod,
    DistanceScoreMod,
    PositionalScheme,
    ScoreMod,
)
from tests.model.contract import (
    SCHEMES,
    VARIANT_IDS,
    VARIANTS,
    assert_cached_equals_full,
    assert_causal,
    assert_dense_equals_score_mod,
    assert_equals_reference,
    variant_config,
)
from tests.model.reference import row_of
from tests.model.tiny import tiny_config

Hook = Callable[..., Any]
Options = Mapping[str, Any]


def full_pass(config: ModelConfig) -> None:
    """Check a full pass, with default and with explicit positions."""
    assert_equals_reference(config, "eager", 7, per_row=False)
    assert_equals_reference(config, "eager", 7, per_row=True)


def decoding(config: ModelConfig) -> None:
    """Check decoding with a KV cache."""
    assert_cached_equals_full(config, "eager")


@dataclass(frozen=True)
class Mutation:
    """A mistake in a hook, and the check that has to fail.

    `everywhere`: applies to schemes that do not override the hook, too.
    """

    name: str
    hook: str
    broken: Callable[[Hook], Hook]
    check: Callable[[ModelConfig], None] = full_pass
    everywhere: bool = False

    def applies(self, scheme: str, config: ModelConfig) -> bool:
        """Return whether the mutation changes something that the scheme implements."""
        hook = getattr(POSITIONAL.variant(scheme), self.hook)
        own = hook is not getattr(PositionalScheme, self.hook)
        if self.name == "first layer for all":
            module = POSITIONAL.build(config.positional, config.shape)
            own &= any(p.shape[0] == config.n_layer for p in module.parameters())
        return own or self.everywhere


def on_x(change: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[Hook], Hook]:
    """Return a mutation of `embed` and `block_input` to change(x, hook(x), positions)."""

    def broken(hook: Hook) -> Hook:
        def run(self: Any, x: Tensor, positions: Tensor, *layer: int) -> Tensor:
            return change(x, hook(self, x, positions, *layer), positions)

        return run

    return broken


def on_positions(change: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Hook], Hook]:
    """Return a mutation of `embed`, `block_input` and `rotate` that changes their positions."""

    def broken(hook: Hook) -> Hook:
        def run(self: Any, *arguments: Any) -> Any:
            *vectors, positions, layer = arguments if len(arguments) > 2 else (*arguments, None)
            positions = change(vectors[0], positions)
            return hook(self, *vectors, positions, *([] if layer is None else [layer]))

        return run

    return broken


def on_rotated(
    change: Callable[[Callable[[Tensor], tuple[Tensor, Tensor]], Tensor, Tensor, Tensor], Any],
) -> Callable[[Hook], Hook]:
    """Return a mutation of `rotate` to change(rotate, q, k, positions).

    rotate(positions) is the correct result.
    """

    def broken(hook: Hook) -> Hook:
        def run(self: Any, q: Tensor, k: Tensor, positions: Tensor, layer: int) -> Any:
            return change(lambda places: hook(self, q, k, places, layer), q, k, positions)

        return run

    return broken


def on_score_mod(change: Callable[[ScoreMod, Tensor, Tensor], Any]) -> Callable[[Hook], Hook]:
    """Return a mutation of `score_mod` to change(score_mod, q, k)."""

    def broken(hook: Hook) -> Hook:
        def run(self: Any, q: Tensor, k: Tensor, *rest: Any) -> Any:
            return change(hook(self, q, k, *rest), q, k)

        return run

    return broken


def on_score_positions(
    change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
) -> Callable[[Hook], Hook]:
    """Return a mutation of `score_mod` that changes q_positions and k_positions."""

    def broken(hook: Hook) -> Hook:
        def run(self: Any, q: Tensor, k: Tensor, i: Tensor, j: Tensor, layer: int) -> Any:
            return hook(self, q, k, *change(i, j), layer)

        return run

    return broken


def first_layer(hook: Hook) -> Hook:
    """Use the parameters of layer 0 in every layer."""
    return lambda self, *arguments: hook(self, *arguments[:-1], 0)


def with_table(x: Tensor, y: Tensor, positions: Tensor) -> Tensor:
    """Add a random table of absolute positions."""
    generator = torch.Generator().manual_seed(3)
    return y + 0.4 * torch.randn(64, x.shape[-1], generator=generator)[positions]


def zeros_if_cached(score_mod: ScoreMod, q: Tensor, k: Tensor) -> ScoreMod:
    """Return no bias if there are more keys than queries."""
    n_queries, n_keys = q.shape[2], k.shape[2]
    return score_mod if n_queries == n_keys else DenseScoreMod(torch.zeros(1, 1, n_queries, n_keys))


def is_single_token(x: Tensor) -> bool:
    """Return whether x (b, 1, d) or (b, h, 1, e) is a single decoded token."""
    return x.shape[-2] == 1


MUTATIONS = [
    mutation
    for hook in ("embed", "block_input")
    for mutation in (
        Mutation("positions one further", hook, on_positions(lambda x, places: places + 1)),
        Mutation("first row's positions for all", hook, on_positions(lambda x, places: places[:1])),
        Mutation("scaled", hook, on_x(lambda x, y, places: x + 1.1 * (y - x))),
        Mutation("dropped", hook, on_x(lambda x, y, places: x)),
        Mutation("with a table", hook, on_x(with_table), everywhere=True),
        Mutation(
            *("dropped in decoding", hook),
            on_x(lambda x, y, places: x if is_single_token(x) else y),
            decoding,
        ),
        Mutation(
            *("decoding restarts at 0", hook),
            on_positions(lambda x, places: places * (not is_single_token(x))),
            decoding,
        ),
    )
]
MUTATIONS += [
    Mutation("first layer for all", "block_input", first_layer),
    Mutation(
        *("queries one further", "rotate"),
        on_rotated(lambda rotate, q, k, places: (rotate(places + 1)[0], rotate(places)[1])),
    ),
    Mutation("first row's positions for all", "rotate", on_positions(lambda q, places: places[:1])),
    Mutation("scaled", "rotate", on_positions(lambda q, places: 1.1 * places)),
    Mutation("dropped", "rotate", on_rotated(lambda rotate, q, k, places: (q, k))),
    Mutation(
        *("keys not rotated", "rotate"),
        on_rotated(lambda rotate, q, k, places: (rotate(places)[0], k)),
    ),
    Mutation(
        *("dropped in decoding", "rotate"),
        on_rotated(lambda rotate, q, k, places: (q, k) if is_single_token(q) else rotate(places)),
        decoding,
    ),
    Mutation(
        *("decoding restarts at 0", "rotate"),
        on_positions(lambda q, places: places * (not is_single_token(q))),
        decoding,
    ),
    Mutation("queries one further", "score_mod", on_score_positions(lambda i, j: (i + 1, j))),
    Mutation("keys one further", "score_mod", on_score_positions(lambda i, j: (i, j + 1))),
    Mutation(
        *("first row's positions for all", "score_mod"),
        on_score_positions(lambda i, j: (i[:1], j[:1])),
    ),
    Mutation(
        *("scaled", "score_mod"),
        on_score_mod(lambda mod, q, k: lambda s, *index: s + 1.1 * (mod(s, *index) - s)),
    ),
    Mutation(
        *("heads the other way round", "score_mod"),
        on_score_mod(lambda mod, q, k: lambda s, b, h, i, j: mod(s, b, q.shape[1] - 1 - h, i, j)),
    ),
    Mutation("first layer for all", "score_mod", first_layer),
    Mutation("dropped", "score_mod", on_score_mod(lambda mod, q, k: None)),
    Mutation("dropped in decoding", "score_mod", on_score_mod(zeros_if_cached), decoding),
    Mutation(
        *("decoding restarts at 0", "score_mod"),
        on_score_positions(lambda i, j: (i * (i.shape[1] > 1), j)),
        decoding,
    ),
]


def rotated_twice(hook: Hook) -> Hook:
    """Rotate a decoded key twice."""

    def run(self: Any, q: Tensor, k: Tensor, positions: Tensor, layer: int) -> Any:
        rotated_q, rotated_k = hook(self, q, k, positions, layer)
        if is_single_token(k):
            rotated_k = hook(self, q, rotated_k, positions, layer)[1]
        return rotated_q, rotated_k

    return run


MUTATIONS += [Mutation("keys rotated twice in decoding", "rotate", rotated_twice, decoding)]
CASES = [
    pytest.param(scheme, options, mutation, id=f"{name}-{mutation.hook}-{mutation.name}")
    for (scheme, options), name in zip(VARIANTS, VARIANT_IDS, strict=True)
    for mutation in MUTATIONS
    if mutation.applies(scheme, variant_config(scheme, options))
]


@pytest.mark.parametrize(("scheme", "options"), VARIANTS, ids=VARIANT_IDS)
def test_unbroken_schemes_pass(scheme: str, options: Options) -> None:
    config = variant_config(scheme, options)
    full_pass(config)
    decoding(config)


@pytest.mark.parametrize(("scheme", "options", "mutation"), CASES)
def test_broken_schemes_fail(
    scheme: str, options: Options, mutation: Mutation, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = variant_config(scheme, options)
    variant = POSITIONAL.variant(scheme)
    monkeypatch.setattr(variant, mutation.hook, mutation.broken(getattr(variant, mutation.hook)))
    if mutation.name in row_of(scheme).harmless:
        mutation.check(config)
        return
    if mutation.check is decoding:
        full_pass(config)  # a mutation of decoding does not affect a full pass
    assert fails(mutation.check, config), (
        f"{mutation.hook} of {scheme}, {mutation.name!r}: the check passes; if this is right, add "
        f"the reason to `harmless` of its row in reference.py"
    )


def fails(check: Callable[[ModelConfig], None], config: ModelConfig) -> bool:
    """Return whether a check fails because numbers differ."""
    try:
        check(config)
    except AssertionError as error:
        return "not close" in str(error)
    return False


@pytest.mark.parametrize("scheme", SCHEMES)
def test_score_mod_without_dense_form_passes(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`DenseScoreMod.dense` is only an optimization of score_mod."""
    variant = POSITIONAL.variant(scheme)
    bare = on_score_mod(lambda mod, q, k: mod and (lambda *arguments: mod(*arguments)))
    monkeypatch.setattr(variant, "score_mod", bare(variant.score_mod))
    full_pass(variant_config(scheme, {}))
    decoding(variant_config(scheme, {}))


def test_harmless_names_existing_mutations() -> None:
    names = {mutation.name for mutation in MUTATIONS}
    assert all({*row_of(scheme).harmless} <= names for scheme in SCHEMES)


def attend_to_next_token(self: AttentionBias, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    q, k = self.q_positions, self.k_positions
    return k[b % k.shape[0], j] <= q[b % q.shape[0], i] + 1


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_mask_that_is_not_causal_fails(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        AttentionBias, "mask_mod", attend_to_next_token
    )  # not tested on flex, which caches its trace
    with pytest.raises(AssertionError, match="not close"):
        assert_causal(tiny_config(scheme), "eager")


@pytest.mark.parametrize("scheme", ["relative", "relative_bias", "t5"])
def test_shifted_bias_rows_fail(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = DistanceScoreMod.dense

    def rolled(self: DistanceScoreMod, in_order: bool) -> Tensor:
        return dense(self, in_order).roll(1, -1) if in_order else dense(self, in_order)

    monkeypatch.setattr(DistanceScoreMod, "dense", rolled)
    assert_equals_reference(tiny_config(scheme), "eager", 7, per_row=True)
    with pytest.raises(AssertionError, match="not close"):
        assert_equals_reference(tiny_config(scheme), "eager", 7, per_row=False)
    with pytest.raises(AssertionError, match="not close"):
        assert_dense_equals_score_mod(tiny_config(scheme))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_missing_soft_cap_fails(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AttentionBias, "softcap", lambda self, scores: scores)
    config = tiny_config(scheme, n_head=4, n_embd=16, n_kv_head=2, logit_softcap=0.5)
    with pytest.raises(AssertionError, match="not close"):
        assert_equals_reference(config, "eager", 7, per_row=True)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_wrongly_grouped_queries_fail(
    scheme: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tiled(x: Tensor, q: Tensor) -> Tensor:
        return torch.cat([x] * (q.shape[1] // x.shape[1]), dim=1)

    monkeypatch.setattr(backends, "repeat_kv", tiled)
    monkeypatch.setattr(backends, "grouped_matmul", lambda x, y: x @ tiled(y, x))
    config = tiny_config(scheme, n_head=4, n_embd=16, n_kv_head=2)
    with pytest.raises(AssertionError, match="not close"):
        assert_equals_reference(config, backend, 7, per_row=True)
