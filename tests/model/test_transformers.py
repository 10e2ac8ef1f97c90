"""Comparison with Hugging Face models: equal weights give equal logits and gradients.

The models are small and random, built from configs; nothing is downloaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    MptConfig,
    MptForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.t5.modeling_t5 import T5Attention, T5Block, T5Stack

from minigpt.config.groups import choices
from minigpt.model import GPT, ModelConfig
from minigpt.model.kv_cache import KVCache
from minigpt.model.positional.rope import RotaryPositions
from minigpt.model.positional.t5 import T5Bias, t5_bucket
from tests.model.tiny import N_VOCAB, composed_model, default_dtype, gradients, random_tokens

HEADS = {"transformer.wte.": "token_embedding.", "lm_head.": "head."}
GPT2_NAMES = HEADS | {
    "transformer.wpe.": "positional.table.",
    "transformer.ln_f.": "final_norm.",
    "transformer.h.": "blocks.",
    ".ln_1.": ".attention_norm.",
    ".attn.c_attn.": ".self_attention.qkv.",
    ".attn.c_proj.": ".self_attention.out.",
    ".ln_2.": ".ffn_norm.",
    ".mlp.c_fc.": ".ffn.up.",
    ".mlp.c_proj.": ".ffn.out.",
}
LLAMA_NAMES = {
    "model.embed_tokens.": "token_embedding.",
    "lm_head.": "head.",
    "model.norm.": "final_norm.",
    "model.layers.": "blocks.",
    ".input_layernorm.": ".attention_norm.",
    ".self_attn.q_proj.": ".self_attention.qkv.",
    ".self_attn.k_proj.": ".self_attention.qkv.",
    ".self_attn.v_proj.": ".self_attention.qkv.",
    ".self_attn.o_proj.": ".self_attention.out.",
    ".post_attention_layernorm.": ".ffn_norm.",
    ".mlp.gate_proj.": ".ffn.gate_up.",
    ".mlp.up_proj.": ".ffn.gate_up.",
    ".mlp.down_proj.": ".ffn.out.",
}
MIXTRAL_NAMES = LLAMA_NAMES | {
    ".mlp.gate.": ".ffn.router.",
    ".mlp.experts.": ".ffn.experts.",
    ".gate_up_proj": ".gate_up.weight",
    ".down_proj": ".out.weight",
}
MPT_NAMES = HEADS | {
    "transformer.norm_f.": "final_norm.",
    "transformer.blocks.": "blocks.",
    ".norm_1.": ".attention_norm.",
    ".attn.Wqkv.": ".self_attention.qkv.",
    ".attn.out_proj.": ".self_attention.out.",
    ".norm_2.": ".ffn_norm.",
    ".ffn.up_proj.": ".ffn.up.",
    ".ffn.down_proj.": ".ffn.out.",
}
BLOOM_NAMES = {
    "transformer.word_embeddings.": "token_embedding.",
    "transformer.word_embeddings_layernorm.": "embedding_norm.",
    "lm_head.": "head.",
    "transformer.ln_f.": "final_norm.",
    "transformer.h.": "blocks.",
    ".input_layernorm.": ".attention_norm.",
    ".ln_attn.": ".attention_norm.",
    ".ln_mlp.": ".ffn_norm.",
    ".self_attention.query_key_value.": ".self_attention.qkv.",
    ".self_attention.dense.": ".self_attention.out.",
    ".post_attention_layernorm.": ".ffn_norm.",
    ".mlp.dense_h_to_4h.": ".ffn.up.",
    ".mlp.dense_4h_to_h.": ".ffn.out.",
}
GPT_NEOX_NAMES = {
    "gpt_neox.embed_in.": "token_embedding.",
    "gpt_neox.final_layer_norm.": "final_norm.",
    "gpt_neox.layers.": "blocks.",
    ".attention.": ".self_attention.",
} | BLOOM_NAMES
PHI3_NAMES = LLAMA_NAMES | {
    ".self_attn.qkv_proj.": ".self_attention.qkv.",
    ".mlp.gate_up_proj.": ".ffn.gate_up.",
}
OUTPUT_NORM_NAMES = LLAMA_NAMES | {
    ".post_attention_layernorm.": ".attention_output_norm.",
    ".pre_feedforward_layernorm.": ".ffn_norm.",
    ".post_feedforward_layernorm.": ".ffn_output_norm.",
    ".self_attn.": ".self_attention.",
}
T5_NAMES = {
    "stack.block.0.layer.0.SelfAttention.relative_attention_bias.weight": "positional.bias",
    "stack.embed_tokens.": "token_embedding.",
    "stack.final_layer_norm.": "final_norm.",
    "stack.block.": "blocks.",
    ".layer.0.layer_norm.": ".attention_norm.",
    ".layer.0.SelfAttention.q.": ".self_attention.qkv.",
    ".layer.0.SelfAttention.k.": ".self_attention.qkv.",
    ".layer.0.SelfAttention.v.": ".self_attention.qkv.",
    ".layer.0.SelfAttention.o.": ".self_attention.out.",
    ".layer.1.layer_norm.": ".ffn_norm.",
    ".layer.1.DenseReluDense.wi.": ".ffn.up.",
    ".layer.1.DenseReluDense.wo.": ".ffn.out.",
}

Convert = Callable[[str, Tensor], Tensor]
"""convert(name, tensor): a Hugging Face tensor in the layout of minigpt."""


def unchanged(name: str, tensor: Tensor) -> Tensor:
    """Return the tensor."""
    return tensor


def transposed(name: str, tensor: Tensor) -> Tensor:
    """Transpose the linear weights of GPT-2, which are (in, out)."""
    return tensor.T if ".c_" in name and name.endswith("weight") else tensor


def split_heads(config: ModelConfig) -> Convert:
    """Return a conversion from the order (head, qkv) of rows to (qkv, head)."""
    return split_groups(replace(config, n_kv_head=config.n_head))


def split_groups(config: ModelConfig) -> Convert:
    """Return a conversion from rows of the queries, key and value of each group to (qkv, head)."""
    groups, e = config.shape.n_kv_head, config.shape.head_size

    def convert(name: str, tensor: Tensor) -> Tensor:
        if "query_key_value" not in name:
            return tensor
        by_group = rearrange(tensor, "(g h e) ... -> g h e ...", g=groups, e=e)
        parts = by_group[:, :-2], by_group[:, -2:-1], by_group[:, -1:]
        return torch.cat([part.flatten(0, 2) for part in parts])

    return convert


def table_of_biases(config: ModelConfig) -> Convert:
    """Return a conversion of T5's table of biases (bucket, h) to (set, h, bucket)."""
    return lambda name, tensor: tensor.T[None] if "relative_attention_bias" in name else tensor


