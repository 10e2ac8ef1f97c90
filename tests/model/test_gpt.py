"""The whole model: feed-forward layers, norms, initialization, vocabulary padding, counts."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.config.compose import composed_config
from minigpt.errors import UserError
from minigpt.inference.generate import Sampling, generate
from minigpt.model import GPT
from minigpt.model.compatibility import require_compatible
from minigpt.model.config import EMBEDDINGS, RESIDUAL_INITS
from minigpt.model.context import Auxiliary
from minigpt.model.ffn import FFN
from minigpt.model.norm import KINDS, PLACEMENTS, NormConfig
from minigpt.model.positional import POSITIONAL
from minigpt.model.self_attention import SelfAttention
from tests.model.contract import VARIANTS, variant_config
from tests.model.reference import FEED_FORWARDS, NORMS, reference_logits, reference_loss
from tests.model.tiny import (
    N_VOCAB,
    composed_model,
    default_dtype,
    gradients,
    random_model,
    random_tokens,
    tiny_config,
)

SCHEMES = POSITIONAL.names()


def next_token_loss(model: GPT, tokens: Tensor) -> Tensor:
    """Return the mean next-token loss."""
    return model.loss(tokens[:, :-1], tokens[:, 1:])


@pytest.mark.parametrize("ffn", FFN.names())
def test_every_registered_ffn_has_a_reference(ffn: str) -> None:
    assert ffn in FEED_FORWARDS, (
        f"ffn={ffn} is registered: give it a row in FEED_FORWARDS of reference.py"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_norm_has_a_reference(kind: str) -> None:
    assert kind in NORMS, f"model.norm.kind={kind}: give it a row in NORMS of reference.py"


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ffn", FFN.names())
@pytest.mark.parametrize(("embedding", "qk_norm"), [("tied", False), ("untied", True)])
def test_equals_the_reference(
    ffn: str, kind: str, placement: str, embedding: str, qk_norm: bool
) -> None:
    with default_dtype(torch.float64):
        config = tiny_config(
            *("learned", ffn, "eager", embedding, placement, kind), bias=True, qk_norm=qk_norm
        )
        model = random_model(config)
        tokens, targets = random_tokens(2, 3), random_tokens(2, 3, seed=1)
        logits = model(tokens)
        weights = dict(model.named_parameters())
        positions = torch.arange(3).expand(2, -1)
        expected = reference_logits(config, weights, N_VOCAB, tokens, positions)
        grads = gradients(F.cross_entropy(logits.flatten(0, 1), targets.flatten()), model)
        expected_grads = gradients(reference_loss(expected, targets), model)
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("scheme", ["rope", "relative"])
@pytest.mark.parametrize("n_kv_head", [1, None])
def test_qk_norm_with_a_gain_equals_the_reference(scheme: str, n_kv_head: int | None) -> None:
    config = tiny_config(scheme, n_kv_head=n_kv_head, qk_norm="gain")
    model = random_model(config)
    tokens, targets = random_tokens(2, 5), random_tokens(2, 5, seed=1)
    logits, weights = model(tokens), dict(model.named_parameters())
    assert weights["blocks.0.self_attention.qk_gain"].shape == (3,)
    expected = reference_logits(config, weights, N_VOCAB, tokens, torch.arange(5).expand(2, -1))
    grads = gradients(F.cross_entropy(logits.flatten(0, 1), targets.flatten()), model)
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)
    expected_grads = gradients(reference_loss(expected, targets), model)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-10, atol=1e-10)


def test_a_gain_starts_as_qk_norm_and_lifts_its_cap() -> None:
    """Aligned queries and keys score sqrt(head_size) without a gain, gain times it with one."""
    models = []
    for qk_norm in (True, "gain"):
        torch.manual_seed(0)
        models.append(GPT(tiny_config("nope", qk_norm=qk_norm, residual_init="scaled"), N_VOCAB))
    plain, gained = models
    tokens = random_tokens(2, 9)
    assert torch.equal(plain(tokens), gained(tokens))
    assert gained.parameter_counts()["total"] - plain.parameter_counts()["total"] == 2 * 3
    largest: list[float] = []

    def scores(q: Tensor, k: Tensor, v: Tensor, *_: object) -> Tensor:
        largest.append((q @ k.mT / q.shape[-1] ** 0.5).abs().max().item())
        return v

    for model in models:
        for module in model.modules():
            if isinstance(module, SelfAttention):
                size = module.head_size * 3
                with torch.no_grad():  # the same projection for queries and keys
                    module.qkv.weight[size : 2 * size] = module.qkv.weight[:size]
                    if module.qk_gain is not None:
                        module.qk_gain.fill_(5.0)
        model.backend = scores
        model(tokens)
    cap = 4**0.5
    assert largest == pytest.approx([cap, cap, 5 * cap, 5 * cap], rel=0.01)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("kind", KINDS)
def test_norms_use_the_fused_kernel_in_bf16(kind: str, placement: str) -> None:
    """torch warns and is slow if the dtypes of a norm's input and gain differ."""
    model = random_model(tiny_config(placement=placement, kind=kind))
    with warnings.catch_warnings(), torch.autocast("cpu", torch.bfloat16):
        warnings.simplefilter("error")
        next_token_loss(model, random_tokens(2, 7)).backward()


