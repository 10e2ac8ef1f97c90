"""The architectures of transformers that a design can leave as, and what each requires of it.

An architecture is one entry of `ARCHITECTURES`: the keys of its config.json (`fields`), the options
that it requires (`requirements`), and its weights (`parts`). Requirements are data: the refusal of
a design, the table in docs/export.md and the tests are made from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any

from minigpt.config.pairs import as_typed
from minigpt.errors import UserError
from minigpt.export.fields import (
    CONFIG,
    Biases,
    Choice,
    Dropout,
    Field,
    Fixed,
    HeadSize,
    Implied,
    KeyValueHeads,
    LongEnough,
    Nested,
    Overrides,
    Rope,
    Same,
    Values,
    Width,
    Window,
    WindowByLayer,
    WithoutRope,
    Written,
    option,
)
from minigpt.export.tensors import (
    ABOVE_ONE,
    BY_HEAD,
    BY_USE,
    HALVES,
    SCALED,
    SCALED_ABOVE_ONE,
    TRANSPOSED,
    WHOLE,
    Layout,
    Part,
)
from minigpt.model.config import ModelConfig

# Options without effect on what a trained model computes, and those in the sizes of weights.
WITHOUT_EFFECT = (
    *("model.name", "model.dropout", "model.residual_init", "model.vocab_multiple"),
    *("model.backend.name", "model.ffn.balance", "model.norm.affine"),
)


@dataclass(frozen=True)
class Requirement:
    """An option that an architecture allows only some values of.

    `values`: those values, the one to use first; or `allows`, a function of the design, with
    `values` to use. `why`: what the architecture has or lacks, after its name.
    """

    key: str
    values: tuple[Any, ...]
    why: str
    allows: Callable[[ModelConfig], bool] | None = None

    def holds(self, config: ModelConfig) -> bool:
        """Return whether a design has an allowed value, or no such option at all."""
        try:
            value = option(config, self.key)
        except AttributeError:
            return True
        return value in self.values if self.allows is None else self.allows(config)

    @property
    def remedy(self) -> str:
        """The override of `minigpt train` that meets it."""
        value = self.values[0]
        text = f"[{','.join(value)}]" if isinstance(value, list) else as_typed(value)
        return f"{group_of(self.key)}={text}"

    def describe(self) -> str:
        """Return the allowed values, for a table."""
        return " or ".join(as_typed(value) for value in self.values)


def group_of(key: str) -> str:
    """Return the name on the command line of an option: the config group of a named choice."""
    if key == "model.norm.placement":
        return "norm"
    section, _, name = key.removeprefix("model.").rpartition(".")
    return section if name == "name" else key


@dataclass(frozen=True)
class Architecture:
    """An architecture of transformers.

    `model_type`, `class_name`: as in config.json. `prefix`: of the names of its weights, which some
    published files lack. `exact`: whether weights come back bit for bit.
    """

    name: str
    model_type: str
    class_name: str
    fields: tuple[Field, ...]
    requirements: tuple[Requirement, ...]
    parts: tuple[Part, ...]
    prefix: str = "model."
    exact: bool = True

    def violations(self, config: ModelConfig) -> list[Requirement]:
        """Return the requirements that a design does not meet; [] if it can leave like this."""
        found = [one for one in self.requirements if not one.holds(config)]
        known = {key for field in self.fields for key in field.keys}
        known |= {one.key for one in self.requirements} | {*WITHOUT_EFFECT}
        known |= {f"model.{name}" for name in ("n_layer", "n_head", "n_embd", "block_size")}
        # the options of a refused choice are refused with it
        refused = tuple(one.key.removesuffix("name") for one in found if one.key.endswith(".name"))
        for key, value, default in _options(config, "model."):
            if key not in known and not key.startswith(refused or "-") and value != default:
                found.append(Requirement(key, (default,), "does not know this option"))
        return found

    def config_of(self, config: ModelConfig, n_vocab: int) -> dict[str, Any]:
        """Return config.json of a design that meets the requirements."""
        values = {key: value for field in self.fields for key, value in field.write(config).items()}
        return {
            "architectures": [self.class_name],
            "model_type": self.model_type,
            "vocab_size": n_vocab,
            **values,
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
            "dtype": "float32",
        }

    def overrides_of(self, values: Values) -> Overrides:
        """Return the options of a design from its config.json.

        Raises UserError for what no option expresses.
        """
        overrides: Overrides = {}
        for field in self.fields:
            for key, value in field.read(values).items():
                if overrides.setdefault(key, value) != value:
                    why = f"gives {key}={value}, and another key {overrides[key]}"
                    raise UserError(f"{CONFIG}: {why}; minigpt has one option for both")
        return overrides


def _options(config: Any, prefix: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield key, value and default of every option, also of nested ones."""
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from _options(value, f"{prefix}{field.name}.")
        else:
            default = None if field.default is MISSING else field.default
            yield f"{prefix}{field.name}", value, default


