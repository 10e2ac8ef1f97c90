"""Tiny designs of every architecture that a run can leave as, at awkward sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from minigpt.config.groups import choices
from minigpt.export.architecture import Requirement
from minigpt.model import ModelConfig
from minigpt.model.config import BIASES, BLOCKS, QK_NORMS
from tests.model.tiny import composed_model, tiny_config

N_VOCAB = 13  # padded to 16
PADDED: dict[str, Any] = {"n_embd": 24, "vocab_multiple": 8}  # an even head size for rope
NO_QK_NORM: dict[str, Any] = {"qk_norm": False, **PADDED}
SIX_HEADS: dict[str, Any] = {"n_head": 6, "n_kv_head": 2}
ALTERNATING: dict[str, Any] = {
    "attention": "sliding_window",
    "attention_options": {"window": 5, "layers": ["sliding_window", "full"]},
}
SLIDING: dict[str, Any] = {
    "attention": "sliding_window",
    "attention_options": {"window": 5, "layers": ["sliding_window"]},
}
LAYERNORM: dict[str, Any] = {"kind": "layernorm"}
TIED: dict[str, Any] = {"embedding": "tied"}
GATED: dict[str, Any] = {"ffn": "swiglu"}


def _mixture(**options: Any) -> ModelConfig:
    experts = replace(composed_model("ffn=moe").ffn, expert="swiglu", expansion=2.0, **options)
    return replace(tiny_config("rope", **NO_QK_NORM, **SLIDING), ffn=experts, n_head=6, n_kv_head=2)


def _family(name: str, **changes: Any) -> ModelConfig:
    """Return a design of configs/model at an awkward size.

    `changes`: of options; of a section by its name, with a mapping, or with another choice.
    """
    config = composed_model(f"model={name}")
    n_kv_head = config.n_kv_head
    small: dict[str, Any] = {"n_layer": 2, "n_head": 3, "block_size": 16, **PADDED}
    if n_kv_head is not None and n_kv_head > 1:
        small |= SIX_HEADS
    if config.head_size is not None:
        small["head_size"] = 6
    if "window" in vars(config.attention):
        small["attention"] = replace(config.attention, window=5)
    for section in ("attention", "positional", "ffn"):
        if isinstance(changes.get(section), str):
            chosen = composed_model(f"{section}={changes.pop(section)}")
            small[section] = getattr(chosen, section)
    return changed(replace(config, **small), changes)


def changed(config: ModelConfig, changes: dict[str, Any]) -> ModelConfig:
    """Return a design with other options; those of a section are a mapping."""
    parts = {
        name: replace(getattr(config, name), **value) if isinstance(value, dict) else value
        for name, value in changes.items()
    }
    return replace(config, **parts)


GEMMA_PRE: dict[str, Any] = {"norm": {"placement": "pre"}}
GEMMA_1: dict[str, Any] = {
    **GEMMA_PRE,
    "attention": "full",
    "logit_softcap": None,
    "final_softcap": None,
}
# Not as Gemma has it: in all other architectures the weights are rewritten.
IN_OTHER_UNITS: dict[str, Any] = {
    "norm": {"unit_offset": True},
    "embedding": {"scale": True},
    "score_scale": 0.3,
}
# Designs of configs/model that no causal language model of transformers has.
REFUSED = {
    "bigram": "model.positional.name=nope",
    "t5_decoder": "model.positional.name=t5",
    "bert": "model.norm.placement=post",
    "t5_encoder_decoder": "model.positional.name=t5",
}


# By name in configs/model: with a tied and with an untied head.
FAMILIES = {
    name: [_family(name, embedding={"name": head}) for head in ("tied", "untied")]
    for name in choices("model")
    if name not in REFUSED
}

# By the name of the architecture.
DESIGNS: dict[str, list[ModelConfig]] = {
    "GPT-2": [
        tiny_config("learned", "gelu", **LAYERNORM, **TIED, **NO_QK_NORM, bias=True),
        tiny_config("learned", "relu2", **LAYERNORM, **NO_QK_NORM, dropout=0.1),
    ],
    "Llama": [
        tiny_config("rope", "swiglu", **TIED, **NO_QK_NORM, bias=True),
        tiny_config("rope", "geglu", options={"base": 99.0}, **NO_QK_NORM, **SIX_HEADS),
        tiny_config(*("rope", "swiglu"), options={"scaling": "yarn", "factor": 3.0}, **NO_QK_NORM),
        tiny_config("rope", "swiglu", options={"scaling": "ntk", "factor": 3.0}, **NO_QK_NORM),
        tiny_config("rope", "swiglu", options={"scaling": "linear", "factor": 3.0}, **NO_QK_NORM),
        _family("llama", ffn="geglu_tanh", head_size=6, bias=True, **IN_OTHER_UNITS),
        _family("llama", embedding={"name": "tied", "scale": True}, norm={"affine": False}),
    ],
    "Mistral": [
        tiny_config("rope", **GATED, **NO_QK_NORM, **SIX_HEADS, **SLIDING),
        _family("mistral", ffn="geglu_tanh", n_head=7, n_kv_head=1, head_size=6),
    ],
    "Mixtral": [
        _mixture(n_expert=5, n_active=3),
        _family("mixtral", head_size=6),
    ],
    "GPT-NeoX": [
        tiny_config(
            *("rope", "gelu_tanh"),
            options={"fraction": 0.5},
            **LAYERNORM,
            **NO_QK_NORM,
            bias=True,
        ),
        tiny_config("rope", "relu", **LAYERNORM, **TIED, **NO_QK_NORM),
        _family("gpt_neox", block="parallel_shared", bias="qkv", norm={"bias": True}),
        _family("gpt_neox", ffn="relu2", norm={"bias": False, "unit_offset": True}),
    ],
    "StarCoder2": [
        tiny_config("rope", "relu2", **LAYERNORM, **NO_QK_NORM, **SIX_HEADS, **SLIDING),
        tiny_config("rope", "gelu", **LAYERNORM, **TIED, **NO_QK_NORM, **SIX_HEADS, bias=True),
        _family("falcon", ffn="gelu_tanh", block="sequential", bias="qkv", head_size=10),
    ],
    "StableLM": [
        tiny_config("rope", **GATED, **LAYERNORM, **NO_QK_NORM, **SIX_HEADS),
        _family("falcon", ffn="swiglu", bias="qkv"),
    ],
    "MPT": [
        tiny_config("alibi", "gelu", **LAYERNORM, **NO_QK_NORM),
        tiny_config("alibi", "gelu", **LAYERNORM, **TIED, **NO_QK_NORM, block_size=7),
    ],
    "Phi-3": [
        _family("phi3", positional={"fraction": 0.5}, head_size=12, n_kv_head=1),
        _family("llama", positional={"fraction": 0.5}),
    ],
    "SmolLM3 without RoPE": [
        tiny_config("nope", "swiglu", **TIED, **NO_QK_NORM, **SIX_HEADS),
        _family("llama", positional="nope", bias="qkv", head_size=10),
    ],
    "Falcon": [
        _family("falcon", n_kv_head=None, bias=True),
        _family("falcon", ffn="relu", **SIX_HEADS, bias="qkv", norm={"bias": False}),
        _family("falcon", **SIX_HEADS, block="parallel", **IN_OTHER_UNITS),
        _family("falcon", ffn="gelu_tanh", block="parallel"),
    ],
    "BLOOM": [
        _family("bloom", n_head=6, bias="qkv", norm={"bias": False}),
        _family("bloom", n_head=12, bias=False, **IN_OTHER_UNITS),
    ],
    "OLMo 2": [
        _family("olmo2", **SIX_HEADS, bias="qkv", head_size=10),
        _family("olmo2", ffn="geglu_tanh", **SIX_HEADS, **IN_OTHER_UNITS),
    ],
    "Gemma": [
        _family("gemma", **GEMMA_1, n_head=7, n_kv_head=1),
        _family("gemma", **GEMMA_1, score_scale=0.3, bias="qkv"),
    ],
    "VaultGemma": [
        _family("gemma", **GEMMA_PRE, score_scale=0.5),
        _family("gemma", **GEMMA_PRE, attention="full", n_kv_head=None, final_softcap=None),
    ],
    "Gemma 2": [
        tiny_config(
            *("rope", "geglu"),
            placement="sandwich",
            **TIED,
            **NO_QK_NORM,
            **SIX_HEADS,
            **ALTERNATING,
            logit_softcap=2.0,
        ),
        tiny_config("rope", "swiglu", placement="sandwich", **NO_QK_NORM),
        _family("gemma", bias="qkv", final_softcap=2.0, score_scale=0.3),
        _family("gemma", norm={"unit_offset": False}, logit_softcap=None, score_scale=1.0),
    ],
}

# Changes of a design, one of which violates a requirement, by its key.
VIOLATIONS: dict[str, list[dict[str, Any]]] = {
    "model.qk_norm": [{"qk_norm": value} for value in QK_NORMS],
    "model.value_residual": [{"value_residual": "first_layer"}],
    "model.head_gates": [{"head_gates": True}],
    "model.unet_skips": [{"unet_skips": True}],
    "model.n_layer": [{"n_layer": 0}],
    "model.logit_softcap": [{"logit_softcap": 3.0}],
    "model.final_softcap": [{"final_softcap": 3.0}],
    "model.n_kv_head": [{"n_kv_head": 1}],
    "model.head_size": [{"head_size": 10, "n_head": 7}, {"head_size": 7}],
    "model.block": [{"block": value} for value in BLOCKS],
    "model.bias": [{"bias": value} for value in BIASES],
    "model.norm.placement": [{"norm": {"placement": "post"}}],
    "model.norm.kind": [
        {"norm": {"kind": kind, "bias": None}} for kind in ("layernorm", "rmsnorm")
    ],
    "model.norm.bias": [{"norm": {"kind": "layernorm", "bias": True}}],
    "model.norm.on_embeddings": [{"norm": {"on_embeddings": value}} for value in (True, False)],
    "model.ffn.name": [{"ffn": composed_model("ffn=conv").ffn}],
    "model.ffn.expansion": [{"ffn": {"expansion": 3.0}}],
    "model.ffn.expert": [{"ffn": replace(composed_model("ffn=moe").ffn, expert="gelu")}],
    "model.ffn.n_active": [{"ffn": replace(composed_model("ffn=moe").ffn, n_active=1)}],
    "model.attention.name": [{"attention": composed_model("attention=chunked").attention}],
    "model.attention.layers": [{"attention": tiny_config(**ALTERNATING).attention}],
    "model.positional.name": [{"positional": composed_model("positional=cope").positional}],
    "model.positional.fraction": [{"positional": {"fraction": 0.5}}],
    "model.positional.scaling": [{"positional": {"scaling": "linear", "factor": 2.0}}],
    "model.positional.slopes": [{"positional": {"slopes": "learned"}}],
}


def violating(config: ModelConfig, requirement: Requirement) -> ModelConfig:
    """Return a design with a value of an option that a requirement forbids."""
    for change in VIOLATIONS[requirement.key]:
        violation = changed(config, change)
        if not requirement.holds(violation):
            return violation
    raise AssertionError(f"every value meets {requirement}")