@pytest.mark.parametrize("placement", ["pre", "post"])
@pytest.mark.parametrize("kind", KINDS)
def test_norms_without_parameters_equal_the_reference(kind: str, placement: str) -> None:
    with default_dtype(torch.float64):
        plain = tiny_config("rope", placement=placement, kind=kind, bias=True)
        model = random_model(replace(plain, norm=replace(plain.norm, affine=False, eps=0.1)))
        assert not any("norm" in name for name, _ in model.named_parameters())
        tokens, positions = random_tokens(2, 5), torch.arange(5).expand(2, -1)
        weights = dict(model.named_parameters())
        expected = reference_logits(model.config, weights, N_VOCAB, tokens, positions)
        torch.testing.assert_close(model(tokens), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("residual_init", RESIDUAL_INITS)
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ffn", FFN.names())
def test_all_parameters_get_gradients(
    ffn: str, kind: str, placement: str, residual_init: str
) -> None:
    torch.manual_seed(0)
    n_layer = 1 if placement == "no_residual" else 2  # in more, gradients underflow to zero
    options = {"bias": True, "residual_init": residual_init, "n_layer": n_layer}
    config = tiny_config(*("learned", ffn, "sdpa", "untied", placement, kind), **options)
    model = GPT(config, N_VOCAB)
    tokens = random_tokens(4, 17)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = next_token_loss(model, tokens)
    loss.backward()
    optimizer.step()  # zero-initialized branches pass gradients only after the first step
    optimizer.zero_grad()
    after = next_token_loss(model, tokens)
    after.backward()
    assert loss.isfinite() and after < loss
    auxiliary = Auxiliary()
    model(tokens[:, :-1], auxiliary=auxiliary)
    unused = tuple(
        f"blocks.{layer}.ffn.experts.{expert}."
        for layer, shares in enumerate(auxiliary.metrics.values())
        for expert, usage in enumerate(shares)
        if usage == 0  # no token was routed to it
    )
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} got no gradient"
        assert parameter.grad.isfinite().all(), name
        assert bool(parameter.grad.any()) != name.startswith(unused), name


def test_loss_is_the_mean_in_nats_per_token() -> None:
    model = random_model(tiny_config())
    tokens, targets = random_tokens(2, 7), random_tokens(2, 7, seed=1)
    expected = reference_loss(model(tokens), targets)
    torch.testing.assert_close(model.loss(tokens, targets), expected)
    torch.testing.assert_close(model.loss(tokens, targets, reduction="sum"), 14 * expected)


def test_initial_loss_is_that_of_a_uniform_distribution() -> None:
    torch.manual_seed(0)
    for name in SCHEMES:
        loss = next_token_loss(GPT(tiny_config(name), N_VOCAB), random_tokens(4, 17))
        assert loss.item() == pytest.approx(torch.tensor(N_VOCAB).log().item(), abs=0.05)


def test_tied_head_shares_the_token_embedding() -> None:
    tied = GPT(tiny_config(embedding="tied"), N_VOCAB)
    untied = GPT(tiny_config(embedding="untied"), N_VOCAB)
    assert tied.head.weight is tied.token_embedding.weight
    assert untied.head.weight.data_ptr() != untied.token_embedding.weight.data_ptr()
    tied_counts, untied_counts = tied.parameter_counts(), untied.parameter_counts()
    assert untied_counts["total"] - tied_counts["total"] == N_VOCAB * 12
    assert untied_counts["non_embedding"] == tied_counts["non_embedding"]


