"""`minigpt export`: write a trained run in the format of another library."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from minigpt.commands.options import RUN, RUN_OPTIONS, Parser, path_option, set_threads
from minigpt.errors import UserError, first_line
from minigpt.files import require_new_file

if TYPE_CHECKING:
    from minigpt.config.schema import Config
    from minigpt.console import Progress
    from minigpt.data.tokens import Split
    from minigpt.run.load import TrainedRun

SHARED = ("--checkpoint", "--threads")  # options of commands that load a run
OPTIONS = {name: text for name, text in RUN_OPTIONS.items() if name.startswith(SHARED)}
# Values of manifest.json and result.json that minigpt.json and the model card repeat.
MANIFEST = ("minigpt", "commit", "started", "versions", "data_sha256", "tokens")
ORIGIN = ("resumed", "base", "adapter", "objective")  # what only some runs have
RESULT = ("status", "steps", "val_loss", "val_bits_per_byte", "parameters", "seconds")


def main(arguments: list[str]) -> None:
    """Write a run in another format, check what was written, and print what was compared."""
    parser = Parser(
        "export",
        "Write a trained run for other libraries, which load it without code of minigpt.\n"
        "With --to hf: config.json, weights, tokenizer and model card for AutoModelForCausalLM\n"
        "and AutoTokenizer of transformers, as one of its own architectures. A design that none\n"
        "of them expresses is refused; docs/export.md has the table.\n"
        "Before the folder appears, transformers loads it, and logits on validation text (fp32)\n"
        "and the tokens of all of it are compared. minigpt eval, sample and inspect read the\n"
        "folder as they read a run.\n"
        "With --to gguf: one file for llama.cpp, as GPT-2 or Llama. Before it appears, tensors\n"
        "and tokens are read back and compared.\n"
        "With --to onnx: one file for onnxruntime, which computes the logits of a text; it is\n"
        "compared like the folder.",
        [
            "minigpt export latest --to hf exported",
            "minigpt export runs/NAME --to hf exported --checkpoint last",
            "minigpt sample exported --prompt ROMEO:",
            "minigpt export latest --to gguf model.gguf",
            "minigpt export latest --to onnx model.onnx",
        ],
    )
    parser.add_argument("run", metavar="RUN", help=RUN)
    parser.add_argument("path", metavar="PATH", type=path_option, help="what to write")
    formats = "; ".join(f"{name}: {one.text}" for name, one in FORMATS.items())
    parser.add_argument("--to", choices=list(FORMATS), required=True, help=formats)
    parser.add_options(OPTIONS, threads=int)
    options = parser.parse(arguments)
    format_ = FORMATS[options.to]
    format_.require_free(options.path)
    set_threads(options)
    with _stopped_by_signals():
        _export(options.run, options.checkpoint, format_, options.path)


def _require_free_folder(path: Path) -> None:
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise UserError(f"PATH={path}: is not a folder; give a new one")
    if path.is_dir() and any(path.iterdir()):
        raise UserError(f"PATH={path}: is not empty; give a new folder, or delete it first")
    require_new_file("PATH", path)


def _require_free_file(path: Path) -> None:
    if path.is_symlink() or path.exists():
        raise UserError(f"PATH={path}: exists; give a new file, or delete it first")
    require_new_file("PATH", path)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Raise UserError for a file that cannot be written in the block, as on a full disk."""
    from safetensors import SafetensorError

    try:
        yield
    except BrokenPipeError:  # of the terminal
        raise
    except (OSError, SafetensorError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or first_line(error)
        remedy = "make space there, or give another path"
        raise UserError(f"PATH={path}: cannot be written ({why}); {remedy}") from error


@contextmanager
def _new_parents(path: Path) -> Iterator[None]:
    """Remove the parents that the block creates if it fails."""
    missing = [parent for parent in path.absolute().parents if not parent.exists()]
    try:
        yield
    except BaseException:
        for parent in missing:
            with suppress(OSError):  # never created, or used by others
                parent.rmdir()
        raise


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Let signals end the block as Ctrl-C does, so that it leaves nothing behind.

    Also if a library in between replaces the interruption by an error of its own.
    """
    from minigpt.train.control import Interrupted

    stops: list[Interrupted] = []

    def stop(number: int, frame: object) -> None:
        stops.append(Interrupted(number))
        raise stops[-1]

    names = ("SIGINT", "SIGTERM", "SIGHUP")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    handled = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in handled}
    try:
        yield
    except Exception:
        if stops:
            raise stops[0] from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _export(name: str, checkpoint: str | None, format_: Format, path: Path) -> None:
    """Write a run to a path, check it, and print what was compared.

    Raises UserError if its design cannot leave, Failure if what was written is not the same.
    """
    from minigpt.console import PipeConsole, Progress

    console = PipeConsole(highlight=False, soft_wrap=True)
    with Progress("loading") as progress:
        from minigpt.run.load import TrainedRun

        trained = TrainedRun.load(name, checkpoint, device="cpu")
        _require_causal(trained.config)
        with _new_parents(path), _writing(path):
            architecture, *lines = format_.write(trained, path, progress)
    console.print(f"{trained.run.path} ({trained.label}) as {architecture}")
    for line in (*lines, f"written to {path}"):
        console.print(line)


def _require_causal(config: Config) -> None:
    """Raise UserError for a model that sees more than earlier tokens."""
    objective, architecture = config.objective.name, config.model.architecture
    if architecture != "decoder":
        why = f"its model.architecture={architecture} sees more than earlier tokens"
        remedy = "and what leaves predicts from those alone; export a run with objective=causal"
        raise UserError(f"objective={objective}: {why}, {remedy}")


def _write_folder(trained: TrainedRun, path: Path, progress: Progress) -> list[str]:
    import torch

    from minigpt.export.architectures import choose_architecture
    from minigpt.export.card import write_card
    from minigpt.export.check import (
        CHECKED_TOKENS,
        check_logits,
        check_reading,
        check_tokenizer,
        import_transformers,
    )
    from minigpt.export.folder import write_model
    from minigpt.files import atomic_directory, read_json_lines

    architecture = choose_architecture(trained.config.model)
    import_transformers()  # before the work
    val = trained.prepare().tokens.val
    facts = _facts(trained)
    with atomic_directory(path) as folder:
        progress.begin(f"writing {path}", trained.tokenizer.n_vocab)
        parts = (trained.model, trained.config, trained.tokenizer, facts)
        write_model(folder, *parts, advance=progress.advance)
        metrics = read_json_lines(trained.run.metrics)
        write_card(folder, _title(trained), architecture, trained.config, facts, metrics)
        progress.begin("comparing logits")
        tokens = torch.tensor(val.tokens[:CHECKED_TOKENS].tolist())
        difference = check_logits(folder, trained.model, tokens)
        n_tokens = len(val.tokens)
        progress.begin("comparing the tokens of the validation text", n_tokens)
        check_tokenizer(folder, trained.tokenizer, _texts(trained, val), progress.advance)
        check_reading(folder, trained.model, tokens)
        _require_free_folder(path)  # again: another program may have written there
    return [
        architecture.name,
        f"largest difference of logits: {difference:.2g}, in fp32 after each of {len(tokens):,} "
        "tokens of the validation text",
        f"tokens of the validation text: all {n_tokens:,} equal, and decoded exactly",
    ]


def _write_gguf(trained: TrainedRun, path: Path, progress: Progress) -> list[str]:
    import json

    from minigpt.export.gguf_file import choose_family, import_gguf, write_gguf
    from minigpt.export.tokenizer_json import to_tokenizer_json
    from minigpt.files import atomic_path

    family = choose_family(trained.config.model)
    import_gguf()  # before the work
    tokenizer = trained.tokenizer
    progress.begin("reading the tokenizer", tokenizer.n_vocab)
    saved = json.loads(to_tokenizer_json(tokenizer, progress.advance))
    progress.begin(f"writing {path}")
    with atomic_path(path) as file:
        n_tensors = write_gguf(file, _title(trained), trained.model, tokenizer, saved)
        _require_free_file(path)  # again: another program may have written there
    return [
        f"{family.architecture.name} of llama.cpp",
        f"read back: all {n_tensors} tensors and {tokenizer.n_vocab:,} tokens equal",
    ]


def _write_onnx(trained: TrainedRun, path: Path, progress: Progress) -> list[str]:
    import torch

    from minigpt.export.check import CHECKED_TOKENS
    from minigpt.export.onnx_file import import_onnxruntime, require_exportable, write_onnx
    from minigpt.export.tokenizer_json import to_tokenizer_json
    from minigpt.files import atomic_path

    require_exportable(trained.config.model)
    import_onnxruntime()  # before the work
    tokens = torch.tensor(trained.prepare().tokens.val.tokens[:CHECKED_TOKENS].tolist())
    progress.begin("reading the tokenizer", trained.tokenizer.n_vocab)
    tokenizer = to_tokenizer_json(trained.tokenizer, progress.advance)
    progress.begin(f"writing {path}")
    with atomic_path(path) as file:
        difference = write_onnx(file, trained.model, tokenizer, tokens)
        _require_free_file(path)  # again: another program may have written there
    return [
        "an ONNX program",
        f"largest difference of logits: {difference:.2g}, in fp32 after each of {len(tokens):,} "
        "tokens of the validation text, with onnxruntime",
    ]


@dataclass(frozen=True)
class Format:
    """A choice of --to. `write` returns what the run left as, and what was compared, in lines."""

    text: str
    require_free: Callable[[Path], None]
    write: Callable[[TrainedRun, Path, Progress], list[str]]


FORMATS = {
    "hf": Format("a folder that transformers loads", _require_free_folder, _write_folder),
    "gguf": Format("a file that llama.cpp loads", _require_free_file, _write_gguf),
    "onnx": Format("a file that onnxruntime loads", _require_free_file, _write_onnx),
}


def _title(trained: TrainedRun) -> str:
    return trained.run.path.resolve().name


def _facts(trained: TrainedRun) -> dict[str, Any]:
    """Return what minigpt.json and the model card say about a run, without paths."""
    run = trained.run
    manifest, result = map(run.read_optional_json, (run.manifest, run.result))
    facts = {key: manifest[key] for key in MANIFEST if key in manifest}
    kept = {key: result[key] for key in RESULT if key in result} or manifest.get("result", {})
    command = _portable_command(manifest)
    origin = _origin(trained.config, manifest)
    return {
        **facts,
        "command": command,
        **{key: origin[key] for key in ORIGIN if origin.get(key)},
        "checkpoint": trained.checkpoint,
        "result": kept,
    }


def _origin(config: Config, manifest: dict[str, Any]) -> dict[str, Any]:
    """Return what a run began with, and what it was continued with; for a folder, as it says."""
    if "config" in manifest:  # of minigpt.json
        return manifest
    adapter, objective = config.adapter, config.objective
    teacher = _source(manifest.get("objective.teacher"))
    return {
        "resumed": [_portable_command(resumption) for resumption in manifest.get("resumed", [])],
        "base": _source(manifest.get("init")),
        "adapter": None if adapter.name == "none" else asdict(adapter),
        "objective": teacher and {**asdict(objective), "teacher": teacher},
    }


def _source(weights: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return what a manifest says of the weights of another run, without its folder."""
    from minigpt.export.hub import name_of

    return weights and {**weights, "path": name_of(weights["path"])}


def _portable_command(record: dict[str, Any]) -> list[str]:
    return [_without_folders(argument) for argument in record.get("command", [])]


def _without_folders(argument: str) -> str:
    """Return an argument of a command line without the folders of a path in it."""
    key, equals, value = argument.rpartition("=")
    is_path = any(kind(value).is_absolute() for kind in (PurePath, PureWindowsPath))
    name = PureWindowsPath(value).name if is_path or value.startswith("~") else value
    return f"{key}{equals}{name}"


def _texts(trained: TrainedRun, split: Split) -> Iterator[str]:
    """Yield the text of a split in parts, so that a large one takes constant memory."""
    import torch

    from minigpt.data.tokens import TOKENS_AT_ONCE

    for indices in torch.arange(len(split.tokens)).split(TOKENS_AT_ONCE):  # tokens may be in a file
        yield trained.tokenizer.decode(split.tokens[indices].tolist())
