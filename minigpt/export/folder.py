"""A folder that transformers reads: its files, written from a model and read as one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from minigpt.config.compose import composed_config
from minigpt.config.pairs import as_typed
from minigpt.config.saved import changed_config
from minigpt.config.schema import Config
from minigpt.errors import UserError, first_line
from minigpt.export.architecture import Architecture
from minigpt.export.architectures import architecture_of, choose_architecture
from minigpt.export.fields import (
    CONFIG,
    LIST,
    SECTION,
    TEXT,
    Overrides,
    option,
    require_kinds,
    value_of,
)
from minigpt.export.rewriting import rewritten
from minigpt.export.shards import WEIGHTS, weight_files, weights_path
from minigpt.export.tensors import Tensors, to_ours, to_theirs
from minigpt.export.tokenizer_json import to_tokenizer_json
from minigpt.files import read_json, try_read_json, write_json, write_text
from minigpt.model import GPT
from minigpt.tokenizer import Tokenizer, TokenizerConfig
from minigpt.tokenizer.json_ import read_tokenizer_json

TOKENIZER = "tokenizer.json"
METADATA = "minigpt.json"  # ours: config, data and versions of the run
# Names of files and folders, and what belongs to a machine or a tracker, stay out of METADATA.
NOT_WRITTEN = ("logger", "group", "tags", "init", "adapter", "objective")
MAX_CONTEXT = 2**20  # tokens; tables of positions are as long
SECTIONS = ("data", "tokenizer", "model", "optimizer", "schedule", "trainer")  # of its config
METADATA_KINDS = {
    **dict.fromkeys(("minigpt", "commit", "started", "data_sha256", "tokenizer_fingerprint"), TEXT),
    **dict.fromkeys(("config", "versions", "tokens", "result"), SECTION),
    **dict.fromkeys(("base", "adapter", "objective"), SECTION),
    **dict.fromkeys(("command", "resumed"), LIST),
}


@dataclass(frozen=True)
class ReadDesign:
    """What a folder says without its weights."""

    architecture: Architecture
    config: Config
    tokenizer: Tokenizer


@dataclass(frozen=True)
class ReadFolder:
    """What a folder contains: a model in fp32 on the CPU with its config and tokenizer."""

    config: Config
    tokenizer: Tokenizer
    model: GPT


def write_model(
    folder: Path,
    model: GPT,
    config: Config,
    tokenizer: Tokenizer,
    facts: Mapping[str, Any],
    advance: Callable[[], object] = lambda: None,
) -> None:
    """Write config.json, weights, generation config, tokenizer and METADATA into a folder.

    `facts`: values to add to METADATA. `advance`: called for each token of the tokenizer. Raises
    UserError if no architecture expresses the design.
    """
    architecture = choose_architecture(config.model)
    design = architecture.conventions(config.model)
    written = architecture.config_of(design, model.n_vocab)
    ours = rewritten(model.state_dict(), config.model, design)
    weights = to_theirs(architecture.parts, ours, design, model.n_vocab)
    write_json(folder / CONFIG, written)
    # transformers asks for the format of the framework
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    tokens = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    # As `minigpt sample`: from the whole distribution. transformers takes the 50 likeliest tokens.
    sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    write_json(folder / "generation_config.json", {**tokens, **sampling})
    write_text(folder / TOKENIZER, to_tokenizer_json(tokenizer, advance))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.model.block_size,
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer_config.json", tokenizer_config)
    metadata = {
        "config": portable(config),
        "tokenizer_fingerprint": tokenizer.fingerprint,
        **facts,
    }
    write_json(folder / METADATA, metadata)


def portable(config: Config) -> dict[str, Any]:
    """Return the values of a config without folders of this machine and without the tracker."""
    values = config.to_dict()
    for key in NOT_WRITTEN:
        del values[key]
    data = values["data"]
    data["dir"] = None
    if "path" in data:
        data["path"] = Path(data["path"]).name
    return values


def read_folder(folder: Path, changes: Sequence[str] = ()) -> ReadFolder:
    """Read a folder with config.json, model.safetensors or its shards, and tokenizer.json.

    METADATA, if it is there, gives what these do not say: the data, the context of training and
    how the model was trained. Otherwise the values are the defaults of `minigpt train`. `changes`:
    as of `read_config`. Raises UserError for a file that is missing or damaged, and for a model
    that no design of minigpt expresses.
    """
    design = read_design(folder, changes)
    architecture, config, tokenizer = design.architecture, design.config, design.tokenizer
    model = GPT(config.model, tokenizer.n_vocab)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    theirs = _with_prefix(_read_weights(folder), architecture.prefix)
    try:
        ours = to_ours(architecture.parts, theirs, config.model, tokenizer.n_vocab, shapes)
    except UserError as error:
        raise UserError(f"{weights_path(folder)}: {error}") from None
    model.load_state_dict(ours)
    return ReadFolder(config, tokenizer, model.eval())


def read_design(folder: Path, changes: Sequence[str] = ()) -> ReadDesign:
    """Read config.json, tokenizer.json and METADATA. See `read_folder`."""
    problems: list[str] = []
    metadata = try_read_json(folder / METADATA, problems)
    if problems:
        raise UserError(problems[0].replace("ignored", "restore or delete it"))
    values = _read_config_json(folder)
    try:
        architecture = architecture_of(values)
        overrides = architecture.overrides_of(values)
    except UserError as error:  # which begins with CONFIG
        raise UserError(f"{folder}/{error}") from None
    _require_metadata(folder, metadata)
    _require_sizes(folder, overrides)
    try:
        config = _config_of(architecture, overrides, metadata, changes)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    if violations := architecture.violations(config.model):
        first = violations[0]
        value = as_typed(option(config.model, first.key))
        raise UserError(f"{folder}: {first.key}={value}: {architecture.name} {first.why}")
    tokenizer = read_tokenizer_json(folder / TOKENIZER, metadata.get("tokenizer_fingerprint"))
    n_rows = value_of(values, "vocab_size")
    if tokenizer.n_vocab > n_rows:
        why = f"{CONFIG} has vocab_size={n_rows}, fewer than the {tokenizer.n_vocab} tokens"
        raise UserError(f"{folder / TOKENIZER}: {why}; restore the files of one model")
    return ReadDesign(architecture, config, tokenizer)


def _require_metadata(folder: Path, metadata: Mapping[str, Any]) -> None:
    """Raise UserError for a value of METADATA that minigpt did not write."""
    file = folder / METADATA
    require_kinds(metadata, METADATA_KINDS, f"{file}: ")
    config = metadata.get("config")
    if config is None:
        return
    if config.get("model") is None:
        raise UserError(f"{file}: has no config.model; restore or delete it")
    require_kinds(config, dict.fromkeys(SECTIONS, SECTION), f"{file}: config.")


def _require_sizes(folder: Path, overrides: Overrides) -> None:
    """Raise UserError for a design that is larger than the weights, before it is built."""
    shapes: list[list[int]] = []
    for path in weight_files(folder):
        with _opened(path) as file:
            shapes += [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    largest = max((size for shape in shapes for size in shape), default=0)
    width = overrides["model.n_embd"]
    sizes = {
        "layers": (overrides["model.n_layer"], len(shapes)),
        "channels": (width, largest),
        "channels in a head": (overrides.get("model.head_size") or 1, largest),
        "hidden channels": (overrides.get("model.ffn.expansion", 1) * width, largest),
    }
    for what, (size, most) in sizes.items():
        if size > most:
            why = f"has {size:,.0f} {what}, and its weights at most {most:,}"
            raise UserError(f"{folder / CONFIG}: {why}; restore the files of one model")
    length = overrides.get("model.block_size", 1)
    if length > MAX_CONTEXT:
        why = f"has a context of {length:,} tokens, and minigpt reads at most {MAX_CONTEXT:,}"
        raise UserError(f"{folder / CONFIG}: {why}; lower it there")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file. Raises UserError if it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        why = f"damaged or not a safetensors file ({first_line(error)})"
        raise UserError(f"{path}: {why}; restore it") from None


def _read_config_json(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        return read_json(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); restore it") from None
    except ValueError as error:
        raise UserError(f"{path}: broken JSON ({first_line(error)}); restore it") from None


def _config_of(
    architecture: Architecture,
    overrides: Overrides,
    metadata: Mapping[str, Any],
    changes: Sequence[str],
) -> Config:
    """Return the config of a model with these options.

    The rest is as METADATA says. Without it, model and tokenizer have the names of what they are.
    """
    groups = {key: value for key, value in overrides.items() if "." not in key}
    typed = [f"{key}={as_typed(value)}" for key, value in {**groups, **overrides}.items()]
    text = [change for change in changes if change.startswith("data.path=")]
    if text and "config" not in metadata:  # in place of the default text
        typed += ["data=text", *text]
    config = composed_config([*typed, "model.vocab_multiple=1"])
    model = replace(config.model, name=architecture.model_type)
    config = replace(config, model=model, tokenizer=TokenizerConfig("json"))
    saved = metadata.get("config")
    if saved is not None:
        values = {**config.to_dict(), **saved}
        design = config.to_dict()["model"]
        kept = ("name", "block_size", "dropout", "residual_init", "backend")
        values["model"] = design | {k: v for k, v in saved["model"].items() if k in kept}
        config = changed_config(values, METADATA)
    return changed_config(config.to_dict(), METADATA, changes) if changes else config


def _read_weights(folder: Path) -> Tensors:
    weights: Tensors = {}
    for path in weight_files(folder):
        with _opened(path) as file:
            weights |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return weights


def _with_prefix(theirs: Tensors, prefix: str) -> Tensors:
    """Return weights whose names have the prefix that files of the bare model lack."""
    if any(name.startswith(prefix) for name in theirs):
        return theirs
    heads = ("lm_head.", "embed_out.")
    return {n if n.startswith(heads) else prefix + n: tensor for n, tensor in theirs.items()}