def test_gpt2_parameter_counts() -> None:
    n_layer, n_head, d, block, n_vocab = 3, 4, 32, 20, 65
    overrides = [f"model.n_layer={n_layer}", f"model.n_head={n_head}", f"model.n_embd={d}"]
    model = GPT(composed_model("model=gpt2", *overrides, f"model.block_size={block}"), n_vocab)
    attention = (d * 3 * d + 3 * d) + (d * d + d)
    ffn = (d * 4 * d + 4 * d) + (4 * d * d + d)
    norms = 2 * 2 * d
    non_embedding = n_layer * (attention + ffn + norms) + 2 * d
    assert model.parameter_counts() == {
        "total": non_embedding + n_vocab * d + block * d,
        "active": non_embedding + n_vocab * d + block * d,
        "non_embedding": non_embedding,
        "positional": block * d,
    }


def test_llama_parameter_counts() -> None:
    n_layer, n_head, d, n_vocab = 3, 4, 32, 65
    overrides = [f"model.n_layer={n_layer}", f"model.n_head={n_head}", f"model.n_embd={d}"]
    model = GPT(composed_model("model=llama", *overrides), n_vocab)
    hidden = 88  # 8/3 * 32 = 85.3, rounded up to a multiple of 8
    non_embedding = n_layer * (4 * d * d + 3 * d * hidden + 2 * d) + d
    assert model.parameter_counts() == {
        "total": non_embedding + 2 * n_vocab * d,
        "active": non_embedding + 2 * n_vocab * d,
        "non_embedding": non_embedding,
        "positional": 0,
    }


def test_schemes_differ_only_in_positional_parameters() -> None:
    counts = {
        (name, *options.values()): GPT(variant_config(name, options), N_VOCAB).parameter_counts()
        for name, options in VARIANTS
    }
    assert len({count["non_embedding"] for count in counts.values()}) == 1
    assert len({count["total"] - count["positional"] for count in counts.values()}) == 1
    layers, heads, block, d, e = 2, 3, 16, 24, 8
    expected = {
        ("alibi",): 0,
        ("alibi", "learned"): heads,
        ("block_input",): layers * block * d,
        ("block_input", "sinusoidal", 10000.0): 0,
        ("cope",): layers * (block + 1) * e,
        ("cope", 3): layers * 4 * e,
        ("fire",): (2 + heads) * 32 + 2,
        ("fire", "own", 5): layers * ((2 + heads) * 5 + 2),
        ("integrated",): layers * block * e,
        ("integrated", "own"): layers * heads * block * e,
        ("kerple",): 2 * heads,
        ("kerple", "own"): layers * 2 * heads,
        ("learned",): block * d,
        ("nope",): 0,
        ("relative",): layers * block * e,
        ("relative", 3): layers * 4 * e,
        ("relative_bias",): heads * block,
        ("relative_bias", "own"): layers * heads * block,
        ("rope",): 0,
        ("sinusoidal",): 0,
        ("t5",): heads * 32,
        ("t5", "own"): layers * heads * 32,
        ("xpos",): 0,
    }
    assert {name: counts[name]["positional"] for name in expected} == expected


@pytest.mark.parametrize("residual_init", RESIDUAL_INITS)
def test_schemes_have_the_same_initial_weights(residual_init: str) -> None:
    initial: list[dict[str, Tensor]] = []
    for name, options in VARIANTS:
        torch.manual_seed(1)
        model = GPT(variant_config(name, options, residual_init=residual_init), N_VOCAB)
        state = model.state_dict()
        initial.append({k: v for k, v in state.items() if not k.startswith("positional.")})
        assert initial[-1].keys() == initial[0].keys()
        for key, weight in initial[-1].items():
            assert torch.equal(weight, initial[0][key]), f"{name} {options}: {key}"


