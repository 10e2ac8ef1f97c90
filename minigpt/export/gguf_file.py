"""A GGUF file, which llama.cpp loads: written from a model, and read back to compare.

Keys and tensors: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from minigpt.errors import Failure, UserError, first_line
from minigpt.export.architectures import (
    GPT2,
    LLAMA,
    Architecture,
    Requirement,
    choose_architecture,
)
from minigpt.export.check import failing
from minigpt.export.fields import CONFIG, Values
from minigpt.export.gguf_tokens import PREFIX, token_bytes, vocabulary
from minigpt.export.rewriting import rewritten
from minigpt.export.tensors import (
    BY_USE,
    TRANSPOSED,
    VOCABULARY,
    WHOLE,
    Layout,
    Tensors,
    to_ours,
    to_theirs,
)
from minigpt.extras import install
from minigpt.model import GPT, ModelConfig
from minigpt.model.shape import ModelShape
from minigpt.tokenizer import Tokenizer

SUFFIXES = (".weight", ".bias")
ALL_F32 = 0  # general.file_type


def _in_pairs(tensor: Tensor, n_head: int) -> Tensor:
    """Put the channels that are rotated together, k and k + e/2 of a head, beside each other."""
    return rearrange(tensor, "(h two e) ... -> (h e two) ...", h=n_head, two=2)


def _in_halves(tensor: Tensor, n_head: int) -> Tensor:
    return rearrange(tensor, "(h e two) ... -> (h two e) ...", h=n_head, two=2)


def _of_queries_and_keys(
    order: Callable[[Tensor, int], Tensor], parts: list[Tensor], shape: ModelShape
) -> list[Tensor]:
    q, k, v = parts
    return [order(q, shape.n_head), order(k, shape.n_kv_head), v]


# llama.cpp rotates neighbouring channels of Llama.
BY_USE_IN_PAIRS = Layout(
    lambda tensor, shape: _of_queries_and_keys(_in_pairs, list(BY_USE.apart(tensor, shape)), shape),
    lambda parts, shape: BY_USE.together(_of_queries_and_keys(_in_halves, parts, shape), shape),
)


@dataclass(frozen=True)
class Family:
    """An architecture of llama.cpp.

    `architecture`: that of transformers, with what llama.cpp requires, and its layouts. `metadata`:
    the keys of config.json by the names of the metadata. `other`: keys of config.json that the
    tensors or the requirements express, or that only training uses.
    """

    name: str
    architecture: Architecture
    metadata: Mapping[str, str]
    other: tuple[str, ...]

    def metadata_of(self, values: Values) -> dict[str, Any]:
        """Return the metadata of a config.json. Raises UserError for a key that is not known."""
        flat = {**values, **values.get("rope_parameters", {})}
        for key in flat.keys() - {*self.metadata.values(), *self.other, *OF_ALL}:
            raise UserError(f"{CONFIG}: {key}={flat[key]}: llama.cpp has nothing like it")
        if flat.get("rope_type") == "default":
            del flat["rope_type"]
        return {
            f"{self.name}.{name}": flat[key] for name, key in self.metadata.items() if key in flat
        }


# Keys of every config.json whose values are the same in all exports, or those of the tokenizer.
OF_ALL = {
    *("architectures", "model_type", "vocab_size", "dtype", "rope_parameters"),
    *("tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id"),
}


def _adapted(
    architecture: Architecture, layouts: Mapping[Layout, Layout], feed_forward: str
) -> Architecture:
    """Return an architecture with other layouts, and one feed-forward layer."""
    key = "model.ffn.name"
    others = tuple(one for one in architecture.requirements if one.key != key)
    parts = architecture.parts
    return replace(
        architecture,
        requirements=(*others, Requirement(key, (feed_forward,), f"has only {feed_forward}")),
        parts=tuple(replace(one, layout=layouts.get(one.layout, one.layout)) for one in parts),
    )


FAMILIES = (
    Family(
        name="gpt2",
        architecture=_adapted(GPT2, {TRANSPOSED: WHOLE}, "gelu_tanh"),
        metadata={
            "context_length": "n_positions",
            "embedding_length": "n_embd",
            "block_count": "n_layer",
            "feed_forward_length": "n_inner",
            "attention.head_count": "n_head",
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
        },
        other=(
            *("activation_function", "scale_attn_weights", "scale_attn_by_inverse_layer_idx"),
            *("resid_pdrop", "embd_pdrop", "attn_pdrop"),
        ),
    ),
    Family(
        name="llama",
        architecture=_adapted(LLAMA, {BY_USE: BY_USE_IN_PAIRS}, "swiglu"),
        metadata={
            "context_length": "max_position_embeddings",
            "embedding_length": "hidden_size",
            "block_count": "num_hidden_layers",
            "feed_forward_length": "intermediate_size",
            "attention.head_count": "num_attention_heads",
            "attention.head_count_kv": "num_key_value_heads",
            "attention.key_length": "head_dim",
            "attention.value_length": "head_dim",
            "attention.layer_norm_rms_epsilon": "rms_norm_eps",
            "rope.dimension_count": "head_dim",
            "rope.freq_base": "rope_theta",
            "rope.scaling.type": "rope_type",
            "rope.scaling.factor": "factor",
            "rope.scaling.original_context_length": "original_max_position_embeddings",
            "vocab_size": "vocab_size",
        },
        other=("hidden_act", "attention_dropout", "attention_bias", "mlp_bias"),
    ),
)


def choose_family(config: ModelConfig) -> Family:
    """Return the architecture of llama.cpp that expresses a design. Raises UserError."""
    chosen = choose_architecture(config, [one.architecture for one in FAMILIES], "llama.cpp")
    return next(one for one in FAMILIES if one.architecture is chosen)


def import_gguf() -> Any:
    """Return the module. Raises UserError if it is missing."""
    try:
        import gguf
    except ImportError as error:
        why = f"gguf, which writes the file, is not installed ({first_line(error)})"
        raise UserError(f"minigpt export: {why}; {install('gguf')}") from None
    return gguf


def write_gguf(path: Path, name: str, model: GPT, tokenizer: Tokenizer, saved: Values) -> int:
    """Write a model in fp32 to a file, and check the file. Return the number of its tensors.

    `name`: of the model. `saved`: the content of the tokenizer's tokenizer.json. Raises UserError
    for a design or a tokenizer that llama.cpp does not have, Failure if the file is read otherwise.
    """
    n_vocab, gguf, family = model.n_vocab, import_gguf(), choose_family(model.config)
    architecture = family.architecture
    design = architecture.conventions(model.config)
    ours = rewritten(model.state_dict(), model.config, design)
    metadata = {
        "general.name": name,
        "general.file_type": ALL_F32,
        **family.metadata_of(architecture.config_of(design, n_vocab)),
        **vocabulary(saved, n_vocab),
    }
    names = _names(gguf, family, design)
    weights = to_theirs(architecture.parts, ours, design, n_vocab)
    writer = gguf.GGUFWriter(path, family.name)
    for key, value in metadata.items():
        _add(writer, key, value)
    for their, tensor in weights.items():
        writer.add_tensor(names(their), tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with failing("the file cannot be read"):
        reader = gguf.GGUFReader(path)
        _check_metadata(reader, metadata)
        _check_tokens(reader, tokenizer)
        read = {one.name: torch.from_numpy(np.array(one.data)) for one in reader.tensors}
        if read.keys() != {*map(names, weights)}:
            raise Failure("export: the file has other tensors; nothing was written")
        theirs = {their: read[names(their)] for their in weights}
        _check_weights(architecture, design, n_vocab, ours, theirs)
    return len(read)


def _names(gguf: Any, family: Family, config: ModelConfig) -> Callable[[str], str]:
    """Return a function of a name in transformers to that in the file."""
    kind = next(one for one, name in gguf.MODEL_ARCH_NAMES.items() if name == family.name)
    names = gguf.get_tensor_name_map(kind, config.n_layer)

    def name_of(their: str) -> str:
        name = names.get_name(their, try_suffixes=SUFFIXES)
        assert name is not None, their
        return name

    return name_of


def _add(writer: Any, key: str, value: Any) -> None:
    """Add one value of the metadata, as the type that llama.cpp reads."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _check_metadata(reader: Any, metadata: Mapping[str, Any]) -> None:
    """Raise Failure unless the file has all metadata."""
    for key, value in metadata.items():
        field = reader.get_field(key)
        found = None if field is None else field.contents()
        expected = float(np.float32(value)) if isinstance(value, float) else value
        if found != expected:
            raise Failure(f"export: {key} is {found!r} in the file; nothing was written")


