"""Prefix decoders, encoders and encoder-decoders, against the reference and against themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from minigpt.errors import UserError
from minigpt.model import GPT, ModelConfig
from minigpt.model.attention import ATTENTION
from minigpt.model.compatibility import problems, require_compatible
from minigpt.model.config import ARCHITECTURES, QK_NORMS
from minigpt.model.ffn import FFN
from minigpt.model.kv_cache import KVCache
from minigpt.model.norm import PLACEMENTS
from minigpt.model.positional import POSITIONAL
from minigpt.model.positional.t5 import t5_bucket
from tests.model.contract import (
    ATTENTION_IDS,
    ATTENTIONS,
    SCHEMES,
    TRAINABLE,
    VARIANT_IDS,
    VARIANTS,
    Lengths,
    assert_equal,
    assert_equals_reference,
    assert_packed_equals_separate,
    document_ids,
    logits_of,
    source_of,
    variant_config,
)
from tests.model.reference import ATTENTIONS as ROWS
from tests.model.reference import Positions, row_of, visible
from tests.model.tiny import (
    N_VOCAB,
    first_problem,
    gradients,
    random_model,
    random_tokens,
    tiny_config,
)

Options = Mapping[str, Any]
# Of two rows: prefixes, tokens before padding, or tokens of a source. Row 0 has no padding.
LENGTHS: dict[str, Lengths] = {
    "prefix_decoder": (2, 4),
    "encoder": (5, 3),
    "encoder_decoder": (4, 3),
}
OTHERS = [name for name in ARCHITECTURES if name != "decoder"]
# What is not defined for keys after the query.
CAUSAL_SCHEMES = ("cope",)
CAUSAL_ATTENTIONS = {
    "landmark": ("prefix_decoder", "encoder", "encoder_decoder"),
    "performer": ("prefix_decoder",),
}
ALLOWED_SCHEMES = [name for name in SCHEMES if name not in CAUSAL_SCHEMES]
ALLOWED_VARIANTS = [
    pytest.param(*variant, id=name)
    for variant, name in zip(VARIANTS, VARIANT_IDS, strict=True)
    if variant[0] not in CAUSAL_SCHEMES
]
each_architecture = pytest.mark.parametrize("architecture", OTHERS)
each_attention = pytest.mark.parametrize(("attention", "options"), ATTENTIONS, ids=ATTENTION_IDS)


def small(architecture: str, scheme: str = "rope", **changes: Any) -> ModelConfig:
    """Return a tiny config of an architecture, with one block in an encoder beside a decoder."""
    beside = {"n_encoder_layer": 1} if architecture == "encoder_decoder" else {}
    return tiny_config(scheme, **{"architecture": architecture, **beside, **changes})


def is_refused(attention: str, architecture: str) -> bool:
    return architecture in CAUSAL_ATTENTIONS.get(attention, ())


def backends_of(attention: str) -> list[str]:
    return TRAINABLE if ATTENTION.variant(attention).uses_backend else ["eager"]


# --- what is refused


@each_architecture
@pytest.mark.parametrize("scheme", SCHEMES)
def test_only_causal_schemes_are_refused(scheme: str, architecture: str) -> None:
    found = list(map(str, problems(small(architecture, scheme))))
    reason = f"model.positional.name={scheme}: is not defined for keys after the query; "
    assert [text.startswith(reason) for text in found] == [True] * (scheme in CAUSAL_SCHEMES)
    assert POSITIONAL.variant(scheme).has_two_sided_form == (scheme not in CAUSAL_SCHEMES)


@each_architecture
@each_attention
def test_only_causal_attentions_are_refused(
    attention: str, options: Options, architecture: str
) -> None:
    config = small(architecture, attention=attention, attention_options=options)
    found = list(map(str, problems(config)))
    assert len(found) == is_refused(attention, architecture)
    assert all(text.startswith(f"attention={attention}: ") for text in found)


def test_refused_choices_say_why() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"architecture": "encoder", "attention": "landmark"}, "attention=landmark: .*use bigbird"),
        (
            {"architecture": "prefix_decoder", "attention": "performer"},
            "attention=performer: its state is of earlier keys, or of all, not of a prefix",
        ),
        (
            {"architecture": "encoder", "positional": "nope", "n_layer": 0},
            "model.n_layer=0: without blocks no token sees another one",
        ),
        (
            {"architecture": "encoder", "n_encoder_layer": 1},
            "model.n_encoder_layer=1: model.architecture=encoder has no encoder",
        ),
        (
            {"architecture": "encoder_decoder", "block": "parallel"},
            "model.block=parallel: has no cross-attention",
        ),
        (
            {"positional": "t5", "options": {"buckets": 2}, "architecture": "encoder"},
            "model.positional.buckets=2: half of them are for keys after the query",
        ),
    ]
    for changes, reason in cases:
        with pytest.raises(UserError, match=f"^{reason}"):
            require_compatible(tiny_config(**changes))


# --- against the reference


@pytest.mark.medium
@each_architecture
@pytest.mark.parametrize(("scheme", "options"), ALLOWED_VARIANTS)
def test_equals_the_reference(scheme: str, options: Options, architecture: str) -> None:
    config = variant_config(
        scheme, options, architecture=architecture, n_embd=16, n_head=2, block_size=7
    )
    if architecture == "encoder_decoder":
        config = replace(config, n_encoder_layer=1)
    for backend in TRAINABLE:
        assert_equals_reference(config, backend, 5, False, LENGTHS[architecture])


@pytest.mark.parametrize("architecture", ["prefix_decoder", "encoder"])
@pytest.mark.parametrize("scheme", ALLOWED_SCHEMES)
def test_positions_of_rows_equal_the_reference(scheme: str, architecture: str) -> None:
    config, lengths = small(architecture, scheme), (5, 8) if architecture != "encoder" else None
    for backend in TRAINABLE:
        assert_equals_reference(config, backend, 5, True, lengths)


@each_architecture
@pytest.mark.parametrize("scheme", ["rope", "relative_bias"])
def test_without_lengths_equals_the_reference(scheme: str, architecture: str) -> None:
    """No prefix, and no padding."""
    for length in (1, 5):
        for backend in TRAINABLE:
            assert_equals_reference(small(architecture, scheme), backend, length, False)


@each_architecture
@each_attention
def test_attentions_equal_the_reference(
    attention: str, options: Options, architecture: str
) -> None:
    if is_refused(attention, architecture):
        return
    sizes: dict[str, Any] = {"n_head": 2, "n_embd": 8, "block_size": 9}
    sizes |= {"attention": attention, "attention_options": options}
    for scheme in ("rope", "t5"):
        config = small(architecture, scheme, **sizes)
        if scheme == "rope" or first_problem(config) is None:
            for backend in backends_of(attention):
                assert_equals_reference(config, backend, 7, False, LENGTHS[architecture])


@pytest.mark.parametrize("architecture", ["prefix_decoder", "encoder"])
@pytest.mark.parametrize(
    ("scheme", "options"),
    [
        ("t5", {"buckets": 8, "max_distance": 6, "layers": "own"}),
        ("relative", {"max_distance": 1}),
        ("fire", {"threshold": 0.1}),
    ],
    ids=str,
)
def test_long_distances_equal_the_reference(
    scheme: str, options: Options, architecture: str
) -> None:
    config = small(architecture, scheme, options=options)
    assert_equals_reference(config, "eager", 9, False, (4, 7))


@pytest.mark.medium
@each_architecture
@pytest.mark.parametrize("scheme", ["rope", "alibi", "t5", "relative", "integrated"])
def test_flex_equals_the_reference(scheme: str, architecture: str) -> None:
    assert_equals_reference(small(architecture, scheme), "flex", 5, False, LENGTHS[architecture])


@pytest.mark.medium
@each_architecture
@pytest.mark.parametrize("attention", ["sliding_window", "bigbird", "chunked"])
def test_flex_patterns_equal_the_reference(attention: str, architecture: str) -> None:
    options = next(options for name, options in ATTENTIONS if name == attention)
    sizes: dict[str, Any] = {"n_head": 2, "n_embd": 8, "block_size": 9}
    config = small(architecture, attention=attention, attention_options=options, **sizes)
    assert_equals_reference(config, "flex", 7, False, LENGTHS[architecture])


def test_t5_buckets_of_both_sides() -> None:
    for buckets, longest in ((4, 6), (8, 6), (32, 128), (10, 33)):
        scheme = row_of("t5")(small("encoder", "t5"), {})
        scheme.options = {"buckets": buckets, "max_distance": longest}
        half, distances = buckets // 2, [*range(-2 * longest, 2 * longest)]
        bucket = scheme.bucket  # pyright: ignore[reportAttributeAccessIssue]
        expected = [bucket(half, abs(d)) + half * (d < 0) for d in distances]
        actual = t5_bucket(torch.tensor(distances), buckets, longest, two_sided=True).tolist()
        assert actual == expected and {*actual} <= {*range(buckets)}


# --- options of cross-attention, and of both stacks


@pytest.mark.parametrize("qk_norm", QK_NORMS)
@pytest.mark.parametrize(
    "changes",
    [
        {"logit_softcap": 0.5},
        {"score_scale": 0.7, "bias": True},
        {"n_head": 4, "n_kv_head": 2, "n_embd": 16, "bias": "qkv"},
        {"head_size": 6, "n_kv_head": 1, "logit_softcap": 2.0, "score_scale": 1.0},
    ],
    ids=str,
)
def test_options_of_cross_attention(changes: dict[str, Any], qk_norm: bool | str) -> None:
    config = small("encoder_decoder", "relative", qk_norm=qk_norm, **changes)
    for backend in ("eager", "blockwise") if config.logit_softcap else TRAINABLE:
        assert_equals_reference(config, backend, 5, False, LENGTHS["encoder_decoder"])


@pytest.mark.parametrize(
    "changes",
    [
        *({"placement": placement, "kind": "layernorm"} for placement in PLACEMENTS),
        *({"ffn": ffn} for ffn in FFN.names()),
        {"n_layer": 1, "n_encoder_layer": 2},
        {"n_layer": 2, "n_encoder_layer": None},
        {"shared_embedding": False, "embedding": "tied", "vocab_multiple": 4},
        {"shared_embedding": True, "embedding": "tied"},
        {"n_encoder_layer": 2, "value_residual": True, "unet_skips": True},
        {"n_encoder_layer": 2, "value_residual": "x0", "head_gates": True},
        {"final_softcap": 0.5, "bias": True},
    ],
    ids=str,
)
def test_options_of_both_stacks(changes: dict[str, Any]) -> None:
    config = small("encoder_decoder", "relative_bias", **changes)
    assert first_problem(config) is None
    assert_equals_reference(config, "eager", 5, False, LENGTHS["encoder_decoder"])


def test_parameters_of_two_sided_schemes() -> None:
    heads, block, e = 3, 16, 8
    for architecture, n in (("decoder", 1), ("prefix_decoder", 2), ("encoder", 2)):
        for scheme, options, expected in (
            ("relative", {}, 2 * (n * block - (n - 1)) * e),
            ("relative", {"max_distance": 3}, 2 * (3 * n + 1) * e),
            ("relative_bias", {}, heads * (n * block - (n - 1))),
            ("t5", {}, heads * 32),
            ("kerple", {}, 2 * heads),
        ):
            config = variant_config(scheme, options, architecture=architecture)
            assert GPT(config, N_VOCAB).parameter_counts()["positional"] == expected
    config = variant_config("relative_bias", {}, architecture="encoder_decoder")
    own = heads * block + heads * (2 * block - 1)  # of the decoder, and of the encoder
    assert GPT(config, N_VOCAB).parameter_counts()["positional"] == own


# --- rows, padding and documents


@pytest.mark.usefixtures("float64")
@each_architecture
@each_attention
def test_rows_do_not_depend_on_each_other(
    attention: str, options: Options, architecture: str
) -> None:
    """Each row with its own prefix or padding, and the same for padding of any content."""
    if is_refused(attention, architecture):
        return
    config = small(architecture, attention=attention, attention_options=options, n_head=2, n_embd=8)
    tokens, source, lengths = random_tokens(3, 7), source_of(config, 3), (1, 4, 3)
    read = tokens if source is None else source
    changed = read.clone()
    for row, n in enumerate(lengths):
        changed[row, n:] = (changed[row, n:] + 1) % N_VOCAB
    for backend in backends_of(attention):
        model = random_model(replace(config, backend=replace(config.backend, name=backend)))
        together = logits_of(model, tokens, lengths=lengths, source=source)
        for row, n in enumerate(lengths):
            own = slice(row, row + 1)
            if architecture == "prefix_decoder":
                alone = logits_of(model, tokens[own], lengths=(n,))
                assert_equal(together[own], alone)
            elif source is None:
                assert_equal(together[own, :n], model(tokens[own, :n]))
            else:
                alone = logits_of(model, tokens[own], source=source[own, :n])
                assert_equal(together[own], alone)
        if architecture == "encoder":
            again = logits_of(model, changed, lengths=lengths)
            for row, n in enumerate(lengths):
                assert_equal(again[row, :n], together[row, :n])
        elif source is not None:
            again = logits_of(model, tokens, lengths=lengths, source=changed)
            assert_equal(again, together)


@pytest.mark.medium
@pytest.mark.parametrize("backend", TRAINABLE)
@pytest.mark.parametrize("architecture", ["prefix_decoder", "encoder"])
@pytest.mark.parametrize("scheme", ALLOWED_SCHEMES)
def test_packed_documents_equal_separate_ones(scheme: str, architecture: str, backend: str) -> None:
    lengths = (2, 5, 1, 13, 1) if architecture == "prefix_decoder" else None
    assert_packed_equals_separate(small(architecture, scheme), backend, lengths=lengths)


@pytest.mark.medium
@pytest.mark.parametrize("architecture", ["prefix_decoder", "encoder"])
@pytest.mark.parametrize("attention", ["full", "sliding_window", "bigbird", "chunked"])
def test_packed_documents_of_patterns(attention: str, architecture: str) -> None:
    options = next(options for name, options in ATTENTIONS if name == attention)
    config = small(architecture, attention=attention, attention_options=options, n_head=2, n_embd=8)
    lengths = (2, 5, 1, 13, 1) if architecture == "prefix_decoder" else None
    for backend in (*TRAINABLE, "flex"):
        assert_packed_equals_separate(config, backend, lengths=lengths)


# --- which tokens an output depends on


def changes_by_token(model: GPT, tokens: Tensor, changed: str, **inputs: Any) -> list[list[bool]]:
    """Return for each output whether it changes with each of the tokens, or of the source."""
    read = tokens if changed == "tokens" else inputs["source"]
    n = read.shape[1]
    variants = read.expand(n + 1, -1).clone()
    for index in range(n):
        variants[index, index] = (variants[index, index] + 3) % N_VOCAB
    for name in ("source", "document_ids"):
        if name in inputs:
            inputs[name] = inputs[name].expand(n + 1, -1)
    if inputs.get("lengths") is not None:
        inputs["lengths"] = inputs["lengths"] * (n + 1)
    if changed == "source":
        inputs["source"] = variants
        logits = logits_of(model, tokens.expand(n + 1, -1), **inputs)
    else:
        logits = logits_of(model, variants, **inputs)
    difference = (logits[:-1] - logits[-1:]).abs().amax(-1)  # (changed token, output)
    assert not ((difference > 1e-12) & (difference < 1e-8)).any(), "too small to tell"
    return (difference.T > 1e-10).tolist()


def reachable(config: ModelConfig, length: int, n: int | None, ids: list[int]) -> Tensor:
    """Return which outputs (rows) depend on which tokens, from the reference's masks."""
    scheme, sees = Positions(config, {}), visible(config, n)
    pattern = ROWS[config.attention.name](config, scheme, {}, sees)
    starts = [min(k for k in range(length) if ids[k] == ids[i]) for i in range(length)]
    end = n if config.architecture == "encoder" and n is not None else length
    reach = torch.eye(length, dtype=torch.bool)
    names = getattr(config.attention, "layers", [config.attention.name])
    for layer in range(config.n_layer):
        own = names[layer % len(names)] == config.attention.name
        mask = torch.zeros(length, length, dtype=torch.bool)
        for i in range(length):
            for j in range(length):
                at = i - starts[i], j - starts[j]
                attends = not own or any(pattern.attends(h, *at) for h in range(config.n_head))
                mask[i, j] = ids[i] == ids[j] and sees(*at) and attends and j < end
        mask |= torch.eye(length, dtype=torch.bool)  # the residual connection
        reach = (mask.int() @ reach.int()) > 0
    return reach


