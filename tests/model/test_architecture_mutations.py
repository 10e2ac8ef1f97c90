"""Mutation tests of masks, two-sided schemes and cross-attention: broken ones must fail.

The checks are those of test_architectures.py and contract.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor

from minigpt.model import ModelConfig, stack
from minigpt.model.attention import base, performer
from minigpt.model.attention.bigbird import BigBird
from minigpt.model.attention.sliding_window import SlidingWindow
from minigpt.model.bias import AttentionBias
from minigpt.model.block import Block
from minigpt.model.context import ForwardContext
from minigpt.model.cross_attention import CrossAttention
from minigpt.model.gpt import GPT
from minigpt.model.memory import Memory
from minigpt.model.positional import (
    POSITIONAL,
    ScoreMod,
    alibi,
    fire,
    kerple,
    t5,
)
from minigpt.model.positional import base as base_of_schemes
from minigpt.model.positional.base import signed_distance
from minigpt.model.stack import Stack
from minigpt.model.visibility import Leading, Prefix, Unpadded, earlier, everything
from tests.model import test_architectures
from tests.model.contract import (
    VARIANT_IDS,
    VARIANTS,
    assert_equals_reference,
    assert_packed_equals_separate,
    variant_config,
)
from tests.model.test_architectures import CAUSAL_SCHEMES, LENGTHS, small
from tests.model.test_mutations import MUTATIONS, Mutation, fails, on_score_mod
from tests.model.tiny import default_dtype

Change = Callable[[Any], Any]


def against_reference(config: ModelConfig, backend: str = "eager", length: int = 5) -> None:
    """Check a full pass with a prefix, padding or a padded source."""
    assert_equals_reference(config, backend, length, False, LENGTHS[config.architecture])


def with_sdpa(config: ModelConfig) -> None:
    against_reference(config, "sdpa")


def with_blockwise(config: ModelConfig) -> None:
    against_reference(config, "blockwise")


def unpadded(backend: str) -> Callable[[ModelConfig], None]:
    return lambda config: assert_equals_reference(config, backend, 5, False)


def in_documents(config: ModelConfig) -> None:
    """Check packed documents, on the backend that may have a kernel without a mask."""
    assert_packed_equals_separate(config, "sdpa")


def in_short_blocks(config: ModelConfig) -> None:
    """Check a text that causal windows would split into blocks of queries."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "MIN_BLOCK_QUERIES", 2)
        assert_equals_reference(config, "eager", 7, False)


def rows_of_a_memory(config: ModelConfig) -> None:
    """Check that decoding keeps what each layer and row needs."""
    with default_dtype(torch.float64):
        test_architectures.test_a_memory_selects_rows((4, 1, 3))


@dataclass(frozen=True)
class Break:
    """A mistake: the attribute `name` of `owner` becomes change(attribute), and a check fails.

    `design`: the changes of a tiny config, where the mistake matters.
    """

    what: str
    owner: Any
    name: str
    change: Change
    architecture: str
    check: Callable[[ModelConfig], None] = against_reference
    design: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> ModelConfig:
        return small(self.architecture, **self.design)

    def __str__(self) -> str:
        return f"{self.architecture}-{self.what}"


def instead(result: Any) -> Change:
    """Return `result` in place of the attribute."""
    return lambda attribute: result


def call(function: Callable[..., Any]) -> Change:
    """Return a function in place of the attribute, whose first argument is the attribute."""
    return lambda attribute: lambda *arguments: function(attribute, *arguments)