class NoFloat32(TorchFunctionMode):
    """Replace float32 by float64 in Hugging Face code: softmax, RMS norm, angles and slopes."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        def widened(value: Any) -> Any:
            return torch.float64 if value is torch.float32 else value

        if func is Tensor.float:
            func = Tensor.double
        named = {key: widened(value) for key, value in (kwargs or {}).items()}
        result = func(*map(widened, args), **named)
        assert not isinstance(result, Tensor) or result.dtype != torch.float32, func
        return result


@contextmanager
def float64() -> Iterator[None]:
    """Create and run both models entirely in float64."""
    with default_dtype(torch.float64), NoFloat32():
        yield


def hugging_face(model_class: Any, config_class: Any, **options: Any) -> Any:
    """Return a Hugging Face model whose parameters are all random with a large variance."""
    tokens: dict[str, Any] = {f"{token}_token_id": None for token in ("bos", "eos", "pad")}
    theirs = model_class(
        config_class(vocab_size=N_VOCAB, attn_implementation="eager", **tokens, **options)
    ).eval()
    assert theirs.config._attn_implementation == "eager"
    generator = torch.Generator().manual_seed(0)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.4, generator=generator)
    return theirs


def translated(
    tensors: Mapping[str, Tensor], names: Mapping[str, str], convert: Convert
) -> dict[str, Tensor]:
    """Return Hugging Face tensors by minigpt's names; tensors of the same name are concatenated."""
    parts: dict[str, list[Tensor]] = {}
    for name, tensor in split_experts(tensors).items():
        ours = name
        for old, new in names.items():
            ours = ours.replace(old, new)
        parts.setdefault(ours, []).append(convert(name, tensor))
    return {name: torch.cat(tensors) for name, tensors in parts.items()}