PACKED = (3, 5, 1)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("documents", [False, True], ids=["", "documents"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@each_attention
def test_outputs_depend_on_what_they_see(
    attention: str, options: Options, architecture: str, documents: bool
) -> None:
    if attention == "landmark" or is_refused(attention, architecture):
        return
    if documents and not ATTENTION.variant(attention).supports_documents:
        return
    config = small(architecture, attention=attention, attention_options=options, n_head=2, n_embd=8)
    tokens, ids = random_tokens(1, 9, seed=4), document_ids((9,) if not documents else PACKED)
    inputs: dict[str, Any] = {"document_ids": ids[None]} if documents else {}
    if config.encoder is not None:
        inputs["source"] = source_of(config, 1)
    lengths = {"prefix_decoder": (4, 2), "encoder": (None, 3)}.get(architecture, (None,))
    for n in lengths:
        if architecture == "encoder" and n is not None and documents:
            continue  # padding is at the end of a row, not of each document
        inputs["lengths"] = None if n is None else (n,)
        expected = reachable(config, 9, n, ids.tolist())
        for backend in backends_of(attention):
            model = random_model(replace(config, backend=replace(config.backend, name=backend)))
            changes = changes_by_token(model, tokens, "tokens", **inputs)
            last = n if architecture == "encoder" else None  # what padding predicts is not read
            assert changes[:last] == expected.tolist()[:last]
    if architecture == "encoder" and attention == "full" and not documents:
        assert reachable(config, 9, None, ids.tolist()).all()


@pytest.mark.usefixtures("float64")
@each_attention
def test_all_outputs_depend_on_the_source(attention: str, options: Options) -> None:
    if is_refused(attention, "encoder_decoder"):
        return
    config = small(
        "encoder_decoder", attention=attention, attention_options=options, n_head=2, n_embd=8
    )
    tokens, source = random_tokens(1, 7), source_of(config, 1)
    for backend in backends_of(attention):
        model = random_model(replace(config, backend=replace(config.backend, name=backend)))
        for lengths, expected in ((None, [True] * 4), ((3,), [True] * 3 + [False])):
            changes = changes_by_token(model, tokens, "source", source=source, lengths=lengths)
            assert changes == [expected] * 7


# --- decoding


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("architecture", ["prefix_decoder", "encoder_decoder"])
@pytest.mark.parametrize("scheme", ALLOWED_SCHEMES)
def test_cached_equals_full(scheme: str, architecture: str) -> None:
    for backend in TRAINABLE:
        assert_cached_equals_full(small(architecture, scheme, backend=backend))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("architecture", ["prefix_decoder", "encoder_decoder"])
@each_attention
def test_cached_attentions_equal_full(attention: str, options: Options, architecture: str) -> None:
    if is_refused(attention, architecture):
        return
    for backend in backends_of(attention):
        sizes: dict[str, Any] = {"n_head": 2, "n_embd": 8, "backend": backend}
        sizes |= {"attention": attention, "attention_options": options}
        assert_cached_equals_full(small(architecture, **sizes))


@torch.no_grad()
def assert_cached_equals_full(config: ModelConfig) -> None:
    """Assert that a prefill that holds both prefixes, and single tokens, equal one full pass."""
    tokens, source, lengths = (
        random_tokens(2, 9),
        source_of(config, 2),
        LENGTHS[config.architecture],
    )
    model, n = random_model(config), torch.tensor(lengths)
    cache = KVCache(2, 12, torch.device("cpu"))
    rest = {"lengths": n} if source is None else {"memory": model.encode(source, n)}
    parts = [model(tokens[:, :4], cache=cache, **rest)]
    for p in range(4, 9):
        parts.append(model(tokens[:, p : p + 1], torch.full((1, 1), p), cache, **rest))
    assert_equal(torch.cat(parts, dim=1), logits_of(model, tokens, lengths=lengths, source=source))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("lengths", [None, (4, 1, 3)])
def test_a_memory_selects_rows(lengths: Lengths) -> None:
    config = small("encoder_decoder")
    model, tokens, source = random_model(config), random_tokens(3, 5), source_of(config, 3)
    assert source is not None
    full = logits_of(model, tokens, lengths=lengths, source=source)
    rows = torch.tensor([2, 0, 2, 1])
    with torch.no_grad():
        memory = model.encode(source, None if lengths is None else torch.tensor(lengths))
        unread = memory.select(rows)
        assert_equal(model(tokens[rows], memory=unread), full[rows].detach())
        assert_equal(model(tokens, memory=memory), full.detach())
        assert_equal(model(tokens[rows], memory=memory.select(rows)), full[rows].detach())
        kept = [memory.keys_values(layer, lambda hidden: (hidden, hidden)) for layer in range(2)]
        assert not torch.equal(kept[0][0], kept[1][0])


def test_a_memory_keeps_nothing_with_gradients() -> None:
    model, tokens = random_model(small("encoder_decoder")), random_tokens(1, 3)
    memory = model.encode(random_tokens(1, 4))
    for _ in range(2):  # the second pass computes keys and values again
        grads = gradients(model(tokens, memory=memory.select(torch.tensor([0]))).sum(), model)
        assert grads["blocks.0.cross_attention.kv.weight"].any()
        memory = model.encode(random_tokens(1, 4))