def test_grouped_queries_shrink_the_qkv_projection() -> None:
    for n_kv_head in (1, 2, 4, None):
        config = tiny_config(n_head=4, n_embd=16, n_kv_head=n_kv_head, bias=True)
        qkv = 16 + 2 * 4 * (n_kv_head or 4)
        for block in GPT(config, N_VOCAB).blocks:
            assert block.get_parameter("self_attention.qkv.weight").shape == (qkv, 16)
            assert block.get_parameter("self_attention.qkv.bias").shape == (qkv,)


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_flops_per_token(embedding: str) -> None:
    config = tiny_config("learned", "gelu", embedding=embedding, bias=False)
    # Two layers of 12 d^2, the head; 12 L d T for attention.
    matrices = 2 * 12 * 12**2 + N_VOCAB * 12
    # Embeddings are lookups and cost no FLOPs.
    assert GPT(config, N_VOCAB).flops_per_token(1) == 6 * matrices + 12 * 2 * 12 * 16


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_vocabulary_padding_does_not_affect_logits_or_gradients(embedding: str) -> None:
    n_vocab = 65
    config = tiny_config(embedding=embedding)
    plain = random_model(config, n_vocab)
    padded = random_model(replace(config, vocab_multiple=64), n_vocab)
    tokens = random_tokens(2, 9, n_vocab)
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            padded.get_parameter(name)[: len(weight)] = weight
        padded.head.weight[n_vocab:] = 100.0
    assert padded.head.weight.shape == padded.token_embedding.weight.shape == (128, 12)

    assert padded(tokens).shape == (2, 9, n_vocab)
    assert torch.equal(padded(tokens), plain(tokens))
    loss, expected = next_token_loss(padded, tokens), next_token_loss(plain, tokens)
    assert torch.equal(loss, expected)
    grads, expected_grads = gradients(loss, padded), gradients(expected, plain)
    for name in expected_grads:
        torch.testing.assert_close(grads[name][: len(expected_grads[name])], expected_grads[name])
        assert not grads[name][len(expected_grads[name]) :].any(), f"{name}: padding has a gradient"


def test_generation_never_samples_padding() -> None:
    model = random_model(tiny_config(vocab_multiple=64), n_vocab=3)
    with torch.no_grad():
        model.head.weight[3:] = 100.0
    sampled = generate(model, [[0]], 100, Sampling(temperature=10.0), seed=0, context="all")
    assert {token for tokens in sampled for token in tokens} == {0, 1, 2}


def test_vocabulary_is_padded_to_a_multiple() -> None:
    for multiple, n_vocab, padded in ((1, 65, 65), (64, 64, 64), (64, 65, 128), (8, 3, 8)):
        model = GPT(tiny_config(vocab_multiple=multiple), n_vocab)
        assert model.head.weight.shape[0] == padded


@pytest.mark.parametrize("ffn", FFN.names())
@pytest.mark.parametrize("scheme", SCHEMES)
def test_zero_residual_init_starts_as_identity(scheme: str, ffn: str) -> None:
    for placement in ("pre", "sandwich", "peri"):
        config = tiny_config(
            scheme, ffn, placement=placement, residual_init="zero", bias=True, kind="layernorm"
        )
        model, tokens = GPT(config, N_VOCAB), random_tokens(2, 9)
        x = model.positional.embed(model.token_embedding(tokens), torch.arange(9)[None])
        expected = model.head(model.final_norm(model.embedding_norm(x)))
        assert torch.equal(model(tokens), expected)


@pytest.mark.parametrize("placement", ["sandwich", "peri"])
def test_output_norms_take_the_residual_init(placement: str) -> None:
    torch.manual_seed(0)
    for residual_init, gain in (("zero", 0.0), ("scaled", 1 / 4), ("normal", 1.0)):
        config = tiny_config(
            placement=placement, n_layer=8, n_embd=96, residual_init=residual_init, n_head=4
        )
        for name, parameter in GPT(config, N_VOCAB).named_parameters():
            if name.endswith("output_norm.weight"):
                assert (parameter == gain).all(), name
            elif name.endswith("out.weight"):
                assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name


@pytest.mark.parametrize(("residual_init", "residual_std"), [("scaled", 0.005), ("normal", 0.02)])
@pytest.mark.parametrize("ffn", FFN.names())
def test_initial_weights(ffn: str, residual_init: str, residual_std: float) -> None:
    torch.manual_seed(0)
    config = tiny_config(
        "learned", ffn, n_layer=8, n_embd=96, residual_init=residual_init, bias=True
    )
    branches: set[str] = set()
    for name, parameter in GPT(config, 200).named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif parameter.ndim == 1:
            assert (parameter == 1).all(), name
        elif name.endswith("taps"):
            assert (parameter[-1] == 1).all() and not parameter[:-1].any(), name
        else:
            is_residual = name.endswith("out.weight")
            if is_residual:
                branches.add(".".join(name.split(".")[:3]))
            std = residual_std if is_residual else 0.02
            rel = 5 / math.sqrt(2 * parameter.numel())  # five standard errors
            assert parameter.std().item() == pytest.approx(std, rel=rel), name
    assert len(branches) == 2 * 8  # so 0.005 is 0.02 / sqrt(2 * 8)