def split_experts(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Split each tensor of Mixtral's experts (e, ...) into one named tensor per expert."""
    split: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if ".experts." in name:
            for expert, weight in enumerate(tensor):
                split[name.replace(".experts.", f".experts.{expert}.")] = weight
        else:
            split[name] = tensor
    return split


def translated_model(
    config: ModelConfig, theirs: Any, names: Mapping[str, str], convert: Convert
) -> GPT:
    """Return minigpt's model with the weights of `theirs`."""
    model = GPT(config, N_VOCAB).eval()
    # load_state_dict raises for missing names and wrong shapes.
    model.load_state_dict(translated(theirs.state_dict(), names, convert))
    return model


def assert_equal_models(
    config: ModelConfig,
    theirs: Any,
    names: Mapping[str, str],
    convert: Convert = unchanged,
    length: int = 16,
) -> None:
    """Assert that minigpt with the weights of `theirs` has its logits and gradients.

    Call it within float64().
    """
    model = translated_model(config, theirs, names, convert)
    tokens, targets = random_tokens(2, length), random_tokens(2, length, seed=1).flatten()
    logits, expected = model(tokens), theirs(tokens, use_cache=False).logits
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)
    grads = gradients(F.cross_entropy(logits.flatten(0, 1), targets), model)
    F.cross_entropy(expected.flatten(0, 1), targets).backward()
    their_grads = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    expected_grads = translated(their_grads, names, convert)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def assert_equal_decoding(model: GPT, theirs: Any, sizes: Iterable[int] = (6, 1, 1, 3)) -> None:
    """Assert that a prefill and decoding steps of `sizes` tokens give equal logits.

    Call it within float64().
    """
    tokens, cache, past, end = random_tokens(2, 16), KVCache(2, 16, torch.device("cpu")), None, 0
    for size in sizes:
        positions, end = torch.arange(end, end + size)[None], end + size
        part = tokens[:, positions[0]]
        expected = theirs(part, past_key_values=past, use_cache=True)
        past = expected.past_key_values
        logits = model(part, None if positions[0, 0] == 0 else positions, cache)
        torch.testing.assert_close(logits, expected.logits, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("ffn", "activation"), [("gelu", "gelu"), ("gelu_tanh", "gelu_new")])
@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_gpt2(ffn: str, activation: str, eps: float) -> None:
    options = ("model=gpt2", f"ffn={ffn}", f"model.norm.eps={eps}")
    config = replace(composed_model(*options), n_layer=2, n_head=3, n_embd=12, block_size=16)
    with float64():
        theirs = hugging_face(
            GPT2LMHeadModel,
            GPT2Config,
            n_positions=config.block_size,
            n_embd=config.n_embd,
            n_layer=config.n_layer,
            n_head=config.n_head,
            activation_function=activation,
            layer_norm_epsilon=eps,
        )
        assert_equal_models(config, theirs, GPT2_NAMES, transposed)


def llama_config(
    scaling: str = "none", factor: float = 1.0, block_size: int = 64, **changes: Any
) -> ModelConfig:
    """Return the Llama preset with head size 16; at block size 64 YaRN interpolates some pairs."""
    rope = (f"model.positional.scaling={scaling}", f"model.positional.factor={factor}")
    small = {"n_layer": 2, "n_head": 4, "n_embd": 64, "block_size": block_size}
    return replace(composed_model("model=llama", *rope), **{**small, **changes})


