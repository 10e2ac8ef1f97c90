"""`minigpt eval`: a trained run on its whole text, and at other context lengths."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt.commands.options import Parser, add_quantize_argument, add_run_arguments
from minigpt.errors import UserError, one_line_if_out_of_memory, require

if TYPE_CHECKING:
    from minigpt.data.tokens import Split
    from minigpt.evaluate.loss import Evaluation
    from minigpt.html import Section
    from minigpt.run.load import TrainedRun

METRICS = ("loss", "perplexity", "bits_per_byte")


def main(arguments: list[str]) -> None:
    """Print and write to eval.json the losses of both splits, and what lengths and positions do."""
    parser = Parser(
        "eval",
        "Measure a trained run: one full pass over each split, in windows that do not overlap.\n"
        "With --lengths or --by-position: curves of the validation split, drawn in RUN/eval/.\n"
        "With --quantize: also what the rounding costs in validation loss.",
        [
            "minigpt eval latest",
            "minigpt eval latest --lengths 32,64,128,256,512 --by-position",
            "minigpt eval runs/NAME --lengths 512 --set model.positional.scaling=yarn "
            "--set model.positional.factor=4",
            "minigpt eval latest --quantize int4",
            "minigpt eval runs/SWEEP --checkpoint last --lengths 32,64,128",
        ],
    )
    add_run_arguments(parser, several=True)
    add_quantize_argument(parser)
    parser.add_argument(
        "--lengths", metavar="N,N,...", help="validation loss with windows of these many tokens"
    )
    parser.add_argument(
        "--by-position",
        action="store_true",
        help="validation loss at each position inside a window, or a document in it",
    )
    parser.add_argument(
        "--random-batches",
        metavar="N",
        type=int,
        nargs="?",
        const=50,
        help="also N estimates of the validation loss from random batches, as nanoGPT prints them "
        "(default: 50)",
    )
    options = parser.parse_args(arguments)
    lengths = _lengths(options.lengths)
    estimates = options.random_batches
    if estimates is not None:
        require(estimates >= 2, "--random-batches", estimates, "must be 2 or more")
    runs = _runs(options.run)
    for run in runs:
        options.run = run
        _evaluate(options, lengths, skip=len(runs) > 1 and estimates is None)


def _runs(names: list[str]) -> list[str]:
    """Return the run directories that the names stand for. Raises UserError."""
    from minigpt.report.runs import find_runs

    runs: list[str] = []
    for name in names:
        path = Path(name).expanduser()
        if (
            path.is_dir()
            and not (path / "config.yaml").is_file()
            and any(path.rglob("config.yaml"))
        ):
            finished = [str(run.path) for run in find_runs([name]).runs if run.finished]
            require(bool(finished), "RUN", name, "no run in this folder has finished")
            runs += finished
        else:
            runs.append(name)
    return runs


def _evaluate(options: Namespace, lengths: list[int], skip: bool) -> None:
    """Evaluate one run; `skip`: unless eval.json has all that was asked for."""
    from rich.table import Table

    from minigpt.console import PipeConsole
    from minigpt.data.prepare import prepare
    from minigpt.data.stored import Stored
    from minigpt.evaluate.loss import evaluate
    from minigpt.html import write_page
    from minigpt.run.load import load_run

    trained = load_run(options.run, options.checkpoint, options.device, options.set)
    plain = trained.model
    if options.quantize is not None:
        from minigpt.inference.quantize import quantized

        trained = quantized(trained, options.quantize)
    console = PipeConsole(highlight=False)
    if skip and _is_recorded(trained, lengths, options.by_position):
        console.print(f"{trained.run.path} ({trained.label}): already evaluated", soft_wrap=True)
        return
    prepared = prepare(trained.config.data, trained.config.tokenizer, of_run=trained.run)
    tokens = prepared.tokens.to(trained.runtime.device)
    _require_text(lengths, tokens.val)
    record(trained, {})  # before any work: whether there is room for what will be found
    about = f"{trained.run.path} ({trained.label}), {trained.runtime.describe()}"
    console.print(about, soft_wrap=True)

    train = tokens.train
    if isinstance(train.tokens, Stored):  # of a corpus of any size; a slice, as in result.json
        train = train.head(len(tokens.val.tokens))
    found: dict[str, Any] = {}
    table = Table("split", "tokens", *(name.replace("_", " ") for name in METRICS))
    with console.status("evaluating ..."):
        for split in (train, tokens.val):
            result = evaluate(trained.model, split, trained.runtime)
            found |= result.metrics(split.name)
            table.add_row(split.name, f"{len(split.tokens):,}", *_cells(result))
        if trained.quantization is not None:
            before = evaluate(plain, tokens.val, trained.runtime)
            table.add_row("val, unquantised", f"{len(tokens.val.tokens):,}", *_cells(before))
            found["quantization"] = asdict(trained.quantization)
            found["quantization"]["val_loss_difference"] = result.loss - before.loss
    console.print(table)
    if trained.quantization is not None:
        difference = found["quantization"]["val_loss_difference"]
        console.print(trained.quantization.describe(), soft_wrap=True)
        console.print(f"validation loss {difference:+.5f} by {options.quantize}")
    record(trained, found)
    if options.random_batches is not None:
        with console.status("random batches ..."):
            line = _random_batches(trained, tokens.val, options.random_batches)
        console.print(line, soft_wrap=True)

    block_size = trained.config.model.block_size
    if lengths or options.by_position:
        curves: dict[int, Evaluation | str] = {block_size: result}  # the validation split's
        for number, length in enumerate(lengths, 1):
            with console.status(f"context {length} ({number} of {len(lengths)}) ..."):
                if length != block_size:
                    curves[length] = _at_length(trained, tokens.val, length)
                record(trained, {"lengths": {str(length): _numbers(curves[length])}})
        curves = {length: curves[length] for length in lengths or [block_size]}
        if lengths:
            console.print(_length_table(curves))
        if options.by_position:
            known = {n: found for n, found in curves.items() if not isinstance(found, str)}
            record(trained, {"by_position": {str(n): e.by_position for n, e in known.items()}})
        sections = _sections(curves, block_size, bool(lengths), options.by_position)
        title = f"{trained.run.path.name} ({trained.label}): validation loss and context"
        page = trained.run.path / "eval" / f"{trained.label.replace(' ', '_')}.html"
        for path in write_page(page, title, sections):
            console.print(f"drawn in {path}", soft_wrap=True)
    console.print(f"written to {eval_file(trained)}", soft_wrap=True)


def _lengths(text: str | None) -> list[int]:
    if text is None:
        return []
    try:
        lengths = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise UserError(f"--lengths={text}: not whole numbers; write 32,64,128") from None
    if lengths[0] < 1:
        raise UserError(f"--lengths={text}: a context has 1 token or more")
    return lengths


def _require_text(lengths: list[int], val: Split) -> None:
    longest = max(lengths, default=0)
    if longest >= len(val.tokens):
        raise UserError(
            f"--lengths={longest}: the val split has only {len(val.tokens)} tokens; "
            f"use {len(val.tokens) - 1} or fewer"
        )


def _at_length(trained: TrainedRun, split: Split, length: int) -> Evaluation | str:
    """The evaluation with windows of a length, or why it is undefined."""
    from minigpt.evaluate.loss import evaluate

    limit = trained.model.positional.max_length
    if limit is not None and length > limit:
        return f"undefined: {trained.config.model.positional.name} has {limit} positions"
    with one_line_if_out_of_memory(f"windows of {length} tokens are too long; use shorter ones"):
        return evaluate(trained.model, split, trained.runtime, length)


def _random_batches(trained: TrainedRun, split: Split, n_estimates: int) -> str:
    import statistics

    from minigpt.evaluate.loss import RANDOM_BATCH_SIZE, RANDOM_BATCHES, random_batch_losses

    losses = random_batch_losses(trained.model, split, trained.runtime, n_estimates)
    return (
        f"{RANDOM_BATCHES} random batches of {RANDOM_BATCH_SIZE}, {n_estimates} estimates: mean "
        f"{statistics.fmean(losses):.4f} nats/token, standard deviation "
        f"{statistics.stdev(losses):.4f}, from {min(losses):.4f} to {max(losses):.4f}"
    )


def _cells(result: Evaluation) -> list[str]:
    return [f"{result.loss:.4f}", f"{result.perplexity:.3f}", f"{result.bits_per_byte:.4f}"]


def _numbers(result: Evaluation | str) -> dict[str, Any]:
    if isinstance(result, str):
        return {**dict.fromkeys(METRICS), "undefined": result}
    return {name: getattr(result, name) for name in METRICS}


def _rows(curves: dict[int, Evaluation | str]) -> list[list[str]]:
    """Lengths and what was found there, as text."""
    return [
        [str(length), *(["undefined"] * 3 if isinstance(result, str) else _cells(result))]
        for length, result in curves.items()
    ]


def _length_table(curves: dict[int, Evaluation | str]) -> Any:
    from rich.table import Table

    table = Table("context", *(name.replace("_", " ") for name in METRICS))
    for row in _rows(curves):
        table.add_row(*row)
    whys = {result for result in curves.values() if isinstance(result, str)}
    table.caption = "; ".join(sorted(whys)) or None
    return table


def _sections(
    curves: dict[int, Evaluation | str], block_size: int, by_length: bool, by_position: bool
) -> list[Section]:
    from matplotlib.figure import Figure

    from minigpt.html import PARTS_OF_OCTAVE, Section, by_octave

    defined = {n: result for n, result in curves.items() if not isinstance(result, str)}
    trained_at = {"color": "0.5", "linestyle": ":", "label": f"trained at {block_size}"}

    def axes(xlabel: str) -> tuple[Figure, Any]:
        figure = Figure(figsize=(7, 4), layout="constrained")
        axis = figure.add_subplot(xlabel=xlabel, ylabel="validation loss, nats a token")
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.ticklabel_format(axis="y", useOffset=False)
        axis.grid(alpha=0.3)
        return figure, axis

    sections = []
    if by_length:
        figure, axis = axes("tokens in the context")
        axis.plot([*defined], [result.loss for result in defined.values()], marker="o")
        axis.axvline(block_size, **trained_at)
        axis.legend()
        head = ["context", *(name.replace("_", " ") for name in METRICS)]
        sections.append(
            Section(
                "By length of the context",
                "One full pass over the validation text for each length, in windows that do not "
                "overlap: each token sees what stands before it in its window, and in its "
                "document where the run has documents.",
                "lengths",
                figure,
                [head, *_rows(curves)],
            )
        )
    if by_position:
        figure, axis = axes("position in the context")
        for length, result in defined.items():
            axis.plot(*by_octave(result.by_position), label=f"windows of {length}", linewidth=1)
        axis.axvline(block_size, **trained_at)
        axis.legend()
        text = (
            "Averaged over the tokens at each position of a window, or of a document in it where "
            "the run has documents, and drawn as the mean of each "
            f"1/{PARTS_OF_OCTAVE} octave of positions: far ones are seen few times. eval.json has "
            "each position."
        )
        sections.append(Section("By position in the context", text, "by_position", figure))
    return sections


def eval_file(trained: TrainedRun) -> Path:
    """Where a run keeps what evaluations found, by checkpoint and changes."""
    return trained.run.path / "eval.json"


def record(trained: TrainedRun, found: dict[str, Any]) -> None:
    """Add to eval.json, beside what earlier calls found of the same weights.

    Raises UserError where the file is none of ours, and OSError where it cannot be written.
    """
    from filelock import FileLock

    from minigpt.files import sha256, write_json

    path = eval_file(trained)
    weights = sha256(trained.weights.read_bytes())
    with FileLock(path.with_name(".eval.lock")):  # of two evaluations none drops the other's
        entries = _entries(path)
        earlier = entries.get(trained.label, {})
        if earlier.get("weights_sha256") != weights:
            earlier = {}
        for curve in ("lengths", "by_position"):
            if curve in found:
                found[curve] = earlier.get(curve, {}) | found[curve]
        entries[trained.label] = {"weights_sha256": weights} | earlier | found
        write_json(path, entries)


def _is_recorded(trained: TrainedRun, lengths: list[int], by_position: bool) -> bool:
    """Return whether eval.json has the losses of these weights, and the curves asked for."""
    from minigpt.files import sha256

    entry = _entries(eval_file(trained)).get(trained.label, {})
    known = entry.get("lengths", {})
    wanted = {str(n) for n in lengths or [trained.config.model.block_size]}
    defined = {n for n in wanted if known.get(n, {}).get("loss", 0) is not None}
    return (
        entry.get("weights_sha256") == sha256(trained.weights.read_bytes())
        and "val_loss" in entry
        and (not lengths or wanted <= known.keys())
        and (not by_position or defined <= entry.get("by_position", {}).keys())
    )


def _entries(path: Path) -> dict[str, dict[str, Any]]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        if all(isinstance(entry.get("weights_sha256"), str) for entry in entries.values()):
            return entries
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError):
        pass
    raise UserError(f"{path}: not what minigpt eval wrote; delete it and evaluate again")
