"""`minigpt eval`: losses of a trained run on its text, also at other context lengths."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from minigpt.commands.options import QUANTIZE, Parser, add_run_arguments, set_threads
from minigpt.errors import UserError, require
from minigpt.files import user_path
from minigpt.loss_of import EVERY_TOKEN

if TYPE_CHECKING:
    from argparse import Namespace

    from rich.console import Console

    from minigpt.console import Progress
    from minigpt.data.corpus import DataConfig
    from minigpt.data.tokens import Split, TokenData
    from minigpt.evaluate.loss import Evaluation
    from minigpt.evaluate.loss_curves import Curve, LengthCurve
    from minigpt.inference.quantize import Quantization
    from minigpt.model import GPT
    from minigpt.objective.base import Objective
    from minigpt.run.load import TrainedRun


OPTIONS = {
    "--full": "training loss of all of the training split (default: as many tokens as validation)",
    **QUANTIZE,
    "--lengths N,N,...": "validation loss in windows of N tokens that do not overlap, for each N",
    "--contexts N,N,...": "validation loss of the same tokens, each with exactly N before it",
    "--pseudo": "of objective=masked: pseudo-perplexity of about 4,096 tokens of the validation "
    "split, each predicted from all others",
    "--by-position": "validation loss at each position of a window, or of a document in a window",
}
RANDOM_BATCHES = (
    "also N estimates of the validation loss from random batches, as nanoGPT prints them "
    "(default: 50)"
)


def main(arguments: list[str]) -> None:
    """Print the losses of all splits and the requested curves, and add them to eval.json."""
    parser = Parser(
        "eval",
        "Evaluate a trained run: one full pass over the validation split (and the test split, if\n"
        "the run has one), in windows that do not overlap, and one over as many tokens from the\n"
        "start of the training split.\n"
        "With --lengths, --contexts or --by-position: curves of the validation split, plotted in\n"
        "RUN/eval/.\n"
        "With --quantize: also the increase in validation loss caused by quantization.",
        [
            "minigpt eval latest",
            "minigpt eval latest --full",
            "minigpt eval latest --lengths 32,64,128,256,512 --by-position",
            "minigpt eval latest --contexts 32,64,128,256,512",
            "minigpt eval runs/NAME --lengths 512 --set model.positional.scaling=yarn "
            "--set model.positional.factor=4",
            "minigpt eval latest --quantize int4",
            "minigpt eval runs/SWEEP --checkpoint last --lengths 32,64,128",
        ],
    )
    add_run_arguments(parser, several=True)
    parser.add_options(OPTIONS)
    parser.add_argument(
        "--random-batches", metavar="N", type=int, nargs="?", const=50, help=RANDOM_BATCHES
    )
    options = parser.parse(arguments)
    lengths = _lengths("--lengths", options.lengths)
    contexts = _lengths("--contexts", options.contexts)
    n_estimates = options.random_batches
    if n_estimates is not None:
        require(n_estimates >= 2, "--random-batches", n_estimates, "must be 2 or more")

    from minigpt.console import PipeConsole, Progress

    set_threads(options)
    runs, console = _runs(options.run), PipeConsole(highlight=False)
    progress = Progress("evaluating")
    for run in runs:
        skip = len(runs) > 1 and n_estimates is None
        _evaluate_run(run, options, lengths, contexts, console, progress, skip_if_recorded=skip)


def _runs(names: list[str]) -> list[str]:
    """Return the named runs. A folder stands for all finished runs below it.

    `latest` is the sweep or search of the newest run, or that run.
    """
    from minigpt.report.runs import find_runs
    from minigpt.run.directory import find_folder

    runs: list[str] = []
    for name in names:
        path = find_folder(name) if name == "latest" else user_path("RUN", name)
        is_run = (path / "config.yaml").is_file()
        if path.is_dir() and not is_run and any(path.rglob("config.yaml")):
            finished = [str(run.path) for run in find_runs([str(path)]).runs if run.finished]
            require(bool(finished), "RUN", path, "no run in this folder has finished")
            runs += finished
        else:
            runs.append(str(path))
    return runs


def _lengths(flag: str, text: str | None) -> list[int]:
    if text is None:
        return []
    try:
        lengths = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise UserError(f"{flag}={text}: not integers; write them as 32,64,128") from None
    if lengths[0] < 1:
        raise UserError(f"{flag}={text}: context lengths must be 1 or more")
    return lengths


def _evaluate_run(
    run: str,
    options: Namespace,
    lengths: list[int],
    contexts: list[int],
    console: Console,
    progress: Progress,
    skip_if_recorded: bool,
) -> None:
    """Evaluate one run, print the results and save them in eval.json.

    `skip_if_recorded`: do nothing if eval.json already has all of them.
    """
    progress.begin(f"loading {run}")
    with progress:
        from minigpt.evaluate.loss_curves import EXACT, WINDOWS
        from minigpt.evaluate.record import (
            FULL_TRAIN,
            TEST,
            TRAIN_SLICE,
            VAL,
            is_recorded,
            save_evaluation,
        )
        from minigpt.inference.quantize import quantized
        from minigpt.run.load import TrainedRun

        plain = trained = TrainedRun.load(run, options.checkpoint, options.device, options.set)
        quantization = None
        if options.quantize is not None:
            trained, quantization = quantized(plain, options.quantize)
        train = FULL_TRAIN if options.full else TRAIN_SLICE
        test = [TEST] if trained.config.data.test_fraction else []
        curves = (lengths, contexts, options.by_position, options.pseudo)
        wanted = (trained, [train, VAL, *test], *curves)
        skipped = skip_if_recorded and is_recorded(*wanted)
        tokens = None if skipped else trained.tokens()
    if tokens is None:
        console.print(f"{trained.run.path} ({trained.label}): already evaluated", soft_wrap=True)
        return
    _require_possible(trained.objective, options, lengths)
    WINDOWS.require(lengths, tokens.val)
    EXACT.require(contexts, tokens.val)
    save_evaluation(trained, {})  # fails before the work if eval.json cannot be written
    about = f"{trained.run.path} ({trained.label}), {trained.runtime.describe()}"
    console.print(about, soft_wrap=True)
    if trained.objective.loss_of != EVERY_TOKEN:
        console.print(f"losses of {trained.objective.loss_of}", soft_wrap=True)
    if trained.run.data_sha256 is None:
        console.print(f"text: {_text(trained.config.data)}", soft_wrap=True)
    val = _evaluate_splits(trained, tokens, train, plain, quantization, console, progress)
    if options.pseudo:
        _print_pseudo(trained, tokens.val, console, progress)
    if options.random_batches is not None:
        _print_random_batches(trained, tokens.val, options.random_batches, console, progress)
    if lengths or contexts or options.by_position:
        wanted = {WINDOWS: lengths, EXACT: contexts}
        _evaluate_curves(trained, tokens.val, val, wanted, options.by_position, console, progress)
    console.print(f"written to {trained.run.evaluations}", soft_wrap=True)


def _require_possible(objective: Objective, options: Namespace, lengths: list[int]) -> None:
    """Raise UserError for options that an objective does not have."""
    for length in lengths:
        objective.require_length("--lengths", length)
    why = f"objective={objective.config.name} has losses of {objective.loss_of}; leave it out"
    needs = "needs a loss of every token, predicted from the tokens before it, and"
    for flag, value in (
        ("--contexts", options.contexts),
        ("--by-position", options.by_position or None),
        ("--random-batches", options.random_batches),
    ):
        if value is not None and not objective.predicts_all:
            raise UserError(f"{flag}: {needs} {why}")
    from minigpt.objective.masked import Masked

    masks, name = isinstance(objective, Masked), objective.config.name
    why = f"masks one token at a time, and objective={name} has no mask; leave it out"
    require(masks or not options.pseudo, "--pseudo", "true", why)


def _text(data: DataConfig) -> str:
    """Return which text stands in for that of a folder from elsewhere, which names none."""
    path = getattr(data, "path", None)
    if path is not None:
        return f"data.path={path}"
    return f"data={data.name}, as the folder names none; --set data.path=FILE gives another"


def _activity(trained: TrainedRun, what: str) -> str:
    return f"evaluating {trained.run.path} ({what})"


def _evaluate_splits(
    trained: TrainedRun,
    tokens: TokenData,
    train: str,
    plain: TrainedRun,
    quantization: Quantization | None,
    console: Console,
    progress: Progress,
) -> Evaluation:
    """Print and save the losses of all splits, and return the validation loss.

    `train`: TRAIN_SLICE or FULL_TRAIN, the part of the training split.
    `plain`: the run without `quantization`; its validation loss is printed for comparison.
    """
    from rich.table import Table

    from minigpt.evaluate.loss import evaluate
    from minigpt.evaluate.loss_curves import HEADINGS, cells
    from minigpt.evaluate.record import FULL_TRAIN, TEST, VAL, losses, save_evaluation

    table = Table("split", "tokens", *HEADINGS)

    def loss(model: GPT, split: Split, name: str) -> Evaluation:
        progress.begin(_activity(trained, name), len(split.tokens))
        result = evaluate(
            model, split, trained.runtime, progress=progress.advance, objective=trained.objective
        )
        table.add_row(name, _extent(split, tokens), *cells(result))
        return result

    difference = 0.0
    with progress:
        is_full = train == FULL_TRAIN
        split = tokens.train if is_full else tokens.train_slice(trained.tokenizer)
        values: dict[str, Any] = losses(train, split, loss(trained.model, split, "train"))
        val = loss(trained.model, tokens.val, "val")
        values |= losses(VAL, tokens.val, val)
        if tokens.test is not None:
            values |= losses(TEST, tokens.test, loss(trained.model, tokens.test, "test"))
        if quantization is not None:
            difference = val.loss - loss(plain.model, tokens.val, "val, not quantized").loss
            values["quantization"] = asdict(quantization) | {"val_loss_difference": difference}
    if trained.objective.loss_of != EVERY_TOKEN:
        values["loss_of"] = trained.objective.loss_of
    console.print(table)
    if quantization is not None:
        console.print(quantization.describe(), soft_wrap=True)
        console.print(f"validation loss {difference:+.5f} nats/token by {quantization.method}")
    save_evaluation(trained, values)
    return val


def _extent(part: Split, tokens: TokenData) -> str:
    """Return how many tokens a part of a split has, and whether it has only the first ones."""
    n, total = len(part.tokens), len(getattr(tokens, part.name).tokens)
    return f"{n:,}" if n == total else f"first {n:,}"


def _print_pseudo(trained: TrainedRun, split: Split, console: Console, progress: Progress) -> None:
    """Print and save the pseudo-perplexity of a split."""
    from minigpt.evaluate.loss import N_TARGETS
    from minigpt.evaluate.pseudo import PSEUDO, evaluate_pseudo
    from minigpt.evaluate.record import save_evaluation

    progress.begin(_activity(trained, "each token masked alone"), N_TARGETS)
    with progress:
        parts = (trained.model, split, trained.objective, trained.runtime)
        result, n = evaluate_pseudo(*parts, progress.advance)
    console.print(
        f"pseudo-perplexity {result.perplexity:.3f} ({result.loss:.4f} nats/token) of {n:,} "
        f"tokens of the {split.name} split, each predicted from all others in its window",
        soft_wrap=True,
    )
    save_evaluation(trained, {**result.metrics(PSEUDO), f"{PSEUDO}_tokens": n})


def _print_random_batches(
    trained: TrainedRun, split: Split, n_estimates: int, console: Console, progress: Progress
) -> None:
    """Print statistics of nanoGPT's estimate of a split's loss."""
    from statistics import fmean, stdev

    from minigpt.evaluate.loss import RANDOM_BATCH_SIZE, RANDOM_BATCHES, random_batch_losses

    tokens = n_estimates * RANDOM_BATCHES * RANDOM_BATCH_SIZE * trained.config.model.block_size
    progress.begin(_activity(trained, "random batches"), tokens)
    with progress:
        losses = random_batch_losses(
            trained.model, split, trained.runtime, n_estimates, progress=progress.advance
        )
    about = f"{RANDOM_BATCHES} random batches of {RANDOM_BATCH_SIZE}, {n_estimates} estimates"
    mean = f"mean {fmean(losses):.4f} nats/token, standard deviation {stdev(losses):.4f}"
    extremes = f"from {min(losses):.4f} to {max(losses):.4f}"
    console.print(f"{about}: {mean}, {extremes}", soft_wrap=True)


def _evaluate_curves(
    trained: TrainedRun,
    split: Split,
    at_block_size: Evaluation,
    wanted: dict[LengthCurve, list[int]],
    by_position: bool,
    console: Console,
    progress: Progress,
) -> None:
    """Print, save and plot the loss of a split by context length and by position."""
    from rich.table import Table

    from minigpt.evaluate import loss_curves
    from minigpt.evaluate.record import BY_POSITION, save_evaluation
    from minigpt.html import write_page

    block_size = trained.config.model.block_size
    sections = []
    windows: Curve = {block_size: at_block_size}
    for kind, lengths in wanted.items():
        if not lengths:
            continue
        curve: Curve = {}
        with progress:
            for length in lengths:
                progress.begin(_activity(trained, f"val, {kind.name} {length}"), kind.size(split))
                is_known = kind is loss_curves.WINDOWS and length == block_size
                evaluated = (
                    at_block_size
                    if is_known
                    else kind.evaluate(trained, split, length, progress.advance)
                )
                curve[length] = evaluated
                save_evaluation(trained, {kind.name: {str(length): loss_curves.metrics(evaluated)}})
        head, *rows = loss_curves.length_table(curve)
        reasons = {result for result in curve.values() if isinstance(result, str)}
        table = Table(*head, title=kind.heading, caption="; ".join(sorted(reasons)) or None)
        for row in rows:
            table.add_row(*row)
        console.print(table)
        sections.append(kind.section(curve, block_size))
        if kind is loss_curves.WINDOWS:
            windows = curve
    if by_position:
        values = {str(n): result.by_position for n, result in loss_curves.defined(windows).items()}
        save_evaluation(trained, {BY_POSITION: values})
        sections.append(loss_curves.position_section(windows, block_size))
    title = f"{trained.run.path.name} ({trained.label}): validation loss and context"
    page = trained.run.path / "eval" / f"{trained.label.replace(' ', '_')}.html"
    for path in write_page(page, title, sections):
        console.print(f"plotted in {path}", soft_wrap=True)