def _check_tokens(reader: Any, tokenizer: Tokenizer) -> None:
    """Raise Failure unless the tokens of the file are those of a tokenizer, as bytes."""
    parts = (f"{PREFIX}{key}" for key in ("model", "tokens", "token_type"))
    found = token_bytes(*(reader.get_field(key).contents() for key in parts))
    expected = [tokenizer.token_bytes(token) for token in range(tokenizer.n_vocab)]
    if found != expected:
        raise Failure("export: the file has other tokens than the run; nothing was written")


def _check_weights(
    architecture: Architecture, config: ModelConfig, n_vocab: int, weights: Tensors, read: Tensors
) -> None:
    """Raise Failure unless tensors by the names of transformers are the weights of a design."""
    with torch.device("meta"):  # norms have gains in the file
        full = GPT(replace(config, norm=replace(config.norm, affine=True)), n_vocab).state_dict()
    shapes = {}
    for name, tensor in full.items():
        rows = n_vocab if name.removesuffix(".weight") in VOCABULARY else len(tensor)
        shapes[name] = torch.Size((rows, *tensor.shape[1:]))
    for name, tensor in to_ours(architecture.parts, read, config, n_vocab, shapes).items():
        ours = weights.get(name, torch.ones(len(tensor)))[: len(tensor)]
        if not torch.equal(tensor, ours):
            raise Failure(f"export: {name} differs in the file; nothing was written")