# ---- requirements that several architectures share ----


def _only(key: str, *values: Any, why: str = "", allows: Any = None) -> Requirement:
    why = why or f"has only {' or '.join(as_typed(value) for value in values)}"
    return Requirement(key, values, why, allows)


def _has_all_heads(config: ModelConfig) -> bool:
    return config.n_kv_head in (None, config.n_head)


def _slides_everywhere(config: ModelConfig) -> bool:
    return all(config.attention.by_layer(config.n_layer))


def _is_four_times_as_wide(config: ModelConfig) -> bool:
    return config.ffn.hidden_width(config.n_embd) == 4 * config.n_embd


def _renormalises(config: ModelConfig) -> bool:
    return getattr(config.ffn, "n_active", 2) >= 2


PLAIN = (
    _only("model.qk_norm", False, why="has no norm of queries and keys like it"),
    _only("model.value_residual", False, why="has no value residuals"),
    _only("model.head_gates", False, why="has no gates of heads"),
    _only("model.unet_skips", False, why="has no skip connections between layers"),
    _only("model.n_layer", 1, why="needs a block", allows=lambda config: config.n_layer > 0),
)
UNCAPPED = _only("model.logit_softcap", None, why="has no soft-cap of scores")
PRE, SANDWICH = (_only("model.norm.placement", name) for name in ("pre", "sandwich"))
LAYERNORM, RMSNORM = (_only("model.norm.kind", name) for name in ("layernorm", "rmsnorm"))
ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "relu2")
MLP = _only("model.ffn.name", *ACTIVATIONS)
GATED = _only("model.ffn.name", "swiglu", "geglu")
ALL_HEADS = _only(
    "model.n_kv_head", None, why="has as many key-value heads as heads", allows=_has_all_heads
)
FULL = _only("model.attention.name", "full")
WINDOWED = _only("model.attention.name", "full", "sliding_window")
EVERYWHERE = _only(
    *("model.attention.layers", ["sliding_window"]),
    why="has the same window in all layers",
    allows=_slides_everywhere,
)
ROPE, NOPE = (_only("model.positional.name", name) for name in ("rope", "nope"))
WHOLE_HEADS = _only("model.positional.fraction", 1.0, why="rotates all channels of a head")
UNBIASED = _only("model.bias", False, why="has no such biases")

# ---- fields that several architectures share ----

NAMES_OF_ACTIVATIONS = {
    "gelu": ("gelu",),
    "gelu_tanh": ("gelu_pytorch_tanh", "gelu_new"),
    "relu": ("relu",),
    "relu2": ("relu2",),
}
NAMES_OF_GATES = {"swiglu": ("silu", "swish"), "geglu": ("gelu",)}
TYING = {"tied": (True,), "untied": (False,)}


