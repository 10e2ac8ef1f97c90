"""Figures of a recorded forward pass and of a positional scheme."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

MAX_TICKS = 40  # token labels on an axis
PAGE_WIDTH = 13.0  # inches
MAX_BARS = 1000  # drawn as shapes; more are an image


@dataclass(frozen=True)
class FigureStyle:
    """Style of a figure: heat maps with y and x axes, or curves if there is no y axis."""

    heading: str
    text: str
    unit: str
    x: str
    y: str = ""
    colormap: str = "RdBu_r"

    @property
    def of_tokens(self) -> bool:
        """Whether both axes are tokens."""
        return self.x == "key"


FROM_ZEROS = ("The scheme applied to inputs of zeros.", "value", "channel", "position")
STYLES = {
    "attention": FigureStyle(
        "Attention", "The weights of a query (a row) sum to 1.", "weight", "key", "query", "viridis"
    ),
    "cross": FigureStyle(
        "Cross-attention",
        "The weights of a token of the decoder (a row) for those of the source sum to 1.",
        *("weight", "key", "query", "viridis"),
    ),
    "experts": FigureStyle(
        "Expert usage",
        "The fraction of a layer's assignments to each expert, over the prompt.",
        *("fraction", "expert", "layer", "viridis"),
    ),
    "embed": FigureStyle("Added to the embeddings", *FROM_ZEROS),
    "block_input": FigureStyle("Added to the blocks' inputs", *FROM_ZEROS),
    "angles": FigureStyle(
        "Rotary angles",
        "The measured rotation of each pair of channels of queries and keys.",
        *("radians", "channel pair", "position", "twilight"),
    ),
    "decay": FigureStyle(
        "Rotation by distance",
        "The mean over channels of a rotated query of ones times a rotated key of ones.",
        *("mean of q k", "distance"),
    ),
    "score": FigureStyle(
        "Attention bias",
        "The bias that the scheme adds to the attention scores of the prompt.",
        *("added to the score", "key", "query"),
    ),
    "bias": FigureStyle(
        "Attention bias by distance",
        "For the query at the last position.",
        *("added to the score", "distance"),
    ),
}


def plot(
    style: FigureStyle,
    values: Tensor,
    labels: list[str],
    rows: list[str] | None = None,
    first: int = 0,
) -> Figure:
    """Plot heat maps (h, y, x) or curves (h, x).

    `labels` are the tokens of both axes; `rows` are those of y if it has others. `first`: the first
    x of a curve.
    """
    if style.y:
        return _plot_maps(style, values, labels, labels if rows is None else rows)
    return _plot_curves(style, values, first)


def _plot_curves(style: FigureStyle, values: Tensor, first: int) -> Figure:
    n = len(values)
    figure = Figure((9, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel=style.x, ylabel=style.unit)
    axes.grid(alpha=0.3)
    for head, line in enumerate(values.numpy()):
        axes.plot(
            range(first, first + len(line)),
            line,
            color=colormaps["viridis"](0.9 * head / n),
            label=f"head {head}",
        )
    if n > 1:
        figure.legend(loc="outside right upper", fontsize=8)
    return figure


def _plot_maps(style: FigureStyle, values: Tensor, labels: list[str], rows: list[str]) -> Figure:
    n = len(values)
    width, height = PAGE_WIDTH - 3, 5.0
    if style.of_tokens:
        width, height = (min(max(1.2 + 0.16 * len(axis), 2.6), 6.2) for axis in (labels, rows))
    n_rows = -(-n // min(4, int(PAGE_WIDTH // width)))
    n_columns = -(-n // n_rows)
    figure = Figure((n_columns * width + 1.0, n_rows * (height + 0.2) + 0.3), layout="constrained")
    grid = list(figure.subplots(n_rows, n_columns, squeeze=False).flat)
    most = abs(values).nan_to_num().max().item() or 1.0
    scales = {"viridis": (0, 1), "twilight": (-math.pi, math.pi)}
    low, high = scales.get(style.colormap, (-most, most))
    # The square root makes small weights visible: with many keys, all weights are small.
    norm = PowerNorm(0.5, low, high) if low == 0 else Normalize(low, high)
    image: dict[str, Any] = {"cmap": style.colormap, "norm": norm, "interpolation": "nearest"}
    image["aspect"] = "equal" if style.of_tokens else "auto"
    for head, axes in enumerate(grid):
        if head >= n:
            axes.set_visible(False)
            continue
        axes.imshow(values[head].numpy(), **image)
        if n > 1:
            axes.set_title(f"head {head}", fontsize=10)
        _style_map(axes, (labels, rows) if style.of_tokens else None)
    figure.supxlabel(style.x, fontsize=10)
    figure.supylabel(style.y, fontsize=10)
    figure.colorbar(grid[0].images[0], ax=grid, label=style.unit, shrink=0.8, aspect=30)
    return figure


def _style_map(axes: Axes, labels: tuple[list[str], list[str]] | None) -> None:
    axes.set_facecolor("0.85")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    if labels is not None:
        columns, rows = labels
        vertical = max(map(len, columns)) > 2 or len(columns) > MAX_TICKS
        _label_ticks(axes.set_xticks, columns, rotation=90 if vertical else 0)
        _label_ticks(axes.set_yticks, rows)


def _label_ticks(set_ticks: Any, labels: list[str], rotation: int = 0) -> None:
    """Label the ticks of an axis by tokens; if there are many, some of them with their indices."""
    step = -(-len(labels) // MAX_TICKS)
    indices = range(0, len(labels), step)
    shown = labels if step == 1 else [f"{index} {labels[index]}" for index in indices]
    set_ticks(indices, shown, fontsize=8, rotation=rotation, parse_math=False)


def plot_step(values: Tensor) -> Figure:
    """Plot values (n,) as bars, or (rows, n) as a heat map, without axes, to stand beside text."""
    figure = Figure((4.2, 0.6 if values.ndim == 1 else 1.1), layout="constrained")
    axes = figure.add_subplot()
    axes.set_axis_off()
    numbers = values.nan_to_num().numpy()
    most = float(abs(numbers).max()) or 1.0
    if values.ndim == 1:
        axes.fill_between(range(len(numbers) + 1), [*numbers, numbers[-1]], step="post", lw=0)
        axes.axhline(0, color="0.5", linewidth=0.5)
        axes.margins(x=0)
        axes.set_rasterization_zorder(10 if len(numbers) > MAX_BARS else None)
    else:
        norm = Normalize(-most, most)
        axes.imshow(numbers, cmap="RdBu_r", norm=norm, aspect="auto", interpolation="nearest")
    return figure


def next_token_table(
    rows: list[list[tuple[str, float]]],
    labels: list[str],
    where: str = "after",
    actual: str = "came next",
) -> list[list[str]]:
    """Return the rows of `next_tokens` as text, headings first.

    `where`: a prediction is of the token `after` another, or `at` it; `actual`: that token.
    """

    def cell(label: str, p: float) -> str:
        return "" if math.isnan(p) else f"{label} {100 * p:.1f}%"

    head = [where, actual, *map(str, range(1, len(rows[0])))]
    named = zip(labels, rows, strict=True)
    return [head, *([label, *(cell(*pair) for pair in row)] for label, row in named)]


def plot_next_tokens(
    rows: list[list[tuple[str, float]]],
    labels: list[str],
    where: str = "after",
    actual: str = "came next",
) -> Figure:
    """Plot the probabilities of `next_tokens`, one row per token. See `next_token_table`."""
    head, *cells = next_token_table(rows, labels, where, actual)
    figure = Figure((1.4 * len(head) + 0.1, 0.26 * len(rows) + 0.8), layout="constrained")
    axes = figure.add_subplot()
    probabilities = [[p for _, p in row] for row in rows]
    image = axes.imshow(probabilities, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 9, "parse_math": False}
    for y, row in enumerate(cells):
        for x, text in enumerate(row[1:]):
            axes.text(x, y, text, color="white" if probabilities[y][x] > 0.6 else "black", **style)
    axes.axvline(0.5, color="0.3", linewidth=1)
    axes.xaxis.tick_top()
    axes.set_xticks(range(len(head) - 1), head[1:], fontsize=9)
    axes.set_yticks(range(len(rows)), [f"{where} {label}" for label in labels], parse_math=False)
    figure.colorbar(image, ax=axes, label="probability", pad=0.02)
    return figure
