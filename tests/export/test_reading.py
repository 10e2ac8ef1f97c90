"""Folders that transformers has written, and config.json of published models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from minigpt.errors import UserError
from minigpt.export.architecture import Architecture
from minigpt.export.architectures import LEAVING, architecture_of
from minigpt.export.check import import_transformers
from minigpt.export.folder import read_folder
from minigpt.export.tokenizer_json import to_tokenizer_json
from tests.conftest import TINY, Cli
from tests.export.designs import DESIGNS, N_VOCAB
from tests.export.test_architectures import TOKENIZER, written
from tests.model.tiny import random_tokens


@pytest.mark.parametrize("architecture", LEAVING, ids=lambda one: one.name)
def test_what_transformers_saves_is_read(tmp_path: Path, architecture: Architecture) -> None:
    """With all keys of its config class, and its names of tensors; without minigpt.json."""
    config = DESIGNS[architecture.name][-1]
    written(tmp_path / "ours", config)
    loaded = import_transformers().AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert_read(tmp_path / "theirs", loaded)


def assert_read(folder: Path, model: Any) -> None:
    """Assert that a model of transformers is the same when it is saved and read."""
    model.save_pretrained(folder)
    text = to_tokenizer_json(TOKENIZER)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    tokens = random_tokens(2, 12, N_VOCAB)
    read = read_folder(folder).model
    with torch.no_grad():
        torch.testing.assert_close(read(tokens), model(tokens).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("slides", [False, True])
def test_qwen2_is_read(tmp_path: Path, slides: bool) -> None:
    transformers = import_transformers()
    config = transformers.Qwen2Config(
        **{"vocab_size": N_VOCAB, "hidden_size": 32, "intermediate_size": 64},
        **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
        **{"max_position_embeddings": 16, "use_sliding_window": slides, "sliding_window": 4},
        layer_types=["full_attention", "sliding_attention" if slides else "full_attention"],
    )
    torch.manual_seed(1)
    model = transformers.Qwen2ForCausalLM(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    assert_read(tmp_path, model)


BLOOM = {"model_type": "bloom", "n_embed": 64, "n_layer": 2, "num_attention_heads": 8}
FALCON = {
    **{"model_type": "falcon", "hidden_size": 64, "num_hidden_layers": 2},
    **{"num_attention_heads": 8, "max_position_embeddings": 2048},
}
LLAMA = {
    **{"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "rms_norm_eps": 1e-5},
    **{"num_attention_heads": 8, "max_position_embeddings": 2048, "intermediate_size": 256},
}
MPT = {"model_type": "mpt", "d_model": 64, "n_layers": 2, "n_heads": 8}
GEMMA2 = {**LLAMA, "model_type": "gemma2", "layer_types": ["full_attention"] * 2}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (BLOOM, {"model.n_embd": 64, "model.n_head": 8, "model.norm.on_embeddings": True}),
        (FALCON, {"model.block": "parallel_shared", "model.n_kv_head": 1}),
        (FALCON | {"multi_query": False}, {"model.n_kv_head": None}),
        (
            FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2},
            {"model.block": "parallel", "model.n_kv_head": 2},
        ),
        (LLAMA | {"attention_bias": True}, {"model.bias": "qkv"}),
        (LLAMA | {"attention_bias": True, "mlp_bias": True}, {"model.bias": True}),
        (LLAMA | {"head_dim": 16}, {"model.head_size": 16}),
        (LLAMA | {"head_dim": 8}, {"model.head_size": None}),
        (GEMMA2, {"model.head_size": 256, "model.score_scale": None, "model.final_softcap": 30.0}),
        (GEMMA2 | {"query_pre_attn_scalar": 144}, {"model.score_scale": 1 / 12}),
    ],
)
def test_config_json_is_read(values: dict[str, Any], expected: dict[str, Any]) -> None:
    found = architecture_of(values).overrides_of(values)
    assert {key: found[key] for key in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (FALCON | {"parallel_attn": False}, "parallel_attn=False: minigpt reads only true"),
        (FALCON | {"alibi": True}, "alibi=True: minigpt reads only False"),
        (LLAMA | {"mlp_bias": True}, "mlp_bias=True: minigpt reads it with attention_bias=true"),
        (LLAMA | {"model_type": "gemma", "hidden_act": "relu"}, "hidden_act=relu: minigpt has"),
        (LLAMA | {"rope_scaling": []}, "rope_scaling=[]: not an object"),
        (LLAMA | {"rope_theta": "big"}, "rope_theta=big: not a number above 0"),
        (LLAMA | {"rope_scaling": {"type": "linear"}}, "rope_parameters.rope_type=linear: has no"),
        (
            LLAMA
            | {"rope_scaling": {"type": "yarn", "factor": 4.0}}
            | {"rope_parameters": {"original_max_position_embeddings": 512}},
            "rope_parameters.original_max_position_embeddings=512: minigpt reads only",
        ),
        (GEMMA2 | {"use_bidirectional_attention": True}, "use_bidirectional_attention=True: mini"),
        (GEMMA2 | {"layer_types": ["chunked_attention"]}, "layer_types=chunked_attention: mini"),
        (GEMMA2 | {"layer_types": ["full_attention"]}, "layer_types=['full_attention']: 1 layers"),
        (GEMMA2 | {"query_pre_attn_scalar": None}, "has no query_pre_attn_scalar"),
        (GEMMA2 | {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar=0: not a number above 0"),
        (MPT | {"attn_config": {"alibi": True, "rope": True}}, "attn_config.rope=True: minigpt "),
        (MPT | {"attn_config": "alibi"}, "attn_config=alibi: not an object"),
    ],
)
def test_values_that_no_option_expresses_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refused:
        architecture_of(values).overrides_of(values)
    assert str(refused.value).startswith(f"config.json: {message}")


def gpt2_folder(folder: Path, **changes: Any) -> Any:
    """Save a small random GPT-2 of transformers, with a character tokenizer. Return the model."""
    transformers = import_transformers()
    sizes = {"n_embd": 12, "n_layer": 1, "n_head": 3, "n_positions": 16, "vocab_size": N_VOCAB}
    torch.manual_seed(1)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **changes))
    model.save_pretrained(folder)
    text = to_tokenizer_json(TOKENIZER)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    return model


NAN_IN = "transformer.h.0.mlp.c_fc.weight"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.nan, "has NaN or infinite values"),
        (-torch.inf, "has NaN or infinite values"),
        (None, "has numbers of type int8"),
    ],
)
def test_tensors_that_are_not_weights_are_refused(
    tmp_path: Path, value: float | None, message: str
) -> None:
    gpt2_folder(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    if value is None:
        weights[NAN_IN] = weights[NAN_IN].to(torch.int8)
    else:
        weights[NAN_IN][1, 2] = value
    save_file(weights, file)
    with pytest.raises(UserError) as refused:
        read_folder(tmp_path)
    assert str(refused.value).startswith(f"{file}: {NAN_IN}: {message}")


DELETE = object()


@pytest.mark.parametrize(
    ("file", "keys", "value", "message"),
    [
        ("config.json", "n_layer", "four", "n_layer=four: not a whole number above 0"),
        ("config.json", "n_embd", 12.0, "n_embd=12.0: not a whole number above 0"),
        ("config.json", "n_head", True, "n_head=True: not a whole number above 0"),
        ("config.json", "n_embd", None, "has no n_embd; restore the file"),
        ("config.json", "vocab_size", [13], "vocab_size=[13]: not a whole number above 0"),
        ("config.json", "layer_norm_epsilon", "1e-5", "layer_norm_epsilon=1e-5: not a number"),
        ("config.json", "activation_function", ["gelu"], "activation_function=['gelu']: not a te"),
        ("config.json", "tie_word_embeddings", 1, "tie_word_embeddings=1: not true or false"),
        ("config.json", "quantization_config", {"bits": 4}, "quantization_config={'bits': 4}: mi"),
        ("config.json", "add_cross_attention", True, "add_cross_attention=True: minigpt has no"),
        ("config.json", "is_causal", False, "is_causal=False: minigpt has only causal models"),
        ("config.json", "n_layer", 10**9, "has 1,000,000,000 layers, and its weights at most"),
        ("config.json", "n_embd", 2**40, "has 1,099,511,627,776 channels, and its weights at"),
        ("config.json", "n_inner", 10**12, "has 1,000,000,000,000 hidden channels, and its"),
        ("config.json", "n_positions", 10**9, "has a context of 1,000,000,000 tokens, and mini"),
        ("config.json", "shift", 0, "shift=0: minigpt does not know this key; remove it if"),
        ("minigpt.json", "minigpt", [], "minigpt=[]: not a text"),
        ("minigpt.json", "result", [], "result=[]: not an object"),
        ("minigpt.json", "config", ["model"], "config=['model']: not an object"),
        ("minigpt.json", "config.model", DELETE, "has no config.model; restore or delete it"),
        ("minigpt.json", "config.model", "gpt2", "config.model=gpt2: not an object"),
        ("minigpt.json", "config.data", "text", "config.data=text: not an object"),
        ("minigpt.json", "config.seed", "one", "seed=one: not a valid integer"),
    ],
)
def test_a_value_of_a_wrong_type_is_one_line_with_its_key(
    tmp_path: Path, file: str, keys: str, value: Any, message: str
) -> None:
    config = DESIGNS["GPT-2"][0]
    written(tmp_path, config)
    path = tmp_path / file
    values = section = json.loads(path.read_text())
    *parents, key = keys.split(".")
    for parent in parents:
        section = section[parent]
    section[key] = value
    if value is DELETE:
        del section[key]
    path.write_text(json.dumps(values))
    with pytest.raises(UserError) as refused:
        read_folder(tmp_path)
    line = str(refused.value)
    assert f"{file}: {message}" in line and line.startswith(str(tmp_path)), line


def test_weights_that_contradict_the_config_are_refused(tmp_path: Path) -> None:
    gpt2_folder(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    other = weights["transformer.wte.weight"] + 1
    save_file(weights | {"lm_head.weight": other}, file)
    with pytest.raises(UserError, match=r"lm_head\.weight: not the embedding, but config\.json"):
        read_folder(tmp_path)
    save_file(weights | {"lm_head.weight": weights["transformer.wte.weight"].clone()}, file)
    read_folder(tmp_path)
    del weights["transformer.h.0.attn.c_attn.bias"]
    save_file(weights, file)
    with pytest.raises(UserError, match=r"c_attn\.bias: missing; restore the file"):
        read_folder(tmp_path)


def test_a_config_that_its_architecture_cannot_have_is_refused(tmp_path: Path) -> None:
    config = DESIGNS["Llama"][1]
    written(tmp_path, config)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "partial_rotary_factor": 0.5}))
    with pytest.raises(UserError, match=r"model\.positional\.fraction=0\.5: Llama rotates all"):
        read_folder(tmp_path)


def test_a_sweep_starts_from_a_folder(cli: Cli, workdir: Path) -> None:
    gpt2_folder(Path("base"))
    Path("letters.txt").write_text("abc def\n" * 200)
    options = [one for one in TINY if not one.startswith(("model.", "data.path"))]
    design = ["init=base", "data.path=letters.txt", "trainer.sample_every=null"]
    done = cli("train", "-m", *options, *design, "seed=1,2", "hydra.sweep.dir=sweep")
    assert done.code == 0, done.out + done.err
    assert len([*Path("sweep").glob("*/result.json")]) == 2
