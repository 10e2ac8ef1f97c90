"""`minigpt export`: write a trained run in the format of another library."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from minigpt.commands.options import RUN_OPTIONS, Parser, path_option, set_threads
from minigpt.errors import UserError

if TYPE_CHECKING:
    from minigpt.data.tokens import Split
    from minigpt.run.load import TrainedRun

SHARED = ("--checkpoint", "--threads")  # options of commands that load a run
FORMATS = {"hf": "a folder that transformers loads"}
OPTIONS = {name: text for name, text in RUN_OPTIONS.items() if name.startswith(SHARED)}
# Values of manifest.json and result.json that minigpt.json and the model card repeat.
MANIFEST = ("minigpt", "commit", "started", "versions", "data_sha256", "tokens")
RESULT = ("status", "steps", "val_loss", "val_bits_per_byte", "parameters", "seconds")


def main(arguments: list[str]) -> None:
    """Write a run to a new folder, check the folder, and print what was compared."""
    parser = Parser(
        "export",
        "Write a trained run as a folder that other libraries load without code of minigpt.\n"
        "With --to hf: config.json, weights, tokenizer and model card for AutoModelForCausalLM\n"
        "and AutoTokenizer of transformers, as one of its own architectures. A design that none\n"
        "of them expresses is refused; docs/export.md has the table.\n"
        "Before the folder appears, transformers loads it, and logits on validation text (fp32)\n"
        "and the tokens of all of it are compared. minigpt eval, sample and inspect read the\n"
        "folder as they read a run.",
        [
            "minigpt export latest --to hf exported",
            "minigpt export runs/NAME --to hf exported --checkpoint last",
            "minigpt sample exported --prompt ROMEO:",
        ],
    )
    parser.add_argument("run", metavar="RUN", help="a run directory, or latest")
    parser.add_argument("directory", metavar="DIR", type=path_option, help="the folder to write")
    formats = "; ".join(f"{name}: {text}" for name, text in FORMATS.items())
    parser.add_argument("--to", choices=list(FORMATS), required=True, help=formats)
    parser.add_options(OPTIONS, threads=int)
    options = parser.parse(arguments)
    _require_free(options.directory)
    set_threads(options)
    with _stopped_by_signals():
        _export(options.run, options.checkpoint, options.directory)


def _require_free(directory: Path) -> None:
    """Raise UserError unless a folder can appear at a path without replacing anything."""
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise UserError(f"DIR={directory}: is not a folder; give a new one")
    if directory.is_dir() and any(directory.iterdir()):
        raise UserError(f"DIR={directory}: is not empty; give a new folder, or delete it first")


@contextmanager
def _new_parents(directory: Path) -> Iterator[None]:
    """Remove the parents that the block creates if it fails."""
    missing = [parent for parent in directory.absolute().parents if not parent.exists()]
    try:
        yield
    except BaseException:
        for parent in missing:
            with suppress(OSError):  # never created, or used by others
                parent.rmdir()
        raise


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does, so that it leaves nothing behind."""
    from minigpt.train.control import Interrupted

    def stop(number: int, frame: object) -> None:
        raise Interrupted(number)

    names = ("SIGTERM", "SIGHUP")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    handled = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _export(name: str, checkpoint: str | None, directory: Path) -> None:
    """Write a run to a folder, check it, and print the differences.

    Raises UserError if its design cannot leave, Failure if the folder does not compute the same.
    """
    from minigpt.console import PipeConsole, Progress

    console = PipeConsole(highlight=False, soft_wrap=True)
    with Progress("loading") as progress:
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
        from minigpt.run.load import TrainedRun

        trained = TrainedRun.load(name, checkpoint, device="cpu")
        architecture = choose_architecture(trained.config.model)
        import_transformers()  # before the work
        val = trained.prepare().tokens.val
        facts = _facts(trained)
        with _new_parents(directory), atomic_directory(directory) as folder:
            progress.begin(f"writing {directory}", trained.tokenizer.n_vocab)
            parts = (trained.model, trained.config, trained.tokenizer, facts)
            write_model(folder, *parts, advance=progress.advance)
            metrics = read_json_lines(trained.run.metrics)
            title = trained.run.path.resolve().name
            write_card(folder, title, architecture, trained.config, facts, metrics)
            progress.begin("comparing logits")
            tokens = torch.tensor(val.tokens[:CHECKED_TOKENS].tolist())
            difference = check_logits(folder, trained.model, tokens)
            n_tokens = len(val.tokens)
            progress.begin("comparing the tokens of the validation text", n_tokens)
            check_tokenizer(folder, trained.tokenizer, _texts(trained, val), progress.advance)
            check_reading(folder, trained.model, tokens)
            _require_free(directory)  # again: another program may have written there
    console.print(f"{trained.run.path} ({trained.label}) as {architecture.name}")
    console.print(
        f"largest difference of logits: {difference:.2g}, in fp32 after each of {len(tokens):,} "
        "tokens of the validation text"
    )
    console.print(f"tokens of the validation text: all {n_tokens:,} equal, and decoded exactly")
    console.print(f"written to {directory}")


def _facts(trained: TrainedRun) -> dict[str, Any]:
    """Return what minigpt.json and the model card say about a run, without paths."""
    run = trained.run
    manifest, result = map(run.read_optional_json, (run.manifest, run.result))
    facts = {key: manifest[key] for key in MANIFEST if key in manifest}
    kept = {key: result[key] for key in RESULT if key in result} or manifest.get("result", {})
    command = [_without_folders(argument) for argument in manifest.get("command", [])]
    return {**facts, "command": command, "checkpoint": trained.checkpoint, "result": kept}


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