def llama(
    config: ModelConfig,
    rope: dict[str, Any],
    model_class: Any = LlamaForCausalLM,
    config_class: Any = LlamaConfig,
    **options: Any,
) -> Any:
    """Return the Hugging Face model of a config; `rope` updates its rope_parameters."""
    rope = {"rope_theta": 10000.0, **rope}
    options = {**llama_options(config), "rope_parameters": rope, **options}
    return hugging_face(model_class, config_class, **options)


def rope_frequencies(config: ModelConfig) -> Tensor:
    """Return the RoPE frequencies of minigpt."""
    scheme = GPT(config, N_VOCAB).positional
    assert isinstance(scheme, RotaryPositions)
    return scheme.frequencies(torch.device("cpu"))


@pytest.mark.parametrize("n_kv_head", [None, 2, 1])
def test_llama(n_kv_head: int | None) -> None:
    config = llama_config(n_kv_head=n_kv_head)
    with float64():
        assert_equal_models(config, llama(config, {"rope_type": "default"}), LLAMA_NAMES)


@pytest.mark.parametrize("window", [1, 16])
def test_mistral(window: int) -> None:
    sliding = composed_model(
        "attention=sliding_window", f"model.attention.window={window}"
    ).attention
    config = llama_config(n_kv_head=2, attention=sliding)
    options = {"sliding_window": window, "head_dim": config.shape.head_size}
    with float64():
        theirs = llama(
            *(config, {"rope_type": "default"}, MistralForCausalLM, MistralConfig), **options
        )
        assert_equal_models(config, theirs, LLAMA_NAMES, length=40)


def mixtral(config: ModelConfig, n_expert: int, n_active: int) -> tuple[ModelConfig, Any]:
    """Return the Llama preset with experts, and the Hugging Face model of it."""
    options = (f"model.ffn.n_expert={n_expert}", f"model.ffn.n_active={n_active}")
    experts = composed_model("model=llama", "ffn=moe", *options).ffn
    config = replace(config, ffn=experts)
    theirs = llama(
        *(config, {"rope_type": "default"}, MixtralForCausalLM, MixtralConfig),
        num_local_experts=n_expert,
        num_experts_per_tok=n_active,
        experts_implementation="eager",
    )
    return config, theirs


@pytest.mark.parametrize(("n_expert", "n_active"), [(5, 3), (2, 2)])
def test_mixtral(n_expert: int, n_active: int) -> None:
    with float64():
        config, theirs = mixtral(llama_config(n_kv_head=2), n_expert, n_active)
        assert_equal_models(config, theirs, MIXTRAL_NAMES)