def lengths_of_first_row(attribute: Any, self: Any, b: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return attribute(self, b * 0, i, j)


def one_more(attribute: Any, self: Any, b: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return attribute(type(self)(self.lengths + 1), b, i, j)


def one_fewer(attribute: Any, self: Any, b: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return attribute(type(self)(self.lengths - 1), b, i, j)


def without_documents(attribute: Any, self: AttentionBias, *index: Tensor) -> Tensor:
    ids, self.document_ids = self.document_ids, None
    mask = attribute(self, *index)
    self.document_ids = ids
    return mask


def rows_without_lengths(attribute: Any, self: AttentionBias) -> int:
    tensors = (self.q_positions, self.k_positions, self.document_ids)
    return max(len(x) for x in tensors if x is not None)


MASKS = [
    Break("one token more", Prefix, "__call__", call(one_more), "prefix_decoder"),
    Break("one token fewer", Prefix, "__call__", call(one_fewer), "prefix_decoder"),
    Break("first row's length", Prefix, "__call__", call(lengths_of_first_row), "prefix_decoder"),
    Break(
        *("no prefix", Prefix, "__call__"),
        call(lambda attribute, self, b, i, j: j <= i + 0 * b),
        "prefix_decoder",
    ),
    Break(
        *("the prefix alone", Prefix, "__call__"),
        call(lambda attribute, self, b, i, j: (j < self.lengths[b]) | (j == i)),
        "prefix_decoder",
    ),
    Break(
        *("the prefix for its own tokens alone", Prefix, "__call__"),
        call(lambda a, self, b, i, j: (j <= i) & ((j >= self.lengths[b]) | (i < self.lengths[b]))),
        "prefix_decoder",
    ),
    Break(
        *("causal", Stack, "_visible"),
        *(call(lambda attribute, self, lengths: earlier), "prefix_decoder"),
    ),
    Break("causal", Stack, "_visible", call(lambda attribute, self, lengths: earlier), "encoder"),
    Break(
        *("padding is seen", Stack, "_visible"),
        *(call(lambda attribute, self, lengths: everything), "encoder"),
    ),
    Break("one token more", Unpadded, "__call__", call(one_more), "encoder"),
    Break("one token fewer", Unpadded, "__call__", call(one_fewer), "encoder"),
    Break("first row's length", Unpadded, "__call__", call(lengths_of_first_row), "encoder"),
    Break(
        *("padding without keys", stack, "Unpadded", instead(Leading), "encoder"),
        *(
            lambda config: assert_equals_reference(config, "eager", 7, False, (7, 3)),
            {"attention": "sliding_window", "attention_options": {"window": 2}},
        ),
    ),
    Break("one row", AttentionBias, "_mask_rows", call(rows_without_lengths), "prefix_decoder"),
    Break("one row", AttentionBias, "_mask_rows", call(rows_without_lengths), "encoder"),
    Break("one row", AttentionBias, "_mask_rows", call(rows_without_lengths), "encoder_decoder"),
    Break(
        *("documents are seen", AttentionBias, "mask_mod", call(without_documents), "encoder"),
        in_documents,
    ),
    Break(
        *("documents are seen", AttentionBias, "is_absent", instead(True), "encoder"),
        in_documents,
    ),
    Break(
        *("padding is seen", AttentionBias, "is_absent", instead(True), "encoder"),
        with_sdpa,
    ),
    Break(
        *("is_causal", AttentionBias, "is_causal", instead(property(lambda s: s.in_order))),
        *("encoder", unpadded("sdpa")),
    ),
    Break(
        *("is_causal", AttentionBias, "is_causal", instead(property(lambda s: s.in_order))),
        *("prefix_decoder", with_sdpa),
    ),
    Break(
        *("later blocks are skipped", AttentionBias, "hides_later_keys"),
        *(instead(property(lambda s: s.in_order)), "encoder", unpadded("blockwise")),
    ),
    Break(
        *("later blocks are skipped", AttentionBias, "hides_later_keys"),
        *(instead(property(lambda s: s.in_order)), "prefix_decoder", with_blockwise),
    ),
    Break(
        *("a causal window", SlidingWindow, "mask_mod"),
        call(lambda attribute, self, b, h, i, j: (i - j < self.window) & (j <= i)),
        *("encoder", against_reference),
        {"attention": "sliding_window", "attention_options": {"window": 2}},
    ),
    Break(
        *("a window of earlier keys alone", SlidingWindow, "mask_mod"),
        call(lambda attribute, self, b, h, i, j: i - j < self.window),
        *("encoder", against_reference),
        {"attention": "sliding_window", "attention_options": {"window": 2}},
    ),
    Break(
        *("blocks of queries", base, "earlier", instead(everything), "encoder", in_short_blocks),
        {"attention": "sliding_window", "attention_options": {"window": 2}},
    ),
]
PERFORMER: dict[str, Any] = {"attention": "performer", "attention_options": {"features": 5}}
BIGBIRD: dict[str, Any] = {
    "attention": "bigbird",
    "attention_options": {"block": 1, "n_window": 1, "n_global": 1, "n_random": 1},
}


def one_sided(attribute: Any, self: Any, *rest: Any) -> Any:
    self.two_sided = False
    return attribute(self, *rest)


def local_queries_of_global_blocks(
    attribute: Any, self: BigBird, b: Tensor, h: Tensor, i: Tensor, j: Tensor
) -> Tensor:
    own, other = i // self.block, j // self.block
    mask = ((own - other).abs() < self.config.n_window) | (other < self.config.n_global)
    return mask | (other == self.random_block(own, h, 0))


def all_keys(attribute: Any, self: ForwardContext, batch: int) -> Tensor:
    positions = self.positions.expand(batch, -1)
    return torch.ones_like(positions, dtype=torch.bool)


MASKS += [
    Break(
        *("causal form", BigBird, "mask_mod", call(one_sided), "encoder", against_reference),
        BIGBIRD,
    ),
    Break(
        *("random blocks before the query's", BigBird, "random_block", call(one_sided)),
        *("encoder", against_reference, BIGBIRD),
    ),
    Break(
        *("global queries", BigBird, "mask_mod", call(local_queries_of_global_blocks)),
        *("encoder", against_reference, BIGBIRD),
    ),
    Break(
        *("padding in the state", ForwardContext, "visible_keys", call(all_keys)),
        *("encoder", against_reference, PERFORMER),
    ),
    Break(
        *("causal", performer, "mean_of_all"),
        *(call(lambda attribute, q, k, v, seen: v[..., :-1]), "encoder"),
        *(against_reference, PERFORMER),
    ),
]


# --- cross-attention


def bare(attribute: Any, self: CrossAttention, x: Tensor) -> Tensor:
    return x


def without_soft_cap(attribute: Any, self: CrossAttention, ctx: ForwardContext, m: Memory) -> Any:
    bias = attribute(self, ctx, m)
    bias.logit_softcap = None
    return bias


def with_positions(attribute: Any, self: CrossAttention, ctx: ForwardContext, m: Memory) -> Any:
    bias = attribute(self, ctx, m)
    bias.positional = ctx.positional
    return bias


def heads_apart(attribute: Any, self: CrossAttention, hidden: Tensor) -> Any:
    k, v = rearrange(self.kv(hidden), "b s (two e h) -> two b h s e", two=2, e=self.head_size)
    return self.normed_keys(k), v


def interleaved(attribute: Any, self: CrossAttention, hidden: Tensor) -> Any:
    k, v = rearrange(self.kv(hidden), "b s (h two e) -> two b h s e", two=2, e=self.head_size)
    return self.normed_keys(k), v


def of_decoder(attribute: Any, self: CrossAttention, x: Tensor, ctx: ForwardContext) -> Tensor:
    memory, ctx.memory = ctx.memory, Memory(x)
    y = attribute(self, x, ctx)
    ctx.memory = memory
    return y


def not_encoded(attribute: Any, self: GPT, source: Tensor, lengths: Tensor | None = None) -> Memory:
    assert self.encoder is not None
    return Memory(self.encoder.token_embedding(source), lengths)


def padding_encoded(
    attribute: Any, self: GPT, source: Tensor, lengths: Tensor | None = None
) -> Memory:
    assert self.encoder is not None
    return Memory(self.encoder.hidden(source), lengths)


def selects(lengths: Change, kept: Change) -> Change:
    """Return a `Memory.select` with other rows for lengths, or for keys and values."""

    def select(attribute: Any, self: Memory, rows: Tensor) -> Memory:
        n = None if self.lengths is None else self.lengths[lengths(rows)]
        selected = Memory(self.hidden[rows], n)
        of_layers = {layer: [x[kept(rows)] for x in both] for layer, both in self._kept.items()}
        selected._kept = of_layers  # pyright: ignore[reportAttributeAccessIssue]
        return selected

    return call(select)


def without_its_norm(attribute: Any, self: Block, *rest: Any) -> Tensor:
    self.cross_attention_norm = torch.nn.Identity()
    return attribute(self, *rest)


def cross_attention_first(attribute: Any, self: Block, x: Tensor, *rest: Any) -> Tensor:
    if self.cross_attention is None:
        return attribute(self, x, *rest)
    attention, ctx = rest
    x = x + self.cross_attention(self.cross_attention_norm(x), ctx)
    x = x + self.self_attention(self.attention_norm(x), attention, ctx)
    return x + self.ffn(self.ffn_norm(x), ctx)


def causal_encoder(attribute: Any) -> Any:
    return property(lambda self: replace(attribute.fget(self), architecture="decoder"))


def flipped(rows: Tensor) -> Tensor:
    return rows.flip(0)


def same(rows: Tensor) -> Tensor:
    return rows


CROSS_ATTENTION = [
    Break(what, owner, name, change, "encoder_decoder", check, design)
    for what, owner, name, change, check, design in (
        (
            *("keys are values", CrossAttention, "keys_values"),
            *(call(lambda a, self, hidden: a(self, hidden)[::-1]), against_reference, {}),
        ),
        (
            *("heads apart", CrossAttention, "keys_values", call(heads_apart)),
            *(against_reference, {}),
        ),
        (
            *("keys beside values", CrossAttention, "keys_values", call(interleaved)),
            *(against_reference, {}),
        ),
        *(
            (
                *(f"{qk_norm}: {name}", CrossAttention, name, call(bare), against_reference),
                {"qk_norm": qk_norm},
            )
            for qk_norm in (True, "gain", "all_channels")
            for name in ("normed_queries", "normed_keys")
        ),
        (
            *("no soft-cap", CrossAttention, "bias", call(without_soft_cap), against_reference),
            {"logit_softcap": 0.5},
        ),
        (
            *("no scale", CrossAttention, "normed_queries"),
            *(call(lambda a, self, q: a(self, q) / self.q_factor), against_reference),
            {"score_scale": 0.7},
        ),
        (
            *("positions", CrossAttention, "bias", call(with_positions), against_reference),
            {"scheme": "alibi"},
        ),
        (
            *("padding is seen", Memory, "visible", instead(property(lambda self: everything))),
            *(against_reference, {}),
        ),
        (
            *("causal", Memory, "visible", instead(property(lambda self: earlier))),
            *(against_reference, {}),
        ),
        (
            *("causal without padding", Memory, "visible"),
            *(instead(property(lambda self: earlier)), unpadded("sdpa"), {}),
        ),
        (
            *("nothing is read", CrossAttention, "forward"),
            *(call(lambda a, self, x, ctx: 0 * a(self, x, ctx)), against_reference, {}),
        ),
        (
            *("the decoder is read", CrossAttention, "forward", call(of_decoder)),
            *(against_reference, {}),
        ),
        ("not encoded", GPT, "encode", call(not_encoded), against_reference, {}),
        ("padding is encoded", GPT, "encode", call(padding_encoded), against_reference, {}),
        ("causal encoder", ModelConfig, "encoder", causal_encoder, unpadded("eager"), {}),
        ("no norm", Block, "forward", call(without_its_norm), against_reference, {}),
        ("first", Block, "forward", call(cross_attention_first), against_reference, {}),
        (
            *("one layer for all", Memory, "keys_values"),
            *(call(lambda a, self, layer, compute: a(self, 0, compute)), rows_of_a_memory, {}),
        ),
        (
            *("other rows' lengths", Memory, "select", selects(flipped, same)),
            *(rows_of_a_memory, {}),
        ),
        (
            *("other rows' keys", Memory, "select", selects(same, flipped)),
            *(rows_of_a_memory, {}),
        ),
    )
]

# --- schemes


def rolled_rows(attribute: Any, values: Tensor, first: int) -> Tensor:
    return attribute(values, first).roll(1, -1)


def signed(attribute: Any, q: Tensor, k: Tensor, two_sided: bool) -> Any:
    return signed_distance(q, k)


def of_earlier_keys(attribute: Any, q: Tensor, k: Tensor, two_sided: bool) -> Any:
    return attribute(q, k, False)


def on_bucket(change: Callable[..., Tensor]) -> Change:
    """Return a mutation of `t5_bucket` to change(t5_bucket, distance, buckets, max_distance)."""

    def broken(bucket: Any) -> Any:
        def run(distance: Tensor, n: int, longest: int, two_sided: bool = False) -> Tensor:
            if two_sided:
                return change(bucket, distance, n, longest)
            return bucket(distance, n, longest)

        return run

    return broken


def of_query(attribute: Any) -> Any:
    """torch, whose maximum of two positions is the first: that of the query."""

    def maximum(one: Tensor, other: Tensor) -> Tensor:
        return torch.maximum(one, other) if one.is_floating_point() else one

    return SimpleNamespace(**{**vars(torch), "maximum": maximum})


FAR: dict[str, Any] = {"threshold": 0.1}
SCHEME_BREAKS = [
    Break(f"{scheme}: {what}", owner, name, change, architecture, design={"scheme": scheme, **more})
    for architecture in ("prefix_decoder", "encoder")
    for scheme, what, owner, name, change, more in (
        *(
            (scheme, "rows shifted", base_of_schemes, "_shifted", call(rolled_rows), {})
            for scheme in ("relative", "relative_bias", "t5")
        ),
        ("alibi", "signed", alibi, "distance_between", call(signed), {}),
        ("alibi", "one side", alibi, "distance_between", call(of_earlier_keys), {}),
        ("kerple", "one side", kerple, "distance_between", call(of_earlier_keys), {}),
        *(
            ("t5", what, t5, "t5_bucket", on_bucket(change), {})
            for what, change in (
                ("one side", lambda bucket, d, n, longest: bucket(d.clamp(min=0), n, longest)),
                ("sides alike", lambda bucket, d, n, far: bucket(d.abs(), n // 2, far)),
                ("all buckets for both", lambda bucket, d, n, far: bucket(d.abs(), n, far)),
                ("sides swapped", lambda bucket, d, n, far: bucket(-d, n, far, True)),
                (
                    "0 is later",
                    lambda bucket, d, n, far: bucket(d.abs(), n // 2, far) + n // 2 * (d <= 0),
                ),
            )
        ),
        ("fire", "normalised by the query's position", fire, "torch", of_query, {"options": FAR}),
    )
]
BREAKS = [*MASKS, *CROSS_ATTENTION, *SCHEME_BREAKS]
each_break = pytest.mark.parametrize("broken", BREAKS, ids=str)


@each_break
def test_unbroken_models_pass(broken: Break) -> None:
    broken.check(broken.config)


@each_break
def test_broken_models_fail(broken: Break, monkeypatch: pytest.MonkeyPatch) -> None:
    config = broken.config
    attribute = getattr(broken.owner, broken.name)
    monkeypatch.setattr(broken.owner, broken.name, broken.change(attribute))
    assert fails(broken.check, config)


# --- the mutations of all schemes, where keys are on both sides


def earlier_keys_alone(hook: Any) -> Any:
    """Give all later keys the bias of distance 0."""

    def run(self: Any, q: Tensor, k: Tensor, i: Tensor, j: Tensor, layer: int) -> Any:
        mod = hook(self, q, k, i, j, layer)

        def clamped(s: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
            return mod(s, b, h, q_idx, torch.minimum(q_idx, kv_idx))

        return clamped

    return run


def reversed_direction(mod: ScoreMod, q: Tensor, k: Tensor) -> ScoreMod:
    return lambda s, b, h, i, j: mod(s, b, h, j, i)


TWO_SIDED = [
    *(m for m in MUTATIONS if "decoding" not in m.name),
    Mutation("later keys at distance 0", "score_mod", earlier_keys_alone),
    Mutation("direction reversed", "score_mod", on_score_mod(reversed_direction)),
]
# Mutations that rightly change nothing where keys are on both sides.
HARMLESS = {
    "direction reversed": ("alibi", "fire", "kerple"),  # they are symmetric
    "queries one further": ("integrated",),  # does not depend on the query's position
    "first row's positions for all": ("t5-4-6",),  # its buckets tell the side alone
}
CASES = [
    pytest.param(scheme, options, name, mutation, id=f"{name}-{mutation.hook}-{mutation.name}")
    for (scheme, options), name in zip(VARIANTS, VARIANT_IDS, strict=True)
    if scheme not in CAUSAL_SCHEMES
    for mutation in TWO_SIDED
    if mutation.applies(scheme, variant_config(scheme, options, architecture="encoder"))
]


@pytest.mark.parametrize(("scheme", "options", "name", "mutation"), CASES)
def test_broken_schemes_fail(
    scheme: str,
    options: Mapping[str, Any],
    name: str,
    mutation: Mutation,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = variant_config(
        scheme, options, architecture="encoder", n_embd=16, n_head=2, block_size=16
    )
    variant = POSITIONAL.variant(scheme)

    def check(config: ModelConfig) -> None:
        assert_equals_reference(config, "eager", 5, False)
        assert_equals_reference(config, "eager", 5, True)

    hook = getattr(variant, mutation.hook)
    monkeypatch.setattr(variant, mutation.hook, mutation.broken(hook))
    if {scheme, name} & {*HARMLESS.get(mutation.name, ())}:
        check(config)
    else:
        assert fails(check, config), "the check passes; if this is right, add it to HARMLESS"