def _tied(default: bool) -> Field:
    key = "model.embedding.name"
    return Choice("tie_word_embeddings", "embedding", key, TYING, default)


def _activation(key: str, names: Mapping[Any, tuple[Any, ...]], **default: Any) -> Field:
    return Choice(key, "ffn", "model.ffn.name", names, **default)


def _norm(placement: str, kind: str) -> Field:
    return Implied({"norm": placement, "model.norm.kind": kind, "model.qk_norm": False})


SIZES = (
    Same("hidden_size", "model.n_embd"),
    Same("num_hidden_layers", "model.n_layer"),
    Same("num_attention_heads", "model.n_head"),
    Same("max_position_embeddings", "model.block_size"),
    Width("intermediate_size", "hidden_size"),
)
RMS = (_norm("pre", "rmsnorm"), Same("rms_norm_eps", "model.norm.eps"))
LLAMA_FIELDS = (
    *SIZES,
    *RMS,
    KeyValueHeads(),
    HeadSize(),
    Dropout(("attention_dropout",)),
    _activation("hidden_act", NAMES_OF_GATES, default="silu"),
)
NO_BIAS = Implied({"model.bias": False})
BOTH_BIASES = (
    Same("attention_bias", "model.bias", False),
    Same("mlp_bias", "model.bias", False),
)

# ---- weights ----

LAYER = "blocks.{layer}."


def _vocabulary(embedding: str, head: str = "lm_head", layout: Layout = WHOLE) -> tuple[Part, ...]:
    return (
        Part("token_embedding", (embedding,), layout),
        Part("head", (head,)),
    )


def _llama_attention(layer: str, **bias: Any) -> tuple[Part, ...]:
    attention = f"{layer}self_attn."
    qkv = tuple(f"{attention}{name}_proj" for name in "qkv")
    return (
        Part(f"{LAYER}self_attention.qkv", qkv, BY_USE, **bias),
        Part(f"{LAYER}self_attention.out", (f"{attention}o_proj",)),
    )


def _llama_parts(
    feed_forward: Sequence[Part] = (), norm_bias: Any = "own", qkv_bias: Any = "own"
) -> tuple[Part, ...]:
    """Return the weights of Llama, with another feed-forward layer or biases of norms."""
    layer = "model.layers.{layer}."
    gated = (
        Part(f"{LAYER}ffn.gate_up", (f"{layer}mlp.gate_proj", f"{layer}mlp.up_proj"), HALVES),
        Part(f"{LAYER}ffn.out", (f"{layer}mlp.down_proj",)),
    )
    return (
        *_vocabulary("model.embed_tokens"),
        Part(f"{LAYER}attention_norm", (f"{layer}input_layernorm",), bias=norm_bias),
        *_llama_attention(layer, bias=qkv_bias),
        Part(f"{LAYER}ffn_norm", (f"{layer}post_attention_layernorm",), bias=norm_bias),
        *(feed_forward or gated),
        Part("final_norm", ("model.norm",), bias=norm_bias),
    )


