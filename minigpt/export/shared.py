"""Requirements, keys of config.json and weights that several architectures share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minigpt.config.pairs import as_typed
from minigpt.export.architecture import Requirement
from minigpt.export.fields import (
    Choice,
    Dropout,
    Field,
    HeadSize,
    Implied,
    KeyValueHeads,
    Same,
    Width,
)
from minigpt.export.tensors import BY_USE, HALVES, WHOLE, Layout, Part
from minigpt.model.config import ModelConfig

# ---- requirements ----


def only(key: str, *values: Any, why: str = "", allows: Any = None) -> Requirement:
    """Return the requirement that an option has one of these values, or what `allows` says."""
    why = why or f"has only {' or '.join(as_typed(value) for value in values)}"
    return Requirement(key, values, why, allows)


def _has_all_heads(config: ModelConfig) -> bool:
    return config.n_kv_head in (None, config.n_head)


def _slides_everywhere(config: ModelConfig) -> bool:
    return all(config.attention.by_layer(config.n_layer))


def _is_four_times_as_wide(config: ModelConfig) -> bool:
    return config.ffn.hidden_width(config.n_embd) == 4 * config.n_embd


def _splits_into_heads(config: ModelConfig) -> bool:
    return config.shape.attention_width == config.n_embd


PLAIN = (
    only("model.value_residual", False, why="has no value residuals"),
    only("model.head_gates", False, why="has no gates of heads"),
    only("model.unet_skips", False, why="has no skip connections between layers"),
    only("model.n_layer", 1, why="needs a block", allows=lambda config: config.n_layer > 0),
)
NO_QK_NORM = only("model.qk_norm", False, why="has no norm of queries and keys like it")
NO_EMBEDDING_NORM = only(
    "model.norm.on_embeddings", None, False, why="has no norm of the embeddings"
)
SEQUENTIAL = only("model.block", "sequential")
UNCAPPED = (
    only("model.logit_softcap", None, why="has no soft-cap of scores"),
    only("model.final_softcap", None, why="has no soft-cap of logits"),
)
BASIC = (NO_QK_NORM, *PLAIN, NO_EMBEDDING_NORM)
PRE, SANDWICH, OUTPUT = (
    only("model.norm.placement", name) for name in ("pre", "sandwich", "output")
)
LAYERNORM = (only("model.norm.kind", "layernorm"),)
NORM_UNBIASED = only("model.norm.bias", None, False, why="has norms without biases")
RMSNORM = (only("model.norm.kind", "rmsnorm"), NORM_UNBIASED)
ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "relu2")
GATES = ("swiglu", "geglu", "geglu_tanh")
MLP = only("model.ffn.name", *ACTIVATIONS)
GATED = only("model.ffn.name", *GATES)
FOUR_TIMES = only(
    *("model.ffn.expansion", 4.0),
    why="has feed-forward layers of exactly 4 n_embd",
    allows=_is_four_times_as_wide,
)
ALL_HEADS = only(
    "model.n_kv_head", None, why="has as many key-value heads as heads", allows=_has_all_heads
)
SPLIT_HEADS = only(
    *("model.head_size", None),
    why="has heads of n_embd / n_head channels",
    allows=_splits_into_heads,
)
DIVISIBLE = only(
    *("model.head_size", None),
    why="needs an n_embd that n_head divides",
    allows=lambda config: config.n_embd % config.n_head == 0,
)
FULL = only("model.attention.name", "full")
WINDOWED = only("model.attention.name", "full", "sliding_window")
EVERYWHERE = only(
    *("model.attention.layers", ["sliding_window"]),
    why="has the same window in all layers",
    allows=_slides_everywhere,
)
ROPE, NOPE, LEARNED = (only("model.positional.name", name) for name in ("rope", "nope", "learned"))
ALIBI = (only("model.positional.name", "alibi"), only("model.positional.slopes", "fixed"))
WHOLE_HEADS = only("model.positional.fraction", 1.0, why="rotates all channels of a head")
UNBIASED = only("model.bias", False, why="has no such biases")
QKV_BIASED = only("model.bias", False, "qkv")
# What the table in docs/export.md shows only where an architecture has other values.
USUAL = (*BASIC, SEQUENTIAL, *UNCAPPED, NORM_UNBIASED)

# ---- keys of config.json ----

NAMES_OF_ACTIVATIONS = {
    "gelu": ("gelu",),
    "gelu_tanh": ("gelu_pytorch_tanh", "gelu_new"),
    "relu": ("relu",),
    "relu2": ("relu2",),
}
NAMES_OF_GATES = {
    "swiglu": ("silu", "swish"),
    "geglu": ("gelu",),
    "geglu_tanh": ("gelu_pytorch_tanh", "gelu_new"),
}
TYING = {"tied": (True,), "untied": (False,)}
ANY_BIAS = {False: (False,), True: (True,), "qkv": (True,)}  # zeros beside those of q, k and v
ATTENTION_BIAS = {False: (False,), "qkv": (True,)}


def tied(default: bool) -> Field:
    """Return the field of the head."""
    key = "model.embedding.name"
    return Choice("tie_word_embeddings", "embedding", key, TYING, default)


def activation(key: str, names: Mapping[Any, tuple[Any, ...]], **default: Any) -> Field:
    """Return the field of the activation of a feed-forward layer."""
    return Choice(key, "ffn", "model.ffn.name", names, **default)


def biases(key: str, names: Mapping[Any, tuple[Any, ...]], default: bool) -> Field:
    """Return the field of a key that switches biases of linear layers."""
    return Choice(key, "model.bias", "model.bias", names, default)


def norm(placement: str, kind: str, qk_norm: bool | str = False) -> Field:
    """Return the norms that all designs of an architecture have."""
    kinds = {"norm": placement, "model.norm.kind": kind}
    return Implied({**kinds, "model.qk_norm": qk_norm})


FULLY_BIASED = Implied({"model.bias": True}, covers=("model.bias", "model.norm.bias"))
NORM_BIASES = Implied({"model.norm.bias": True}, covers=("model.norm.bias",))
NO_BIAS = Implied({"model.bias": False})
SIZES = (
    Same("hidden_size", "model.n_embd"),
    Same("num_hidden_layers", "model.n_layer"),
    Same("num_attention_heads", "model.n_head"),
    Same("max_position_embeddings", "model.block_size"),
    Width("intermediate_size", "hidden_size"),
)
LLAMA_SIZES = (
    *SIZES,
    Same("rms_norm_eps", "model.norm.eps"),
    KeyValueHeads(),
    HeadSize(),
    Dropout(("attention_dropout",)),
)
LLAMA_FIELDS = (
    *LLAMA_SIZES,
    norm("pre", "rmsnorm"),
    activation("hidden_act", NAMES_OF_GATES, default="silu"),
)

# ---- weights ----

LAYER = "blocks.{layer}."
LLAMA_LAYER = "model.layers.{layer}."


def vocabulary(embedding: str, head: str = "lm_head") -> tuple[Part, ...]:
    """Return the token embedding and the head."""
    return Part("token_embedding", (embedding,)), Part("head", (head,))


def blocks(
    layer: str,
    names: Mapping[str, str],
    layouts: Mapping[str, Layout] | None = None,
    bias: Any = "always",
) -> tuple[Part, ...]:
    """Return the modules of a layer: names of theirs by ours, below the prefix `layer`."""
    layouts = layouts or {}
    return tuple(
        Part(f"{LAYER}{ours}", (f"{layer}{theirs}",), layouts.get(ours, WHOLE), bias)
        for ours, theirs in names.items()
    )


def llama_attention(qkv: Any = "own", out: Any = "own") -> tuple[Part, ...]:
    """Return the projections of attention, with biases as given."""
    names = tuple(f"{LLAMA_LAYER}self_attn.{name}_proj" for name in "qkv")
    return (
        Part(f"{LAYER}self_attention.qkv", names, BY_USE, qkv),
        Part(f"{LAYER}self_attention.out", (f"{LLAMA_LAYER}self_attn.o_proj",), bias=out),
    )


LLAMA_FFN = (
    Part(
        f"{LAYER}ffn.gate_up",
        (f"{LLAMA_LAYER}mlp.gate_proj", f"{LLAMA_LAYER}mlp.up_proj"),
        HALVES,
    ),
    Part(f"{LAYER}ffn.out", (f"{LLAMA_LAYER}mlp.down_proj",)),
)
PRE_NORMS = {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
SANDWICH_NORMS = {
    "attention_norm": "input_layernorm",
    "attention_output_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_output_norm": "post_feedforward_layernorm",
}


def llama_parts(
    attention: tuple[Part, ...] | None = None,
    feed_forward: tuple[Part, ...] = LLAMA_FFN,
    norms: Mapping[str, str] = PRE_NORMS,
    norm_bias: Any = "own",
) -> tuple[Part, ...]:
    """Return the weights of Llama, with other sublayers or norms."""
    return (
        *vocabulary("model.embed_tokens"),
        *blocks(LLAMA_LAYER, norms, bias=norm_bias),
        *(llama_attention() if attention is None else attention),
        *feed_forward,
        Part("final_norm", ("model.norm",), bias=norm_bias),
    )
