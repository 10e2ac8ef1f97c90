"""Tiny designs of every architecture that a run can leave as, at awkward sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from minigpt.model import ModelConfig
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
    ],
    "Mistral": [tiny_config("rope", **GATED, **NO_QK_NORM, **SIX_HEADS, **SLIDING)],
    "Mixtral": [_mixture(n_expert=5, n_active=3)],
    "GPT-NeoX": [
        tiny_config(
            *("rope", "gelu_tanh"),
            options={"fraction": 0.5},
            **LAYERNORM,
            **NO_QK_NORM,
            bias=True,
        ),
        tiny_config("rope", "relu", **LAYERNORM, **TIED, **NO_QK_NORM),
    ],
    "StarCoder2": [
        tiny_config("rope", "relu2", **LAYERNORM, **NO_QK_NORM, **SIX_HEADS, **SLIDING),
        tiny_config("rope", "gelu", **LAYERNORM, **TIED, **NO_QK_NORM, **SIX_HEADS, bias=True),
    ],
    "StableLM": [tiny_config("rope", **GATED, **LAYERNORM, **NO_QK_NORM, **SIX_HEADS)],
    "MPT": [
        tiny_config("alibi", "gelu", **LAYERNORM, **NO_QK_NORM),
        tiny_config("alibi", "gelu", **LAYERNORM, **TIED, **NO_QK_NORM, block_size=7),
    ],
    "Qwen2": [tiny_config("rope", **GATED, **NO_QK_NORM, **SIX_HEADS, **ALTERNATING)],
    "SmolLM3 without RoPE": [tiny_config("nope", "swiglu", **TIED, **NO_QK_NORM, **SIX_HEADS)],
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
    ],
}

# A change of a design that violates a requirement, by its key.
VIOLATIONS: dict[str, dict[str, Any]] = {
    "model.qk_norm": {"qk_norm": True},
    "model.value_residual": {"value_residual": "first_layer"},
    "model.head_gates": {"head_gates": True},
    "model.unet_skips": {"unet_skips": True},
    "model.n_layer": {"n_layer": 0},
    "model.logit_softcap": {"logit_softcap": 3.0},
    "model.n_kv_head": {"n_kv_head": 1},
    "model.bias": {"bias": True},
    "model.norm.placement": {"norm": replace(tiny_config().norm, placement="post")},
    "model.norm.kind": {},  # the other kind
    "model.ffn.name": {"ffn": composed_model("ffn=conv").ffn},
    "model.ffn.expansion": {"ffn": replace(composed_model("ffn=gelu").ffn, expansion=3.0)},
    "model.ffn.expert": {
        "ffn": replace(composed_model("ffn=moe").ffn, expert="gelu"),
    },
    "model.ffn.n_active": {"ffn": replace(composed_model("ffn=moe").ffn, n_active=1)},
    "model.attention.name": {"attention": composed_model("attention=chunked").attention},
    "model.attention.layers": {"attention": tiny_config(**ALTERNATING).attention},
    "model.positional.name": {"positional": composed_model("positional=cope").positional},
    "model.positional.fraction": {
        "positional": replace(composed_model("positional=rope").positional, fraction=0.5)
    },
    "model.positional.slopes": {
        "positional": replace(composed_model("positional=alibi").positional, slopes="learned")
    },
}


def violating(config: ModelConfig, key: str) -> ModelConfig:
    """Return a design with a value of an option that a requirement forbids."""
    if key == "model.norm.kind":
        other = "layernorm" if config.norm.kind == "rmsnorm" else "rmsnorm"
        return replace(config, norm=replace(config.norm, kind=other))
    return replace(config, **VIOLATIONS[key])
