"""Figures of the loss by length of the context and by position, as sections of a page."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from minigpt.evaluate.context_lengths import Curve, defined, length_table
from minigpt.html import PARTS_OF_OCTAVE, Section, by_octave


def length_section(curve: Curve, block_size: int) -> Section:
    """Plot and tabulate the loss by context length; a line marks the training length."""
    figure, axes = _loss_axes("tokens in the context")
    results = defined(curve)
    axes.plot([*results], [result.loss for result in results.values()], marker="o")
    _mark_training_length(axes, block_size)
    text = (
        "One full pass over the validation text for each length, in windows that do not overlap: "
        "each token attends to those before it in its window, and in its document if the run has "
        "documents."
    )
    return Section("By length of the context", text, "lengths", figure, length_table(curve))


def position_section(curve: Curve, block_size: int) -> Section:
    """Plot the loss by position in the context, one line per context length."""
    figure, axes = _loss_axes("position in the context")
    for length, result in defined(curve).items():
        axes.plot(*by_octave(result.by_position), label=f"windows of {length}", linewidth=1)
    _mark_training_length(axes, block_size)
    text = (
        "The mean over all tokens at a position of a window, or of a document in it if the run has "
        f"documents. Each point is the mean of 1/{PARTS_OF_OCTAVE} octave of positions, since few "
        "tokens are far from the start. eval.json has every position."
    )
    return Section("By position in the context", text, "by_position", figure)


def _loss_axes(xlabel: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel=xlabel, ylabel="validation loss (nats/token)")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.grid(alpha=0.3)
    return figure, axes


def _mark_training_length(axes: Any, block_size: int) -> None:
    axes.axvline(block_size, color="0.5", linestyle=":", label=f"trained at {block_size}")
    axes.legend()