LLAMA_LAYER = "model.layers.{layer}."
EXPERT = f"{LLAMA_LAYER}block_sparse_moe.experts.{{expert}}."
GPT2 = Architecture(
    name="GPT-2",
    model_type="gpt2",
    class_name="GPT2LMHeadModel",
    prefix="transformer.",
    fields=(
        *(Implied({"positional": "learned", "attention": "full"}), Biases()),
        _norm("pre", "layernorm"),
        Same("n_embd", "model.n_embd"),
        Same("n_layer", "model.n_layer"),
        Same("n_head", "model.n_head"),
        Same("n_positions", "model.block_size", 1024),
        Width("n_inner", "n_embd"),
        _activation("activation_function", NAMES_OF_ACTIVATIONS, default="gelu_new"),
        Same("layer_norm_epsilon", "model.norm.eps", 1e-5),
        Dropout(("resid_pdrop", "embd_pdrop", "attn_pdrop")),
        Fixed("scale_attn_weights", True),
        Fixed("scale_attn_by_inverse_layer_idx", False),
        _tied(True),
    ),
    requirements=(
        _only("model.positional.name", "learned"),
        *(PRE, LAYERNORM, MLP, FULL, ALL_HEADS, *PLAIN, UNCAPPED),
    ),
    parts=(
        *_vocabulary("transformer.wte"),
        Part("positional.table", ("transformer.wpe",)),
        Part(f"{LAYER}attention_norm", ("transformer.h.{layer}.ln_1",), bias="always"),
        Part(
            f"{LAYER}self_attention.qkv",
            ("transformer.h.{layer}.attn.c_attn",),
            *(TRANSPOSED, "always"),
        ),
        Part(
            f"{LAYER}self_attention.out",
            ("transformer.h.{layer}.attn.c_proj",),
            *(TRANSPOSED, "always"),
        ),
        Part(f"{LAYER}ffn_norm", ("transformer.h.{layer}.ln_2",), bias="always"),
        Part(f"{LAYER}ffn.up", ("transformer.h.{layer}.mlp.c_fc",), TRANSPOSED, "always"),
        Part(f"{LAYER}ffn.out", ("transformer.h.{layer}.mlp.c_proj",), TRANSPOSED, "always"),
        Part("final_norm", ("transformer.ln_f",), bias="always"),
    ),
)
LLAMA = Architecture(
    name="Llama",
    model_type="llama",
    class_name="LlamaForCausalLM",
    fields=(
        *LLAMA_FIELDS,
        Rope(),
        *BOTH_BIASES,
        Implied({"attention": "full"}),
        _tied(False),
    ),
    requirements=(ROPE, WHOLE_HEADS, PRE, RMSNORM, GATED, FULL, *PLAIN, UNCAPPED),
    parts=_llama_parts(),
)
MISTRAL = Architecture(
    name="Mistral",
    model_type="mistral",
    class_name="MistralForCausalLM",
    fields=(*LLAMA_FIELDS, Rope(), NO_BIAS, Window(), _tied(False)),
    requirements=(
        *(ROPE, WHOLE_HEADS, PRE, RMSNORM, GATED, WINDOWED, EVERYWHERE),
        *(*PLAIN, UNCAPPED, UNBIASED),
    ),
    parts=_llama_parts(),
)
MIXTRAL = Architecture(
    name="Mixtral",
    model_type="mixtral",
    class_name="MixtralForCausalLM",
    fields=(
        *(field for field in LLAMA_FIELDS if not isinstance(field, Choice)),
        *(Rope(default_base=1e6), NO_BIAS, Window(), _tied(False)),
        Implied({"ffn": "moe"}),
        Choice(
            *("hidden_act", "model.ffn.expert", "model.ffn.expert"),
            NAMES_OF_GATES,
            default="silu",
        ),
        Same("num_local_experts", "model.ffn.n_expert"),
        Same("num_experts_per_tok", "model.ffn.n_active"),
    ),
    requirements=(
        *(ROPE, WHOLE_HEADS, PRE, RMSNORM, WINDOWED, EVERYWHERE, *PLAIN, UNCAPPED, UNBIASED),
        _only("model.ffn.name", "moe"),
        _only("model.ffn.expert", "swiglu", "geglu"),
        _only(
            *("model.ffn.n_active", 2),
            why="weights a single expert with 1, minigpt with its probability",
            allows=_renormalises,
        ),
    ),
    parts=_llama_parts(
        (
            Part(f"{LAYER}ffn.router", (f"{LLAMA_LAYER}block_sparse_moe.gate",)),
            Part(f"{LAYER}ffn.experts.{{expert}}.gate_up", (f"{EXPERT}w1", f"{EXPERT}w3"), HALVES),
            Part(f"{LAYER}ffn.experts.{{expert}}.out", (f"{EXPERT}w2",)),
        )
    ),
)
QWEN2 = Architecture(
    name="Qwen2",
    model_type="qwen2",
    class_name="Qwen2ForCausalLM",
    fields=(*LLAMA_FIELDS, Rope(), NO_BIAS, WindowByLayer(switched=True), _tied(False)),
    requirements=(ROPE, WHOLE_HEADS, PRE, RMSNORM, GATED, WINDOWED, *PLAIN, UNCAPPED, UNBIASED),
    parts=_llama_parts(qkv_bias="always"),
)
SMOLLM3 = Architecture(
    name="SmolLM3 without RoPE",
    model_type="smollm3",
    class_name="SmolLM3ForCausalLM",
    fields=(
        *LLAMA_FIELDS,
        *BOTH_BIASES,
        *(WithoutRope(), Implied({"attention": "full"})),
        Fixed("use_sliding_window", False),
        _tied(True),
    ),
    requirements=(NOPE, PRE, RMSNORM, GATED, FULL, *PLAIN, UNCAPPED),
    parts=_llama_parts(),
)
GEMMA2 = Architecture(
    name="Gemma 2",
    model_type="gemma2",
    class_name="Gemma2ForCausalLM",
    exact=False,
    fields=(
        *SIZES,
        *(_norm("sandwich", "rmsnorm"), Same("rms_norm_eps", "model.norm.eps", 1e-6)),
        *(KeyValueHeads(), HeadSize(), HeadSize("query_pre_attn_scalar")),
        Dropout(("attention_dropout",)),
        _activation("hidden_activation", NAMES_OF_GATES, default="gelu_pytorch_tanh"),
        *(Rope(), NO_BIAS, WindowByLayer(switched=False), _tied(True)),
        Same("attn_logit_softcapping", "model.logit_softcap", 50.0),
        Fixed("final_logit_softcapping", None, default=30.0),
    ),
    requirements=(ROPE, WHOLE_HEADS, SANDWICH, RMSNORM, GATED, WINDOWED, *PLAIN, UNBIASED),
    parts=(
        *_vocabulary("model.embed_tokens", layout=SCALED),
        *_llama_attention(LLAMA_LAYER),
        *(
            Part(f"{LAYER}{ours}", (f"{LLAMA_LAYER}{theirs}_layernorm",), ABOVE_ONE)
            for ours, theirs in (
                ("attention_norm", "input"),
                ("attention_output_norm", "post_attention"),
                ("ffn_norm", "pre_feedforward"),
                ("ffn_output_norm", "post_feedforward"),
            )
        ),
        *_llama_parts()[6:8],
        Part("final_norm", ("model.norm",), ABOVE_ONE, when_tied=SCALED_ABOVE_ONE),
    ),
)
NEOX_LAYER = "gpt_neox.layers.{layer}."
GPT_NEOX = Architecture(
    name="GPT-NeoX",
    model_type="gpt_neox",
    class_name="GPTNeoXForCausalLM",
    prefix="gpt_neox.",
    fields=(
        *SIZES,
        *(_norm("pre", "layernorm"), Same("layer_norm_eps", "model.norm.eps", 1e-5)),
        *(Rope(default_fraction=0.25), Implied({"attention": "full"})),
        Fixed("use_parallel_residual", False, default=True),
        *(Fixed("attention_bias", True), Biases()),
        _activation("hidden_act", NAMES_OF_ACTIVATIONS, default="gelu"),
        *(Dropout(("attention_dropout", "hidden_dropout")), _tied(False)),
    ),
    requirements=(ROPE, PRE, LAYERNORM, MLP, FULL, ALL_HEADS, *PLAIN, UNCAPPED),
    parts=(
        *_vocabulary("gpt_neox.embed_in", "embed_out"),
        Part(f"{LAYER}attention_norm", (f"{NEOX_LAYER}input_layernorm",), bias="always"),
        Part(
            f"{LAYER}self_attention.qkv",
            (f"{NEOX_LAYER}attention.query_key_value",),
            *(BY_HEAD, "always"),
        ),
        Part(f"{LAYER}self_attention.out", (f"{NEOX_LAYER}attention.dense",), bias="always"),
        Part(f"{LAYER}ffn_norm", (f"{NEOX_LAYER}post_attention_layernorm",), bias="always"),
        Part(f"{LAYER}ffn.up", (f"{NEOX_LAYER}mlp.dense_h_to_4h",), bias="always"),
        Part(f"{LAYER}ffn.out", (f"{NEOX_LAYER}mlp.dense_4h_to_h",), bias="always"),
        Part("final_norm", ("gpt_neox.final_layer_norm",), bias="always"),
    ),
)
STARCODER2 = Architecture(
    name="StarCoder2",
    model_type="starcoder2",
    class_name="Starcoder2ForCausalLM",
    fields=(
        *SIZES,
        *(_norm("pre", "layernorm"), Same("norm_epsilon", "model.norm.eps", 1e-5)),
        *(Rope(), KeyValueHeads(), HeadSize(), Window(), Same("use_bias", "model.bias", True)),
        _activation("hidden_act", NAMES_OF_ACTIVATIONS, default="gelu_pytorch_tanh"),
        *(Dropout(("attention_dropout", "residual_dropout", "embedding_dropout")), _tied(True)),
    ),
    requirements=(
        *(ROPE, WHOLE_HEADS, PRE, LAYERNORM, MLP, WINDOWED, EVERYWHERE, *PLAIN, UNCAPPED),
    ),
    parts=_llama_parts(
        (
            Part(f"{LAYER}ffn.up", (f"{LLAMA_LAYER}mlp.c_fc",)),
            Part(f"{LAYER}ffn.out", (f"{LLAMA_LAYER}mlp.c_proj",)),
        ),
        norm_bias="always",
    ),
)
STABLELM = Architecture(
    name="StableLM",
    model_type="stablelm",
    class_name="StableLmForCausalLM",
    fields=(
        *SIZES,
        *(_norm("pre", "layernorm"), Same("layer_norm_eps", "model.norm.eps", 1e-5)),
        *(Rope(default_fraction=0.25), KeyValueHeads(), Implied({"attention": "full"}), NO_BIAS),
        *(Fixed("use_qkv_bias", False), Fixed("qk_layernorm", False)),
        Fixed("use_parallel_residual", False),
        _activation("hidden_act", NAMES_OF_GATES, default="silu"),
        *(Dropout(("attention_dropout", "hidden_dropout")), _tied(False)),
    ),
    requirements=(ROPE, PRE, LAYERNORM, GATED, FULL, *PLAIN, UNCAPPED, UNBIASED),
    parts=_llama_parts(norm_bias="always"),
)
MPT_ATTENTION = {
    **{"alibi": True, "alibi_bias_max": 8, "attn_type": "multihead_attention", "qk_ln": False},
    **{"clip_qkv": None, "softmax_scale": None, "prefix_lm": False},
}
MPT_LAYER = "transformer.blocks.{layer}."
MPT = Architecture(
    name="MPT",
    model_type="mpt",
    class_name="MptForCausalLM",
    prefix="transformer.",
    fields=(
        Implied({"positional": "alibi", "attention": "full", "ffn": "gelu"}),
        *(_norm("pre", "layernorm"), NO_BIAS, Implied({"model.ffn.expansion": 4.0})),
        Same("d_model", "model.n_embd"),
        Same("n_layers", "model.n_layer"),
        Same("n_heads", "model.n_head"),
        # only the length of a table; longer texts fail
        LongEnough("max_seq_len", 2048),
        Same("layer_norm_epsilon", "model.norm.eps", 1e-5),
        *(Fixed("expansion_ratio", 4), Fixed("no_bias", True), _tied(True)),
        Written("learned_pos_emb", lambda _: False),
        Nested("attn_config", {"alibi": True}, MPT_ATTENTION),
    ),
    requirements=(
        _only("model.positional.name", "alibi"),
        _only("model.positional.slopes", "fixed"),
        *(PRE, LAYERNORM, FULL, ALL_HEADS, *PLAIN, UNCAPPED, UNBIASED),
        _only("model.ffn.name", "gelu"),
        _only(
            *("model.ffn.expansion", 4.0),
            why="has feed-forward layers of exactly 4 n_embd",
            allows=_is_four_times_as_wide,
        ),
    ),
    parts=(
        *_vocabulary("transformer.wte"),
        Part(f"{LAYER}attention_norm", (f"{MPT_LAYER}norm_1",)),
        Part(f"{LAYER}self_attention.qkv", (f"{MPT_LAYER}attn.Wqkv",)),
        Part(f"{LAYER}self_attention.out", (f"{MPT_LAYER}attn.out_proj",)),
        Part(f"{LAYER}ffn_norm", (f"{MPT_LAYER}norm_2",)),
        Part(f"{LAYER}ffn.up", (f"{MPT_LAYER}ffn.up_proj",)),
        Part(f"{LAYER}ffn.out", (f"{MPT_LAYER}ffn.down_proj",)),
        Part("final_norm", ("transformer.norm_f",)),
    ),
)
# In the order of preference: the first that expresses a design.
ARCHITECTURES = (
    *(GPT2, LLAMA, MISTRAL, MIXTRAL, GPT_NEOX, STARCODER2, STABLELM, MPT),
    *(QWEN2, SMOLLM3, GEMMA2),
)


