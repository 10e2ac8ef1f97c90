"""Validation loss by context length and by position in the context, with figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minigpt.console import Advance, ignore_progress
from minigpt.data.tokens import Split
from minigpt.errors import one_line_if_out_of_memory, require
from minigpt.evaluate.loss import N_TARGETS, Evaluation, evaluate, evaluate_at_context
from minigpt.evaluate.record import CONTEXTS, LENGTHS
from minigpt.html import PARTS_OF_OCTAVE, Section, by_octave
from minigpt.loss_of import EVERY_TOKEN
from minigpt.run.load import TrainedRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METRICS = ("loss", "perplexity", "bits_per_byte")
HEADINGS = ("loss (nats/token)", "perplexity", "bits/byte")

# By context length: the evaluation, or the reason why it is undefined.
Curve = dict[int, Evaluation | str]


@dataclass(frozen=True)
class LengthCurve:
    """A loss at several context lengths.

    `flag`: of minigpt eval. `name`: in eval.json. `compute`: returns the loss at a length.
    `longest`: returns the longest length that a split allows. `size`: the tokens of an evaluation.
    """

    flag: str
    name: str
    heading: str
    text: str
    compute: Callable[[TrainedRun, Split, int, Advance], Evaluation]
    longest: Callable[[Split], int]
    size: Callable[[Split], int]

    def require(self, lengths: Sequence[int], split: Split) -> None:
        """Raise UserError if a length is above the longest that the split allows."""
        longest, length = self.longest(split), max(lengths, default=0)
        why = f"the {split.name} split has only {len(split.tokens)} tokens; use {longest} or fewer"
        require(length <= longest, self.flag, length, why)

    def evaluate(
        self, trained: TrainedRun, split: Split, length: int, progress: Advance = ignore_progress
    ) -> Evaluation | str:
        """Return the loss at a context length, or why it is undefined.

        `progress`: as in `evaluate`. Raises Failure if it runs out of memory.
        """
        limit = trained.model.positional.max_length
        if limit is not None and length > limit:
            return f"undefined: {trained.config.model.positional.name} has {limit} positions"
        with one_line_if_out_of_memory(f"{self.flag}={length} is too long; use shorter ones"):
            return self.compute(trained, split, length, progress)

    def section(self, curve: Curve, block_size: int) -> Section:
        """Plot and tabulate the loss by context length; a line marks the training length."""
        results = defined(curve)
        loss_of = _loss_of(results)
        figure, axes = _loss_axes("tokens in the context", block_size, loss_of)
        axes.plot([*results], [result.loss for result in results.values()], marker="o")
        axes.legend()
        text = self.text.partition(":")[0] + f": losses of {loss_of}."
        text = self.text if loss_of == EVERY_TOKEN else text
        return Section(self.heading, text, self.name, figure, length_table(curve))


def _in_windows(trained: TrainedRun, split: Split, n: int, progress: Advance) -> Evaluation:
    return evaluate(trained.model, split, trained.runtime, n, progress, objective=trained.objective)


def _exactly(trained: TrainedRun, split: Split, n: int, progress: Advance) -> Evaluation:
    parts = (trained.model, split, trained.tokenizer, trained.runtime)
    return evaluate_at_context(*parts, n, progress)


WINDOWS = LengthCurve(
    flag="--lengths",
    name=LENGTHS,
    heading="By length of the windows",
    text="One full pass over the validation text for each length, in windows that do not overlap: "
    "each token attends to those before it in its window, and in its document if the run has "
    "documents.",
    compute=_in_windows,
    longest=lambda split: len(split.tokens) - 1,
    size=lambda split: len(split.tokens),
)
EXACT = LengthCurve(
    flag="--contexts",
    name=CONTEXTS,
    heading="By length of the context, of the same tokens",
    text=f"The same {N_TARGETS:,} tokens of the second half of the validation text at each length, "
    "each predicted from exactly so many tokens before it. Longer windows that do not overlap have "
    "fewer tokens with a short context; this curve is free of that.",
    compute=_exactly,
    longest=lambda split: len(split.tokens) // 2,
    size=lambda split: N_TARGETS,
)


def defined(curve: Curve) -> dict[int, Evaluation]:
    """Return the lengths at which the loss is defined."""
    return {n: result for n, result in curve.items() if not isinstance(result, str)}


def metrics(result: Evaluation | str) -> dict[str, Any]:
    """Return the metrics of one length for eval.json, null if undefined."""
    if isinstance(result, str):
        return {**dict.fromkeys(METRICS), "undefined": result}
    return {name: getattr(result, name) for name in METRICS}


def cells(result: Evaluation | str) -> list[str]:
    """Return the metrics of one length as table cells."""
    if isinstance(result, str):
        return ["undefined"] * len(METRICS)
    return [f"{result.loss:.4f}", f"{result.perplexity:.3f}", f"{result.bits_per_byte:.4f}"]


def length_table(curve: Curve) -> list[list[str]]:
    """Return a table of metrics by context length, headings first."""
    rows = [[str(length), *cells(result)] for length, result in curve.items()]
    return [["context", *HEADINGS], *rows]


def position_section(curve: Curve, block_size: int) -> Section:
    """Plot the loss by position in the context, one line per context length."""
    figure, axes = _loss_axes("position in the context", block_size, EVERY_TOKEN)
    for length, result in defined(curve).items():
        axes.plot(*by_octave(result.by_position), label=f"windows of {length}", linewidth=1)
    axes.legend()
    text = (
        "The mean over all tokens at a position of a window, or of a document in it if the run has "
        f"documents. Each point is the mean of 1/{PARTS_OF_OCTAVE} octave of positions, since few "
        "tokens are far from the start. eval.json has every position."
    )
    return Section("By position in the context", text, "by_position", figure)


def _loss_of(results: dict[int, Evaluation]) -> str:
    return next((result.loss_of for result in results.values()), EVERY_TOKEN)


def _loss_axes(xlabel: str, block_size: int, loss_of: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    unit = "nats/token" if loss_of == EVERY_TOKEN else f"nats/token, {loss_of}"
    axes = figure.add_subplot(xlabel=xlabel, ylabel=f"validation loss ({unit})")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.grid(alpha=0.3)
    axes.axvline(block_size, color="0.5", linestyle=":", label=f"trained at {block_size}")
    return figure, axes
