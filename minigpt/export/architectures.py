"""The architectures of transformers that a design can leave as, and what each requires of it.

An architecture is one entry of `ARCHITECTURES`: the keys of its config.json (`fields`), the options
that it requires (`requirements`), and its weights (`parts`). Requirements are data: the refusal of
a design, the table in docs/export.md and the tests are made from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from minigpt.config.pairs import as_typed
from minigpt.errors import UserError
from minigpt.export.architecture import Architecture, Requirement, group_of
from minigpt.export.fields import (
    CONFIG,
    Choice,
    Dropout,
    FalconBlocks,
    Fixed,
    HeadSize,
    Implied,
    KeyValueHeads,
    LinearBiases,
    LongEnough,
    Nested,
    Rope,
    Same,
    ScoreScale,
    Unread,
    Values,
    Width,
    Window,
    WindowByLayer,
    WithoutRope,
    Written,
    option,
)
from minigpt.export.rewriting import gemma, gemma2, two_norms
from minigpt.export.shared import (
    ALIBI,
    ALL_HEADS,
    ANY_BIAS,
    ATTENTION_BIAS,
    BASIC,
    DIVISIBLE,
    EVERYWHERE,
    FOUR_TIMES,
    FULL,
    FULLY_BIASED,
    GATED,
    GATES,
    LAYER,
    LAYERNORM,
    LEARNED,
    LLAMA_FIELDS,
    LLAMA_LAYER,
    LLAMA_SIZES,
    MLP,
    NAMES_OF_ACTIVATIONS,
    NAMES_OF_GATES,
    NO_BIAS,
    NO_EMBEDDING_NORM,
    NO_QK_NORM,
    NOPE,
    NORM_BIASES,
    NORM_UNBIASED,
    OUTPUT,
    PLAIN,
    PRE,
    QKV_BIASED,
    RMSNORM,
    ROPE,
    SANDWICH,
    SANDWICH_NORMS,
    SEQUENTIAL,
    SIZES,
    SPLIT_HEADS,
    UNBIASED,
    UNCAPPED,
    USUAL,
    WHOLE_HEADS,
    WINDOWED,
    activation,
    biases,
    blocks,
    llama_attention,
    llama_parts,
    norm,
    only,
    tied,
    vocabulary,
)
from minigpt.export.tensors import BY_GROUP, HALVES, TRANSPOSED, Part
from minigpt.model.config import ModelConfig

# ---- LayerNorms and learned positions, ALiBi, or partial RoPE ----

GPT2 = Architecture(
    name="GPT-2",
    model_type="gpt2",
    class_name="GPT2LMHeadModel",
    prefix="transformer.",
    fields=(
        *(Implied({"positional": "learned", "attention": "full"}), FULLY_BIASED),
        norm("pre", "layernorm"),
        Same("n_embd", "model.n_embd"),
        Same("n_layer", "model.n_layer"),
        Same("n_head", "model.n_head"),
        Same("n_positions", "model.block_size", 1024),
        Width("n_inner", "n_embd"),
        activation("activation_function", NAMES_OF_ACTIVATIONS, default="gelu_new"),
        Same("layer_norm_epsilon", "model.norm.eps", 1e-5),
        Dropout(("resid_pdrop", "embd_pdrop", "attn_pdrop")),
        Fixed("scale_attn_weights", True),
        Fixed("scale_attn_by_inverse_layer_idx", False),
        tied(True),
    ),
    requirements=(
        *(LEARNED, PRE, *LAYERNORM, MLP, FULL, ALL_HEADS, *BASIC, SEQUENTIAL, *UNCAPPED),
        SPLIT_HEADS,
    ),
    parts=(
        *vocabulary("transformer.wte"),
        Part("positional.table", ("transformer.wpe",)),
        *blocks(
            "transformer.h.{layer}.",
            {
                "attention_norm": "ln_1",
                "self_attention.qkv": "attn.c_attn",
                "self_attention.out": "attn.c_proj",
                "ffn_norm": "ln_2",
                "ffn.up": "mlp.c_fc",
                "ffn.out": "mlp.c_proj",
            },
            dict.fromkeys(
                ("self_attention.qkv", "self_attention.out", "ffn.up", "ffn.out"), TRANSPOSED
            ),
        ),
        Part("final_norm", ("transformer.ln_f",), bias="always"),
    ),
)
GPT_NEOX = Architecture(
    name="GPT-NeoX",
    model_type="gpt_neox",
    class_name="GPTNeoXForCausalLM",
    prefix="gpt_neox.",
    conventions=two_norms,
    fields=(
        *SIZES,
        *(norm("pre", "layernorm"), Same("layer_norm_eps", "model.norm.eps", 1e-5)),
        *(Rope(default_fraction=0.25), Implied({"attention": "full"})),
        Choice(
            *("use_parallel_residual", "model.block", "model.block"),
            {"parallel": (True,), "sequential": (False,)},
            default=True,
        ),
        *(Fixed("attention_bias", True), FULLY_BIASED),
        activation("hidden_act", NAMES_OF_ACTIVATIONS, default="gelu"),
        *(Dropout(("attention_dropout", "hidden_dropout")), tied(False)),
    ),
    requirements=(*(ROPE, PRE, *LAYERNORM, MLP, FULL, ALL_HEADS, *BASIC, *UNCAPPED, SPLIT_HEADS),),
    parts=(
        *vocabulary("gpt_neox.embed_in", "embed_out"),
        *blocks(
            "gpt_neox.layers.{layer}.",
            {
                "attention_norm": "input_layernorm",
                "self_attention.qkv": "attention.query_key_value",
                "self_attention.out": "attention.dense",
                "ffn_norm": "post_attention_layernorm",
                "ffn.up": "mlp.dense_h_to_4h",
                "ffn.out": "mlp.dense_4h_to_h",
            },
            {"self_attention.qkv": BY_GROUP},
        ),
        Part("final_norm", ("gpt_neox.final_layer_norm",), bias="always"),
    ),
)
FALCON_LAYER = "transformer.h.{layer}."
FALCON = Architecture(
    name="Falcon",
    model_type="falcon",
    class_name="FalconForCausalLM",
    prefix="transformer.",
    fields=(
        *SIZES[:-1],
        *(Width("ffn_hidden_size", "hidden_size"), FalconBlocks(), Rope(), Fixed("alibi", False)),
        *(norm("pre", "layernorm"), Same("layer_norm_epsilon", "model.norm.eps", 1e-5)),
        *(NORM_BIASES, biases("bias", ANY_BIAS, False), Implied({"attention": "full"})),
        activation("activation", NAMES_OF_ACTIVATIONS, default="gelu"),
        *(Dropout(("attention_dropout", "hidden_dropout")), tied(True)),
    ),
    requirements=(
        *(ROPE, WHOLE_HEADS, PRE, *LAYERNORM, MLP, FULL, *BASIC, *UNCAPPED, SPLIT_HEADS),
        only("model.block", "parallel_shared", "parallel"),
    ),
    parts=(
        *vocabulary("transformer.word_embeddings"),
        *(
            replace(part, blocks=("parallel_shared",))
            for part in blocks(FALCON_LAYER, {"attention_norm": "input_layernorm"})
        ),
        *(
            replace(part, blocks=("parallel",))
            for part in blocks(FALCON_LAYER, {"attention_norm": "ln_attn", "ffn_norm": "ln_mlp"})
        ),
        *blocks(
            FALCON_LAYER,
            {
                "self_attention.qkv": "self_attention.query_key_value",
                "self_attention.out": "self_attention.dense",
                "ffn.up": "mlp.dense_h_to_4h",
                "ffn.out": "mlp.dense_4h_to_h",
            },
            {"self_attention.qkv": BY_GROUP},
            bias="any",
        ),
        Part("final_norm", ("transformer.ln_f",), bias="always"),
    ),
)
BLOOM = Architecture(
    name="BLOOM",
    model_type="bloom",
    class_name="BloomForCausalLM",
    prefix="transformer.",
    fields=(
        Implied({"positional": "alibi", "attention": "full", "ffn": "gelu_tanh"}),
        Implied({"model.norm.on_embeddings": True, "model.ffn.expansion": 4.0}),
        *(norm("pre", "layernorm"), FULLY_BIASED),
        Same("hidden_size", "model.n_embd", before="n_embed"),
        Same("n_layer", "model.n_layer", before="num_hidden_layers"),
        Same("n_head", "model.n_head", before="num_attention_heads"),
        Same("seq_length", "model.block_size", 2048),
        Same("layer_norm_epsilon", "model.norm.eps", 1e-5),
        Fixed("apply_residual_connection_post_layernorm", False),
        *(Dropout(("attention_dropout", "hidden_dropout")), tied(True)),
    ),
    requirements=(
        *(*ALIBI, PRE, *LAYERNORM, FULL, ALL_HEADS, NO_QK_NORM, *PLAIN, SEQUENTIAL, *UNCAPPED),
        only("model.norm.on_embeddings", True, why="has a norm of the embeddings"),
        *(only("model.ffn.name", "gelu_tanh"), FOUR_TIMES, SPLIT_HEADS),
    ),
    parts=(
        *vocabulary("transformer.word_embeddings"),
        Part("embedding_norm", ("transformer.word_embeddings_layernorm",), bias="always"),
        *blocks(
            FALCON_LAYER,
            {
                "attention_norm": "input_layernorm",
                "self_attention.qkv": "self_attention.query_key_value",
                "self_attention.out": "self_attention.dense",
                "ffn_norm": "post_attention_layernorm",
                "ffn.up": "mlp.dense_h_to_4h",
                "ffn.out": "mlp.dense_4h_to_h",
            },
            {"self_attention.qkv": BY_GROUP},
        ),
        Part("final_norm", ("transformer.ln_f",), bias="always"),
    ),
)
MPT_ATTENTION = {
    **{"alibi": True, "alibi_bias_max": 8, "attn_type": "multihead_attention", "qk_ln": False},
    **{"clip_qkv": None, "softmax_scale": None, "prefix_lm": False},
}
MPT = Architecture(
    name="MPT",
    model_type="mpt",
    class_name="MptForCausalLM",
    prefix="transformer.",
    fields=(
        Implied({"positional": "alibi", "attention": "full", "ffn": "gelu"}),
        *(norm("pre", "layernorm"), NO_BIAS, Implied({"model.ffn.expansion": 4.0})),
        Same("d_model", "model.n_embd"),
        Same("n_layers", "model.n_layer"),
        Same("n_heads", "model.n_head"),
        # only the length of a table; longer texts fail
        LongEnough("max_seq_len", 2048),
        Same("layer_norm_epsilon", "model.norm.eps", 1e-5),
        *(Fixed("expansion_ratio", 4), Fixed("no_bias", True), tied(True)),
        *(Written("learned_pos_emb", lambda _: False), Unread(("logit_scale", "norm_type"))),
        Fixed("embedding_fraction", 1.0),
        Nested("attn_config", {"alibi": True}, MPT_ATTENTION),
    ),
    requirements=(
        *(*ALIBI, PRE, *LAYERNORM, FULL, ALL_HEADS, *BASIC, SEQUENTIAL, *UNCAPPED, UNBIASED),
        *(NORM_UNBIASED, only("model.ffn.name", "gelu"), FOUR_TIMES, SPLIT_HEADS),
    ),
    parts=(
        *vocabulary("transformer.wte"),
        *blocks(
            "transformer.blocks.{layer}.",
            {
                "attention_norm": "norm_1",
                "self_attention.qkv": "attn.Wqkv",
                "self_attention.out": "attn.out_proj",
                "ffn_norm": "norm_2",
                "ffn.up": "ffn.up_proj",
                "ffn.out": "ffn.down_proj",
            },
            bias="own",
        ),
        Part("final_norm", ("transformer.norm_f",)),
    ),
)
STARCODER2 = Architecture(
    name="StarCoder2",
    model_type="starcoder2",
    class_name="Starcoder2ForCausalLM",
    fields=(
        *SIZES,
        *(norm("pre", "layernorm"), Same("norm_epsilon", "model.norm.eps", 1e-5), NORM_BIASES),
        *(Rope(), KeyValueHeads(), HeadSize(), Window(), biases("use_bias", ANY_BIAS, True)),
        activation("hidden_act", NAMES_OF_ACTIVATIONS, default="gelu_pytorch_tanh"),
        *(Dropout(("attention_dropout", "residual_dropout", "embedding_dropout")), tied(True)),
    ),
    requirements=(
        *(ROPE, WHOLE_HEADS, PRE, *LAYERNORM, MLP, WINDOWED, EVERYWHERE, *BASIC, SEQUENTIAL),
        *UNCAPPED,
    ),
    parts=llama_parts(
        llama_attention("any", "any"),
        blocks(LLAMA_LAYER, {"ffn.up": "mlp.c_fc", "ffn.out": "mlp.c_proj"}, bias="any"),
        norm_bias="always",
    ),
)
STABLELM = Architecture(
    name="StableLM",
    model_type="stablelm",
    class_name="StableLmForCausalLM",
    fields=(
        *SIZES,
        *(norm("pre", "layernorm"), Same("layer_norm_eps", "model.norm.eps", 1e-5), NORM_BIASES),
        *(Rope(default_fraction=0.25), KeyValueHeads(), Implied({"attention": "full"})),
        *(biases("use_qkv_bias", ATTENTION_BIAS, False), Fixed("qk_layernorm", False)),
        Choice(
            *("use_parallel_residual", "model.block", "model.block"),
            {"parallel_shared": (True,), "sequential": (False,)},
            default=False,
        ),
        activation("hidden_act", NAMES_OF_GATES, default="silu"),
        *(Dropout(("attention_dropout", "hidden_dropout")), tied(False)),
    ),
    requirements=(
        *(ROPE, PRE, *LAYERNORM, GATED, FULL, *BASIC, *UNCAPPED, QKV_BIASED, SPLIT_HEADS),
        only("model.block", "sequential", "parallel_shared"),
    ),
    parts=tuple(
        replace(part, blocks=("sequential",)) if part.ours.endswith("ffn_norm") else part
        for part in llama_parts(norm_bias="always")
    ),
)

# ---- RMSNorms and gated layers ----

LLAMA = Architecture(
    name="Llama",
    model_type="llama",
    class_name="LlamaForCausalLM",
    fields=(*LLAMA_FIELDS, Rope(), LinearBiases(), Implied({"attention": "full"}), tied(False)),
    requirements=(
        *(ROPE, WHOLE_HEADS, PRE, *RMSNORM, GATED, FULL, *BASIC, SEQUENTIAL, *UNCAPPED),
        DIVISIBLE,
    ),
    parts=llama_parts(llama_attention(out="any")),
)
MISTRAL = Architecture(
    name="Mistral",
    model_type="mistral",
    class_name="MistralForCausalLM",
    fields=(*LLAMA_FIELDS, Rope(), NO_BIAS, Window(), tied(False)),
    requirements=(
        *(ROPE, WHOLE_HEADS, PRE, *RMSNORM, GATED, WINDOWED, EVERYWHERE, *BASIC, SEQUENTIAL),
        *(*UNCAPPED, UNBIASED),
    ),
    parts=llama_parts(),
)
EXPERT = "block_sparse_moe.experts.{expert}."
MIXTRAL = Architecture(
    name="Mixtral",
    model_type="mixtral",
    class_name="MixtralForCausalLM",
    fields=(
        *(*LLAMA_SIZES, norm("pre", "rmsnorm"), Implied({"ffn": "moe"})),
        *(Rope(default_base=1e6), NO_BIAS, Window(), tied(False)),
        Choice(
            *("hidden_act", "model.ffn.expert", "model.ffn.expert"),
            NAMES_OF_GATES,
            default="silu",
        ),
        Same("num_local_experts", "model.ffn.n_expert"),
        Same("num_experts_per_tok", "model.ffn.n_active"),
    ),
    requirements=(
        *(ROPE, WHOLE_HEADS, PRE, *RMSNORM, WINDOWED, EVERYWHERE, *BASIC, SEQUENTIAL),
        *(*UNCAPPED, UNBIASED, only("model.ffn.name", "moe"), only("model.ffn.expert", *GATES)),
        only(
            *("model.ffn.n_active", 2),
            why="weights a single expert with 1, minigpt with its probability",
            allows=lambda config: getattr(config.ffn, "n_active", 2) >= 2,
        ),
    ),
    parts=llama_parts(
        feed_forward=(
            *blocks(LLAMA_LAYER, {"ffn.router": "block_sparse_moe.gate"}, bias="own"),
            Part(
                f"{LAYER}ffn.experts.{{expert}}.gate_up",
                (f"{LLAMA_LAYER}{EXPERT}w1", f"{LLAMA_LAYER}{EXPERT}w3"),
                HALVES,
            ),
            Part(f"{LAYER}ffn.experts.{{expert}}.out", (f"{LLAMA_LAYER}{EXPERT}w2",)),
        )
    ),
)
QWEN2 = Architecture(
    name="Qwen2",
    model_type="qwen2",
    class_name="Qwen2ForCausalLM",
    own_tokenizer=True,
    fields=(
        *(*LLAMA_FIELDS, Rope(), WindowByLayer(switched=True), tied(False)),
        Implied({"model.bias": "qkv"}, covers=("model.bias",)),
    ),
    requirements=(
        *(ROPE, WHOLE_HEADS, PRE, *RMSNORM, GATED, WINDOWED, *BASIC, SEQUENTIAL, *UNCAPPED),
        QKV_BIASED,
    ),
    parts=llama_parts(llama_attention("always")),
)
PHI3 = Architecture(
    name="Phi-3",
    model_type="phi3",
    class_name="Phi3ForCausalLM",
    fields=(
        *(*LLAMA_FIELDS, Rope(), NO_BIAS, Window(), tied(False)),
        Dropout(("resid_pdrop", "embd_pdrop")),
    ),
    requirements=(
        *(ROPE, PRE, *RMSNORM, GATED, WINDOWED, EVERYWHERE, *BASIC, SEQUENTIAL, *UNCAPPED),
        *(UNBIASED, only("model.positional.scaling", "none", "ntk")),
    ),
    parts=llama_parts(
        blocks(
            LLAMA_LAYER,
            {
                "self_attention.qkv": "self_attn.qkv_proj",
                "self_attention.out": "self_attn.o_proj",
            },
            bias="own",
        ),
        blocks(
            LLAMA_LAYER,
            {"ffn.gate_up": "mlp.gate_up_proj", "ffn.out": "mlp.down_proj"},
            bias="own",
        ),
    ),
)
SMOLLM3 = Architecture(
    name="SmolLM3 without RoPE",
    model_type="smollm3",
    class_name="SmolLM3ForCausalLM",
    fields=(
        *(*LLAMA_FIELDS, LinearBiases(), WithoutRope(), Implied({"attention": "full"})),
        *(Fixed("use_sliding_window", False), tied(True)),
        Unread(("sliding_window", "max_window_layers")),
    ),
    requirements=(
        *(NOPE, PRE, *RMSNORM, GATED, FULL, *BASIC, SEQUENTIAL, *UNCAPPED),
        only(
            *("model.head_size", 64),
            why="has heads of an even number of channels",
            allows=lambda config: config.shape.head_size % 2 == 0,
        ),
    ),
    parts=llama_parts(llama_attention(out="any")),
)
OLMO2 = Architecture(
    name="OLMo 2",
    model_type="olmo2",
    class_name="Olmo2ForCausalLM",
    fields=(
        *(*LLAMA_SIZES, norm("output", "rmsnorm", qk_norm="all_channels"), Rope()),
        activation("hidden_act", NAMES_OF_GATES, default="silu"),
        biases("attention_bias", ATTENTION_BIAS, False),
        *(Implied({"attention": "full"}), tied(False)),
    ),
    requirements=(
        only("model.qk_norm", "all_channels"),
        *(ROPE, WHOLE_HEADS, OUTPUT, *RMSNORM, GATED, FULL, *PLAIN, NO_EMBEDDING_NORM),
        *(SEQUENTIAL, *UNCAPPED, QKV_BIASED),
    ),
    parts=llama_parts(
        (
            *llama_attention(out="any"),
            *blocks(
                LLAMA_LAYER,
                {
                    "self_attention.q_norm": "self_attn.q_norm",
                    "self_attention.k_norm": "self_attn.k_norm",
                },
                bias="own",
            ),
        ),
        norms={name: one for name, one in SANDWICH_NORMS.items() if "output" in name},
    ),
)

# ---- Gemma: gains of 1 + w and scaled embeddings ----

GEMMA_UNITS = Implied(
    {"model.norm.unit_offset": True, "model.embedding.scale": True},
    covers=("model.norm.unit_offset", "model.embedding.scale"),
)
GEMMA_FIELDS = (
    *SIZES,
    *(Same("rms_norm_eps", "model.norm.eps", 1e-6), KeyValueHeads(), HeadSize(default=256)),
    *(Dropout(("attention_dropout",)), Rope(), GEMMA_UNITS, tied(True)),
    biases("attention_bias", ATTENTION_BIAS, False),
)
# transformers reads gelu as its tanh approximation
NAMES_OF_GEMMA = {"swiglu": ("silu", "swish"), "geglu_tanh": ("gelu_pytorch_tanh", "gelu")}
GEMMA = Architecture(
    name="Gemma",
    model_type="gemma",
    class_name="GemmaForCausalLM",
    conventions=gemma,
    fields=(
        *(*GEMMA_FIELDS, norm("pre", "rmsnorm"), Implied({"attention": "full"})),
        activation("hidden_act", NAMES_OF_GEMMA, default="gelu_pytorch_tanh"),
    ),
    requirements=(
        *(ROPE, WHOLE_HEADS, PRE, *RMSNORM, FULL, *BASIC, SEQUENTIAL, *UNCAPPED, QKV_BIASED),
        only("model.ffn.name", *NAMES_OF_GEMMA),
    ),
    parts=llama_parts(llama_attention(out="any")),
)
VAULT_GEMMA = Architecture(
    name="VaultGemma",
    model_type="vaultgemma",
    class_name="VaultGemmaForCausalLM",
    conventions=gemma2,
    fields=(
        *(*GEMMA_FIELDS, norm("pre", "rmsnorm"), WindowByLayer(switched=False)),
        activation("hidden_activation", NAMES_OF_GATES, default="gelu_pytorch_tanh"),
        ScoreScale("query_pre_attn_scalar", 256),
        Same("attn_logit_softcapping", "model.logit_softcap", 50.0),
        *(Same("final_logit_softcapping", "model.final_softcap", 30.0), Unread(("hidden_act",))),
    ),
    requirements=(
        *(ROPE, WHOLE_HEADS, PRE, *RMSNORM, GATED, WINDOWED, *BASIC, SEQUENTIAL, QKV_BIASED),
        DIVISIBLE,
    ),
    parts=llama_parts(
        llama_attention(out="any"),
        norms={"attention_norm": "input_layernorm", "ffn_norm": "pre_feedforward_layernorm"},
    ),
)
GEMMA2 = replace(
    VAULT_GEMMA,
    name="Gemma 2",
    model_type="gemma2",
    class_name="Gemma2ForCausalLM",
    fields=tuple(
        norm("sandwich", "rmsnorm") if field == norm("pre", "rmsnorm") else field
        for field in VAULT_GEMMA.fields
    ),
    requirements=tuple(SANDWICH if one is PRE else one for one in VAULT_GEMMA.requirements),
    parts=llama_parts(llama_attention(out="any"), norms=SANDWICH_NORMS),
)
# In the order of preference.
ARCHITECTURES = (
    *(GPT2, LLAMA, MISTRAL, MIXTRAL, GPT_NEOX, STARCODER2, STABLELM, MPT),
    *(QWEN2, PHI3, SMOLLM3, FALCON, BLOOM, OLMO2, GEMMA, GEMMA2, VAULT_GEMMA),
)

LEAVING = tuple(one for one in ARCHITECTURES if not one.own_tokenizer)


def choose_architecture(
    config: ModelConfig,
    among: Sequence[Architecture] = LEAVING,
    library: str = "transformers",
) -> Architecture:
    """Return the architecture that expresses a design, `among` those of a library.

    Of several: one that needs no other weights, then that of the name of the design, then the
    first. Raises UserError with the option in the way and the nearest design that can leave.
    """

    def distance(one: Architecture) -> tuple[int, bool, bool]:
        n_violations, other_name = len(one.violations(config)), one.model_type != config.name
        return n_violations, one.rewrites(config), other_name

    nearest = min(among, key=distance)
    violations = nearest.violations(config)
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
    for one in LEAVING:
        own = [requirement for requirement in one.requirements if requirement not in USUAL]
        cells = [one.name]
        for sections in (*COLUMNS.values(), ()):
            part = [each for each in own if each.key.startswith(sections or "model.")]
            own = [each for each in own if each not in part]
            cells.append("; ".join(_cell(each) for each in part))
        keys = {requirement.key for requirement in one.requirements}
        others = dict.fromkeys(usual.key for usual in USUAL if usual.key not in keys)
        cells[-1] = "; ".join(filter(None, (cells[-1], *(f"any `{key}`" for key in others))))
        rows.append(tuple(cells))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def _cell(requirement: Requirement) -> str:
    if requirement.allows is not None:
        return f"`{group_of(requirement.key)}`: {requirement.why}"
    return f"`{group_of(requirement.key)}={requirement.describe()}`"