def test_bigram_depends_only_on_the_current_token() -> None:
    model = random_model(composed_model("model=bigram"))
    rows = model(random_tokens(4, 9))
    for row, tokens in zip(rows, random_tokens(4, 9), strict=True):
        for logits, token in zip(row, tokens, strict=True):
            torch.testing.assert_close(logits, model(token[None, None])[0, 0])
    assert model.parameter_counts()["non_embedding"] == composed_model("model=bigram").n_embd
    model(random_tokens(1, 9)).sum().backward()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.n_head=5"], r"model\.n_head=5: must divide model\.n_embd=128; use 2, 4, 8 heads"),
        (["model.n_head=0"], r"model\.n_head=0: "),
        (["model.n_layer=-1"], r"model\.n_layer=-1: "),
        (["model.n_embd=0"], r"model\.n_embd=0: "),
        (["model.block_size=0"], r"model\.block_size=0: "),
        (["model.vocab_multiple=0"], r"model\.vocab_multiple=0: "),
        (["model.dropout=1"], r"model\.dropout=1.*: must be in \[0, 1\)"),
        (["model.dropout=-0.1"], r"model\.dropout=-0\.1: "),
        (["model.residual_init=scald"], r"model\.residual_init=scald: .*Did you mean scaled\?"),
        (["model.norm.kind=rms"], r"model\.norm\.kind=rms: not one of layernorm, rmsnorm"),
        (
            ["model.n_layer=1", "model.unet_skips=true"],
            r"model\.unet_skips=true: .*n_layer=1; use 2",
        ),
        (
            ["model.n_layer=1", "model.value_residual=true"],
            r"model\.value_residual=first_layer: connects layers",
        ),
        (
            ["model.value_residual=first"],
            r"model\.value_residual=first: must be false, first_layer or x0",
        ),
        (
            ["model=bigram", "model.head_gates=true"],
            r"model\.head_gates=true: needs blocks, but model\.n_layer=0",
        ),
        (["model.norm.eps=0"], r"model\.norm\.eps=0\.0: must be above 0"),
        (["norm=peri", "model.norm.affine=false"], r"model\.norm\.affine=false: with norm=peri "),
        (["model.norm.placement=pree"], r"model\.norm\.placement=pree: .*Did you mean pre\?"),
        (["model.embedding.name=tie"], r"model\.embedding\.name=tie: .*Did you mean tied"),
        (["model.ffn.expansion=0"], r"model\.ffn\.expansion=0.*: must be above 0"),
        (["ffn=moe", "model.ffn.n_expert=0"], r"model\.ffn\.n_expert=0: must be 1 or more"),
        (["ffn=moe", "model.ffn.n_active=0"], r"model\.ffn\.n_active=0: must be from 1 to .*=8"),
        (["ffn=moe", "model.ffn.n_active=9"], r"model\.ffn\.n_active=9: must be from 1 to .*=8"),
        (["ffn=moe", "model.ffn.balance=-1"], r"model\.ffn\.balance=-1.*: must be 0 or more"),
        (["ffn=moe", "model.ffn.expansion=0"], r"model\.ffn\.expansion=0.*: must be above 0"),
        (
            ["ffn=moe", "model.ffn.expert=moe"],
            r"model\.ffn\.expert=moe: not one of geglu, geglu_tanh, ",
        ),
        (["ffn=moe", "model.ffn.expert=swiglo"], r".*swiglo: .*Did you mean swiglu"),
        (["model.positional.base=1"], r"model\.positional\.base=1.*: "),
        (["model.n_kv_head=0"], r"model\.n_kv_head=0: must be 1 or more"),
        (
            ["model.n_kv_head=3"],
            r"model\.n_kv_head=3: must divide model\.n_head=4; use 1, 2, 4",
        ),
        (["model.logit_softcap=0"], r"model\.logit_softcap=0.*: must be above 0, or null"),
        (["model.logit_softcap=-1"], r"model\.logit_softcap=-1.*: must be above 0, or null"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_invalid_values_are_rejected(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=rf"^{message}"):
        composed_config(overrides)


@pytest.mark.parametrize(
    ("scheme", "options", "message"),
    [
        ("alibi", ["slopes=learnt"], "slopes=learnt: not one of fixed, learned"),
        ("block_input", ["table=learnt"], "table=learnt: not one of learned, sinusoidal"),
        ("block_input", ["base=100"], "base=100.*: a learned table has no base; use null"),
        ("block_input", ["table=sinusoidal"], "base=null: use a number above 1"),
        ("block_input", ["table=sinusoidal", "base=1"], r"base=1.*: use a number above 1"),
        ("cope", ["max_position=0"], "max_position=0: must be 1 or more, or null"),
        ("fire", ["layers=owned"], "layers=owned: not one of shared, own"),
        ("fire", ["width=0"], "width=0: must be 1 or more"),
        ("fire", ["threshold=0"], r"threshold=0.*: must be above 0"),
        ("integrated", ["heads=each"], "heads=each: not one of shared, own"),
        ("kerple", ["layers=each"], "layers=each: not one of shared, own"),
        ("relative", ["max_distance=0"], "max_distance=0: must be 1 or more, or null"),
        ("relative_bias", ["layers=each"], "layers=each: not one of shared, own"),
        ("rope", ["base=1"], r"base=1.*: use a number above 1"),
        ("rope", ["fraction=0"], r"fraction=0.*: must be above 0 and at most 1"),
        ("rope", ["fraction=1.5"], r"fraction=1\.5: must be above 0 and at most 1"),
        ("rope", ["scaling=yarm"], "scaling=yarm: .*Did you mean yarn"),
        (
            "rope",
            ["factor=2"],
            r"factor=2.*: has no effect without scaling; set model\.positional\.scaling=",
        ),
        ("rope", ["scaling=linear", "factor=0.5"], r"factor=0\.5: must be above 1 with "),
        ("rope", ["scaling=yarn"], r"factor=1.*: must be above 1 with .*scaling=yarn, such as 4"),
        ("sinusoidal", ["base=0.5"], r"base=0\.5: use a number above 1"),
        ("t5", ["layers=each"], "layers=each: not one of shared, own"),
        ("t5", ["buckets=7"], "buckets=7: must be an even number of 2 or more"),
        ("t5", ["buckets=0"], "buckets=0: must be an even number of 2 or more"),
        ("t5", ["max_distance=16"], r"max_distance=16: must be above half of .*buckets=32"),
        ("xpos", ["base=1"], r"base=1.*: use a number above 1"),
        ("xpos", ["scale_base=0"], r"scale_base=0.*: must be 1 or more"),
        ("xpos", ["gamma=0"], r"gamma=0.*: must be above 0"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_invalid_scheme_options_are_rejected(scheme: str, options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=rf"^model\.positional\.{message}"):
        composed_config([f"positional={scheme}", *(f"model.positional.{o}" for o in options)])


def test_schemes_reject_odd_sizes() -> None:
    why = r"^model\.n_head=4: .*head size 3 .*; choose another number of heads$"
    for scheme in ("rope", "xpos"):
        with pytest.raises(UserError, match=why):
            require_compatible(tiny_config(scheme, n_head=4))
    with pytest.raises(UserError, match=r"^model\.n_head=3: .*fraction=0\.25 of the head size 4 "):
        require_compatible(tiny_config("rope", options={"fraction": 0.25}))
    ntk = {"scaling": "ntk", "factor": 2.0, "fraction": 0.5}
    with pytest.raises(UserError, match=r"^model\.positional\.scaling=ntk: .*two or more rotated"):
        require_compatible(tiny_config("rope", options=ntk))
    with pytest.raises(UserError, match=r"^model\.n_embd=15: .*even width"):
        require_compatible(tiny_config("sinusoidal", n_embd=15))
    waves = {"table": "sinusoidal", "base": 10.0}
    with pytest.raises(UserError, match=r"^model\.n_embd=15: .*even width"):
        require_compatible(tiny_config("block_input", options=waves, n_embd=15))


def test_unknown_norm_suggests_a_known_one() -> None:
    with pytest.raises(UserError, match=r"^model\.norm\.kind=layer_norm: .*Did you mean layernorm"):
        NormConfig("pre", "layer_norm")


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_loss_in_chunks_equals_loss_at_once(reduction: str, bf16: bool) -> None:
    """3 windows of 7 tokens in chunks of 5 give the same loss and gradients."""
    model = random_model(composed_model("model.vocab_multiple=8"))
    tokens = torch.randint(N_VOCAB, (3, 8))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    results = []
    for max_logits in (2**30, 5 * model.n_vocab):
        model.max_logits = max_logits
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            losses = model.loss(inputs, targets, reduction=reduction)
        (losses * torch.linspace(1, 2, losses.numel())).sum().backward()
        gradients = [p.grad for p in model.parameters()]
        assert None not in gradients
        results.append([losses.detach(), *gradients])
    assert results[0][0].shape == results[1][0].shape
    for at_once, in_chunks in zip(*results, strict=True):
        assert (at_once - in_chunks).norm() <= (1e-2 if bf16 else 1e-6) * at_once.norm()
