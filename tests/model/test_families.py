"""The options of the families by name, alone and together, against loops over tokens.

`test_transformers.py` compares whole families with Hugging Face's models.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.config.compose import composed_config
from minigpt.errors import UserError
from minigpt.model import GPT, ModelConfig
from minigpt.model.backends import BACKENDS
from minigpt.model.block import Block
from minigpt.model.config import BLOCKS, EmbeddingConfig
from minigpt.model.norm import NormConfig, OffsetRMSNorm
from minigpt.model.qk_norm import QKNorm
from minigpt.model.self_attention import SelfAttention
from tests.model.contract import (
    assert_cached_equals_full,
    assert_causal,
    assert_equals_reference,
    assert_packed_equals_separate,
)
from tests.model.reference import ATTENTION_OPTIONS
from tests.model.tiny import N_VOCAB, first_problem, random_tokens, tiny_config

# Values of each option, the default first. Dotted keys are of a section.
AXES: dict[str, list[Any]] = {
    "block": [*BLOCKS],
    "head_size": [None, 2, 6],
    "bias": [False, True, "qkv"],
    "qk_norm": [False, True, "gain", "all_channels"],
    "score_scale": [None, 1.0, 0.3],
    "logit_softcap": [None, 0.5],
    "final_softcap": [None, 2.0],
    "n_kv_head": [None, 1],
    "embedding.name": ["untied", "tied"],
    "embedding.scale": [False, True],
    # Not no_residual: without norms, random weights overflow. tests/model/test_gpt.py compares it.
    "norm.placement": ["pre", "sandwich", "peri", "output", "post"],
    "norm.kind": ["rmsnorm", "layernorm"],
    "norm.unit_offset": [False, True],
    "norm.on_embeddings": [None, True, False],
    "norm.bias": [None, True, False],
    "positional": ["rope", "learned", "t5", "relative", "cope"],
    "ffn": ["swiglu", "geglu_tanh", "gelu", "moe"],
    "attention": ["full", "sliding_window", "landmark", "performer"],
    "head_gates": [False, True],
    "value_residual": [False, "first_layer", "x0"],
    "unet_skips": [False, True],
}


def design(options: dict[str, Any]) -> ModelConfig:
    """Return the tiny config with these options. Raises UserError for invalid ones."""
    sections: dict[str, dict[str, Any]] = {"embedding": {"name": "untied"}, "norm": {}}
    given = dict(options)
    for key in [key for key in given if "." in key]:
        section, option = key.split(".")
        sections[section][option] = given.pop(key)
    attention = given.pop("attention", "full")
    config = tiny_config(
        given.pop("positional", "rope"),
        given.pop("ffn", "swiglu"),
        attention=attention,
        attention_options=ATTENTION_OPTIONS[attention][0],
        **given,
    )
    config.embedding = EmbeddingConfig(**sections["embedding"])
    config.norm = NormConfig(**{"placement": "pre", "kind": "rmsnorm", **sections["norm"]})
    return config


def is_valid(options: dict[str, Any]) -> bool:
    """Return whether a design with these options can be built."""
    try:
        return first_problem(design(options)) is None
    except UserError:
        return False


def pairwise() -> list[dict[str, Any]]:
    """Return designs that together have every pair of values of AXES that can be combined.

    Greedy: each design takes, axis by axis, the value with the most pairs that are still missing.
    """
    pairs = itertools.combinations(AXES, 2)
    missing = {
        frozenset({(one, x), (other, y)})
        for one, other in pairs
        for x, y in itertools.product(AXES[one], AXES[other])
        if is_valid({one: x, other: y})
    }
    rows: list[dict[str, Any]] = []
    while missing:
        row: dict[str, Any] = dict(sorted(missing, key=str)[0])

        for key in [key for key in AXES if key not in row]:
            values = [value for value in AXES[key] if is_valid({**row, key: value})]
            new = [
                sum(frozenset({(key, value), item}) in missing for item in row.items())
                for value in values
            ]
            row[key] = values[new.index(max(new))]
        found = {frozenset(pair) for pair in itertools.combinations(row.items(), 2)}
        assert found & missing, row
        missing -= found
        rows.append(row)
    return rows


@pytest.mark.medium
def test_pairs_of_options_equal_the_reference() -> None:
    """Logits, every gradient, a prefill and decoding steps, for every pair of values of AXES."""
    rows = pairwise()
    assert {(key, value) for row in rows for key, value in row.items()} == {
        (key, value) for key, values in AXES.items() for value in values
    }
    for index, row in enumerate(rows):
        try:
            assert_equals_reference(design(row), "eager", 5, per_row=index % 2 == 1)
            assert_cached_equals_full(design(row), "eager")
        except Exception as error:
            error.add_note(f"the design is {row}")
            raise


# All options together: with a norm for each sublayer, and with a shared one.
TOGETHER: dict[str, Any] = {
    "head_size": 6,
    "bias": "qkv",
    "qk_norm": "all_channels",
    "score_scale": 0.3,
    "final_softcap": 2.0,
    "n_kv_head": 1,
    "embedding.scale": True,
    "norm.unit_offset": True,
    "norm.on_embeddings": True,
}
SHARED = TOGETHER | {"block": "parallel_shared", "norm.kind": "layernorm", "norm.bias": True}


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_the_reference_in_every_backend(backend: str) -> None:
    """A head size of 8, which flex needs."""
    config = design(SHARED | {"head_size": 8, "n_layer": 1 if backend == "flex" else 2})
    assert_equals_reference(config, backend, 7, per_row=True)
    assert_cached_equals_full(config, backend)
    assert_causal(config, backend)
    assert_packed_equals_separate(config, backend)


# ---- mutations: what the tests above must find ----

Broken = Callable[[pytest.MonkeyPatch], None]


def broken_scale(patch: pytest.MonkeyPatch) -> None:
    build = SelfAttention.__init__

    def init(self: SelfAttention, *arguments: Any) -> None:
        build(self, *arguments)
        self.q_factor = 0.3

    patch.setattr(SelfAttention, "__init__", init)


def broken_offset(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(OffsetRMSNorm, "forward", nn.RMSNorm.forward)


def broken_norm_of_heads(patch: pytest.MonkeyPatch) -> None:
    def per_head(self: QKNorm, x: Tensor, norm: Any) -> Tensor:
        if norm is None:
            return x
        gain = norm.weight.view(x.shape[1], 1, x.shape[3])
        return F.rms_norm(x, x.shape[-1:], eps=norm.eps) * gain

    patch.setattr(QKNorm, "_normed", per_head)


def broken_block(patch: pytest.MonkeyPatch) -> None:
    def sequential(self: Block, x: Tensor, attention: Any, ctx: Any) -> Tensor:
        x = x + self.attention_output_norm(
            self.self_attention(self.attention_norm(x), attention, ctx)
        )
        return x + self.ffn_output_norm(self.ffn(self.ffn_norm(x), ctx))

    patch.setattr(Block, "forward", sequential)


def broken_softcap(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(GPT, "logits", lambda self, x: self.head(x)[..., : self.n_vocab])


MUTATIONS: dict[str, Broken] = {
    "another scale of scores": broken_scale,
    "a gain of w": broken_offset,
    "QK-norm per head": broken_norm_of_heads,
    "sublayers in sequence": broken_block,
    "logits without soft-cap": broken_softcap,
}


@pytest.mark.parametrize("broken", MUTATIONS.values(), ids=MUTATIONS)
def test_mutations_fail(broken: Broken, monkeypatch: pytest.MonkeyPatch) -> None:
    config = design(TOGETHER | {"block": "parallel"})
    assert_equals_reference(config, "eager", 5, per_row=False)
    broken(monkeypatch)
    with pytest.raises(AssertionError, match="not close"):
        assert_equals_reference(config, "eager", 5, per_row=False)


# ---- parameters, initial values and refusals ----


def test_parameters() -> None:
    config = design(TOGETHER | {"block": "parallel_shared", "norm.placement": "sandwich"})
    shapes = {name: tuple(p.shape) for name, p in GPT(config, N_VOCAB).named_parameters()}
    expected = {
        "attention_norm.weight": (12,),
        "self_attention.qkv.weight": ((3 + 1 + 1) * 6, 12),
        "self_attention.qkv.bias": ((3 + 1 + 1) * 6,),
        "self_attention.q_norm.weight": (3 * 6,),
        "self_attention.k_norm.weight": (6,),
        "self_attention.out.weight": (12, 3 * 6),
        "attention_output_norm.weight": (12,),
        "ffn_output_norm.weight": (12,),
        "ffn.gate_up.weight": (2 * 40, 12),
        "ffn.out.weight": (12, 40),
    }
    assert {n: s for n, s in shapes.items() if n.startswith("blocks.1")} == {
        f"blocks.1.{name}": shape for name, shape in expected.items()
    }


@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("residual_init", ["zero", "scaled", "normal"])
def test_a_unit_offset_starts_as_the_same_function(kind: str, residual_init: str) -> None:
    models = []
    for offset in (False, True):
        options = {"norm.placement": "sandwich", "norm.kind": kind, "norm.unit_offset": offset}
        torch.manual_seed(0)
        models.append(GPT(design(options | {"residual_init": residual_init}), N_VOCAB))
    plain, with_offset = models
    tokens = random_tokens(2, 9)
    torch.testing.assert_close(with_offset(tokens), plain(tokens))
    assert not with_offset.final_norm.weight.any()


def test_final_softcap_bounds_logits_and_losses() -> None:
    model = GPT(design({"final_softcap": 2.0}), N_VOCAB)
    with torch.no_grad():
        model.head.weight.mul_(1e4)
    tokens = random_tokens(2, 9)
    logits = model(tokens)
    assert 1.9 < logits.abs().max() <= 2
    expected = F.cross_entropy(logits.flatten(0, 1), tokens.flatten())
    torch.testing.assert_close(model.loss(tokens, tokens), expected)


def test_score_scale_of_the_default_changes_nothing() -> None:
    for scale in (None, 0.5):  # 1 / sqrt(4)
        torch.manual_seed(0)
        model = GPT(design({"score_scale": scale, "residual_init": "scaled"}), N_VOCAB)
        attention = model.blocks[0].self_attention
        assert isinstance(attention, SelfAttention) and attention.q_factor in (None, 1.0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("model.block=para", "model.block=para: not one of sequential, parallel, parallel_shared"),
        ("model.bias=kv", "model.bias=kv: must be true, false or qkv"),
        ("model.bias=3", "model.bias=3: must be true, false or a name; "),
        ("model.qk_norm=channels", "model.qk_norm=channels: must be true, false, gain or all_ch"),
        ("model.head_size=0", "model.head_size=0: must be 1 or more, or null"),
        ("model.head_size=5", "model.head_size=5: rope pairs the channels of a head, and the head"),
        ("model.score_scale=0", "model.score_scale=0.0: must be above 0, or null for 1 / sqrt"),
        ("model.final_softcap=-1", "model.final_softcap=-1.0: must be above 0, or null for no so"),
        ("model.block=parallel norm=post", "model.block=parallel: norm=post normalises the sum"),
        (
            "model.block=parallel norm=no_residual",
            "model.block=parallel: norm=no_residual has no residual connection",
        ),
        (
            "model.block=parallel_shared norm=output",
            "model.block=parallel_shared: norm=output has no norm of the",
        ),
        ("model=sinusoidal model.embedding.scale=true", "model.embedding.scale=true: positional="),
        ("model.norm.kind=rmsnorm model.norm.bias=true", "model.norm.bias=true: an RMSNorm has no"),
        (
            "model.norm.affine=false model.norm.bias=true",
            "model.norm.bias=true: norms have no gain",
        ),
        (
            "model.norm.affine=false model.norm.unit_offset=true",
            "model.norm.unit_offset=true: norms have no gain with model.norm.affine=false",
        ),
        ("norm=output model.norm.affine=false", "model.norm.affine=false: with norm=output the ga"),
        ("model=bigram model.block=parallel", "model.block=parallel: needs blocks, but"),
        ("model=bigram model.head_size=8", "model.head_size=8: needs blocks, but"),
        ("model=bigram model.score_scale=1", "model.score_scale=1.0: needs blocks, but"),
    ],
)
def test_invalid_options_are_refused(overrides: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        composed_config(overrides.split())
    assert str(raised.value).startswith(message), raised.value


def test_heads_of_any_size_need_no_divisor() -> None:
    assert (
        composed_config(["model.n_head=5", "model.head_size=6"]).model.shape.attention_width == 30
    )