def choose_architecture(
    config: ModelConfig,
    among: Sequence[Architecture] = ARCHITECTURES,
    library: str = "transformers",
) -> Architecture:
    """Return the first architecture that expresses a design, `among` those of a library.

    Raises UserError with the option in the way and the nearest design that can leave.
    """
    found = [(one.violations(config), one) for one in among]
    violations, nearest = min(found, key=lambda pair: len(pair[0]))
    if not violations:
        return nearest
    first = violations[0]
    value = as_typed(option(config, first.key))
    remedies = " ".join(violation.remedy for violation in violations)
    raise UserError(
        f"{first.key}={value}: no architecture of {library} has it in this design "
        f"({nearest.name} {first.why}); train the nearest design that can leave, "
        f"as {nearest.name}: {remedies}"
    )


def architecture_of(values: Values) -> Architecture:
    """Return the architecture of a config.json. Raises UserError for one that is unknown."""
    kind = values.get("model_type")
    for one in ARCHITECTURES:
        if one.model_type == kind:
            return one
    known = ", ".join(one.model_type for one in ARCHITECTURES)
    raise UserError(f"{CONFIG}: model_type={kind}: minigpt reads only {known}")


COLUMNS = {
    "positional": ("model.positional.",),
    "norm": ("model.norm.",),
    "ffn": ("model.ffn.",),
    "attention": ("model.attention.",),
}


def design_table() -> str:
    """Return the table of docs/export.md: what each architecture requires of a design."""
    head = ("as", *COLUMNS, "and")
    rows = [head, ("---",) * len(head)]
    for one in ARCHITECTURES:
        own = [requirement for requirement in one.requirements if requirement not in PLAIN]
        cells = [one.name]
        for sections in (*COLUMNS.values(), ()):
            part = [each for each in own if each.key.startswith(sections or "model.")]
            own = [each for each in own if each not in part]
            cells.append("; ".join(_cell(each) for each in part))
        rows.append(tuple(cells))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def _cell(requirement: Requirement) -> str:
    if requirement.allows is not None:
        return f"`{group_of(requirement.key)}`: {requirement.why}"
    return f"`{group_of(requirement.key)}={requirement.describe()}`"