def test_mixtral_balance_loss() -> None:
    """Hugging Face averages over layers first, and its usage sums to n_active = 2, not to 1."""
    with float64():
        config, theirs = mixtral(llama_config(n_layer=1), 8, 2)
        model = GPT(config, N_VOCAB)
        model.load_state_dict(translated(theirs.state_dict(), MIXTRAL_NAMES, unchanged))
        tokens = random_tokens(2, 16)
        _, logged = model.training_loss(tokens, tokens)
        expected = theirs(tokens, use_cache=False, output_router_logits=True).aux_loss
        torch.testing.assert_close(2 * logged["balance_loss"], expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("factor", [1.5, 2.5, 4.0])
def test_llama_with_linear_scaling(factor: float) -> None:
    config = llama_config("linear", factor)
    with float64():
        theirs = llama(config, {"rope_type": "linear", "factor": factor})
        assert_equal_models(config, theirs, LLAMA_NAMES, length=80)


@pytest.mark.parametrize("factor", [1.5, 2.5, 4.0])
def test_llama_with_ntk_scaling(factor: float) -> None:
    """Hugging Face's scaling is dynamic: the base depends on the length of the text.

    At `factor` times the block size it equals static scaling, as does RoPE with the scaled base.
    """
    config = llama_config("ntk", factor, block_size=20)
    length, n = int(factor * config.block_size), config.shape.head_size
    with float64():
        dynamic = llama(config, {"rope_type": "dynamic", "factor": 1.0})
        rule = ROPE_INIT_FUNCTIONS["dynamic"]
        expected, _ = rule(dynamic.config, torch.device("cpu"), seq_len=length)
        torch.testing.assert_close(rope_frequencies(config), expected, rtol=1e-12, atol=0)
        assert_equal_models(config, dynamic, LLAMA_NAMES, length=length)
        base = 10000.0 * factor ** (n / (n - 2))
        static = llama(config, {"rope_type": "default", "rope_theta": base})
        assert_equal_models(config, static, LLAMA_NAMES, length=length)


@pytest.mark.parametrize("block_size", [64, 620])  # 620 distinguishes 32 rotations from 31
@pytest.mark.parametrize("factor", [1.5, 2.5, 4.0])
def test_llama_with_yarn_scaling(factor: float, block_size: int) -> None:
    config = llama_config("yarn", factor, block_size=block_size)
    rope = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": block_size}
    with float64():
        if factor > 1:  # some channels are unchanged, some divided, some interpolated
            ratio = rope_frequencies(llama_config()) / rope_frequencies(config)
            between = (ratio > 1 + 1e-9) & (ratio < factor - 1e-9)
            assert ratio.min() == 1 and between.any() and math.isclose(ratio.max(), factor)
        assert_equal_models(config, llama(config, rope), LLAMA_NAMES, length=80)


@pytest.mark.parametrize("factor", [1.5, 2.5, 16.0])
@pytest.mark.parametrize("block_size", [8, 16, 100, 830, 8192])
@pytest.mark.parametrize(("n_head", "head_size"), [(1, 2), (2, 10), (1, 64), (1, 128)])
def test_yarn_frequencies(n_head: int, head_size: int, block_size: int, factor: float) -> None:
    small = {"n_layer": 1, "n_head": n_head, "n_embd": n_head * head_size}
    config = llama_config("yarn", factor, block_size=block_size, **small)
    rope = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": block_size}
    with float64():
        rotary = llama(config, rope).model.rotary_emb
        torch.testing.assert_close(rope_frequencies(config), rotary.inv_freq, rtol=1e-12, atol=0)


class T5Decoder(nn.Module):
    """The decoder of T5 without cross-attention, and a head."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config, self.stack = config, T5Stack(config)
        for block in self.stack.block:
            assert isinstance(block, T5Block)
            del block.layer[1]  # cross-attention, which is unused without an encoder
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)

    def forward(self, tokens: Tensor, **options: Any) -> Any:
        result = self.stack(tokens, **options)
        result.logits = self.lm_head(result.last_hidden_state)
        return result


def llama_options(config: ModelConfig) -> dict[str, Any]:
    """Return the Hugging Face options of Llama and the models that share its code."""
    return {
        "hidden_size": config.n_embd,
        "intermediate_size": config.ffn.hidden_width(config.n_embd),
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.shape.n_kv_head,
        "max_position_embeddings": config.block_size,
        "rms_norm_eps": config.norm.eps,
        "tie_word_embeddings": config.embedding.name == "tied",
        "rope_parameters": {"rope_type": "default", "rope_theta": vars(config.positional)["base"]},
    }


def windowed_options(config: ModelConfig) -> dict[str, Any]:
    """Return the options of a model with a sliding window."""
    window = vars(config.attention)["window"]
    return llama_options(config) | {"sliding_window": window}


def mixtral_options(config: ModelConfig) -> dict[str, Any]:
    """Return Mixtral's options."""
    experts = vars(config.ffn)
    return llama_options(config) | {
        "num_local_experts": experts["n_expert"],
        "num_experts_per_tok": experts["n_active"],
        "experts_implementation": "eager",
    }


def mpt_options(config: ModelConfig) -> dict[str, Any]:
    """Return MPT's options."""
    sizes = {"d_model": config.n_embd, "n_layers": config.n_layer, "n_heads": config.n_head}
    return sizes | {"max_seq_len": config.block_size}


def t5_options(config: ModelConfig) -> dict[str, Any]:
    """Return the options of T5's decoder."""
    return {
        "d_model": config.n_embd,
        "d_kv": config.shape.head_size,
        "d_ff": config.ffn.hidden_width(config.n_embd),
        "num_layers": config.n_layer,
        "num_heads": config.n_head,
        "layer_norm_epsilon": config.norm.eps,
        "relative_attention_num_buckets": vars(config.positional)["buckets"],
        "relative_attention_max_distance": vars(config.positional)["max_distance"],
        "is_decoder": True,
        "is_encoder_decoder": False,
    }


def bloom_options(config: ModelConfig) -> dict[str, Any]:
    """Return BLOOM's options."""
    sizes = {"hidden_size": config.n_embd, "n_layer": config.n_layer, "n_head": config.n_head}
    return sizes | {"layer_norm_epsilon": config.norm.eps}


def gpt_neox_options(config: ModelConfig) -> dict[str, Any]:
    """Return GPT-NeoX's options."""
    options = llama_options(config)
    options["layer_norm_eps"] = config.norm.eps
    options["rope_parameters"]["partial_rotary_factor"] = vars(config.positional)["fraction"]
    return options


def falcon_options(config: ModelConfig) -> dict[str, Any]:
    """Return Falcon's options: of the 7B model, or of the 40B model, which has two norms."""
    sizes = llama_options(config) | {"layer_norm_epsilon": config.norm.eps}
    new = config.block == "parallel"
    return sizes | {"new_decoder_architecture": new, "num_kv_heads": config.n_kv_head}


def gemma_options(config: ModelConfig) -> dict[str, Any]:
    """Return the options of Gemma 1 or 2."""
    options = llama_options(config) | {"head_dim": config.shape.head_size}
    options |= {"query_pre_attn_scalar": config.shape.head_size}
    if config.logit_softcap is None:
        return options
    return options | {
        "attn_logit_softcapping": config.logit_softcap,
        "final_logit_softcapping": config.final_softcap,
        "sliding_window": vars(config.attention)["window"],
        "layer_types": ["sliding_attention", "full_attention"],
    }


@dataclass(frozen=True)
class Family:
    """Overrides of a design, and the Hugging Face model that it has to equal.

    `names`: see `translated`. `options`: the options of the Hugging Face config. `layout`: the
    conversion of its tensors.
    """

    overrides: tuple[str, ...]
    model_class: Any
    config_class: Any
    names: Mapping[str, str]
    options: Callable[[ModelConfig], dict[str, Any]]
    layout: Callable[[ModelConfig], Convert] = lambda config: unchanged


WINDOW = "model.attention.window=5"
WITHOUT_SOFTCAPS = ("model.logit_softcap=null", "model.final_softcap=null")
FAMILIES = {
    "mpt": Family(("model=mpt",), MptForCausalLM, MptConfig, MPT_NAMES, mpt_options),
    "t5_decoder": Family(
        ("model=t5_decoder", "model.positional.buckets=8", "model.positional.max_distance=12"),
        *(T5Decoder, T5Config, T5_NAMES | HEADS, t5_options, table_of_biases),
    ),
    "bloom": Family(
        *(("model=bloom",), BloomForCausalLM, BloomConfig, BLOOM_NAMES, bloom_options, split_heads)
    ),
    "gpt_neox": Family(
        *(("model=gpt_neox",), GPTNeoXForCausalLM, GPTNeoXConfig, GPT_NEOX_NAMES),
        *(gpt_neox_options, split_heads),
    ),
    "falcon": Family(
        ("model=falcon",), FalconForCausalLM, FalconConfig, BLOOM_NAMES, falcon_options
    ),
    "falcon_40b": Family(
        *(("model=falcon", "model.block=parallel"), FalconForCausalLM, FalconConfig),
        *(BLOOM_NAMES, falcon_options, split_groups),
    ),
    "mistral": Family(
        *(("model=mistral", WINDOW), MistralForCausalLM, MistralConfig),
        *(LLAMA_NAMES, windowed_options),
    ),
    "mixtral": Family(
        *(("model=mixtral",), MixtralForCausalLM, MixtralConfig, MIXTRAL_NAMES, mixtral_options)
    ),
    "qwen2": Family(("model=qwen2",), Qwen2ForCausalLM, Qwen2Config, LLAMA_NAMES, llama_options),
    "phi3": Family(
        ("model=phi3", WINDOW), Phi3ForCausalLM, Phi3Config, PHI3_NAMES, windowed_options
    ),
    "gemma": Family(
        ("model=gemma", WINDOW), Gemma2ForCausalLM, Gemma2Config, OUTPUT_NORM_NAMES, gemma_options
    ),
    "gemma_1": Family(
        ("model=gemma", "norm=pre", "attention=full", *WITHOUT_SOFTCAPS),
        *(GemmaForCausalLM, GemmaConfig, LLAMA_NAMES, gemma_options),
    ),
    "olmo2": Family(
        ("model=olmo2",), Olmo2ForCausalLM, Olmo2Config, OUTPUT_NORM_NAMES, llama_options
    ),
}
# Heads and key-value heads: 3, and an even number with more than one in a group.
ALL, ONE, GROUPED = ((3, None), (4, None)), ((3, 1), (4, 1)), ((3, 1), (4, 2))
HEADS_OF = dict.fromkeys(("mpt", "t5_decoder", "bloom", "gpt_neox", "phi3"), ALL) | {"falcon": ONE}
CASES = [(name, *heads) for name in FAMILIES for heads in HEADS_OF.get(name, GROUPED)]


@pytest.mark.parametrize(("name", "n_head", "n_kv_head"), CASES)
def test_families(name: str, n_head: int, n_kv_head: int | None) -> None:
    """Equal weights give equal logits, gradients, and logits of decoding.

    BLOOM's GELU has rounded constants, and the gradient of the rounded formula.
    """
    family = FAMILIES[name]
    config = composed_model(*family.overrides)
    head_size = 10 if name in ("t5_decoder", "gemma", "gemma_1") else None
    sizes: dict[str, Any] = {"n_layer": 2, "n_embd": 8 * n_head, "block_size": 64}
    heads = {"n_head": n_head, "n_kv_head": n_kv_head, "head_size": head_size}
    config = replace(config, **sizes, **heads)
    with float64():
        theirs = hugging_face(family.model_class, family.config_class, **family.options(config))
        if name == "bloom":
            for block in theirs.transformer.h:
                block.mlp.gelu_impl = nn.GELU("tanh")
        layout = family.layout(config)
        assert_equal_models(config, theirs, family.names, layout)
        assert_equal_decoding(translated_model(config, theirs, family.names, layout), theirs)


def test_every_design_of_a_family_is_compared() -> None:
    elsewhere = {"bert", "t5_encoder_decoder"}  # in test_encoders_of_transformers.py
    assert {"bigram", "gpt2", "llama", *elsewhere, *FAMILIES} >= {*choices("model")}


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize(
    ("buckets", "max_distance"), [(32, 128), (8, 20), (16, 1000), (32, 512), (4, 6), (10, 160)]
)
def test_t5_buckets(buckets: int, max_distance: int, two_sided: bool) -> None:
    """Of one-sided distances from 0, and of two-sided ones, which are below 0 for later keys."""
    distance = torch.arange(-5000 if two_sided else 0, 5001)
    expected = T5Attention._relative_position_bucket(
        -distance, bidirectional=two_sided, num_buckets=buckets, max_distance=max_distance
    )
    assert expected.min() == 0 and expected.max() == buckets - 1
    torch.testing.assert_close(t5_bucket(distance, buckets, max_distance, two_sided), expected)
    options = {"positional.buckets": buckets, "positional.max_distance": max_distance, "n_layer": 1}
    overrides = [f"model.{key}={value}" for key, value in options.items()]
    objective = "masked" if two_sided else "causal"
    config = composed_model("positional=t5", f"objective={objective}", *overrides)
    scheme = GPT(config, N_VOCAB).positional
    assert isinstance(scheme, T5Bias)
    shared = distance.clamp(-max_distance, max_distance)
    torch.testing.assert_close(scheme.bucket[shared - scheme.first], expected)
