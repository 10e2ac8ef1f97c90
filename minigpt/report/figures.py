"""Figures of a report: lines of designs with their intervals over seeds, styles and axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go

from minigpt.report.statistics import half_intervals

# Contrast of 3 or more with white and with black. Designs cycle through colours, then dashes and
# symbols.
COLOURS = ("#2f7fd6", "#d9700f", "#2a9d4a", "#dc4450", "#9467d8", "#1597a5", "#8f8a1c")
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "square", "diamond", "cross", "x", "triangle-up", "triangle-down")
BAND_OPACITY = 0.18
NAME_CHARACTERS = 18  # maximum of a name beside a row
GREY = "#888888"  # of lines that are no design, on light and on dark


@dataclass(frozen=True)
class Style:
    """The style of a design in every plot."""

    colour: str
    dash: str
    symbol: str


@dataclass(frozen=True)
class Choice:
    """The data shown by a button above a plot: x and y of each trace, and the x-axis title."""

    name: str
    x: list[Any]
    y: list[Any]
    title: str


@dataclass(frozen=True)
class Plot:
    """A figure under a heading. `choices`: buttons that switch its data; the first is drawn.

    `legend`: the styles of its labels, if they are not those of the designs. `rows`: the number of
    designs in a plot that has a named row for each, so that it needs no labels. `start`: the part
    of the x-axis whose values the y-axis leaves out.
    """

    name: str
    heading: str
    text: str
    figure: go.Figure
    choices: list[Choice] = field(default_factory=list)
    legend: dict[str, Style] = field(default_factory=dict)
    rows: int | None = None
    start: float = 0.0

    @property
    def labels(self) -> list[str]:
        """Labels of the designs in the figure, each once."""
        return [*dict.fromkeys(trace["name"] for trace in self.figure.to_plotly_json()["data"])]


@dataclass(frozen=True)
class Line:
    """A mean over seeds along x. `half`: half-width of its interval; None for one seed."""

    x: list[float]
    mean: list[float]
    half: list[float] | None


def styles(labels: Sequence[str]) -> dict[str, Style]:
    """Return a style for each label of a design.

    No two have the same colour and dash, or the same colour and symbol, until all are used.
    """
    found = {}
    for number, label in enumerate(labels):
        turn, place = divmod(number, len(COLOURS))
        dash, symbol = DASHES[turn % len(DASHES)], SYMBOLS[(place + turn) % len(SYMBOLS)]
        found[label] = Style(COLOURS[place], dash, symbol)
    return found


def log_plot(
    name: str,
    heading: str,
    text: str,
    unit: str,
    lines_by_axis: dict[str, dict[str, Line]],
    modes: Mapping[str, str] | None = None,
) -> Plot:
    """Return a plot of lines by label over a logarithmic x-axis, with a button for each axis.

    `modes`: of labels that are not lines with markers: "lines" or "markers".
    """
    first = next(iter(lines_by_axis))
    figure = figure_of(unit, first)
    figure.update_xaxes(type="log", dtick="D2")  # a label at 1, 2 and 5
    by_label = styles([*lines_by_axis[first]])
    for label, line in lines_by_axis[first].items():
        mode = (modes or {}).get(label, "lines+markers")
        add_line(figure, label, by_label[label], line, mode)
    axes = [
        Choice(axis, *data_of([*lines.values()]), axis) for axis, lines in lines_by_axis.items()
    ]
    return Plot(name, heading, text, figure, axes, by_label)


# ---- lines, bands, axes ----


def line_of(x: list[float], values: np.ndarray) -> Line:
    """Return the line of values (seeds, points)."""
    half = half_intervals(values.T).tolist() if len(values) > 1 else None
    return Line(x, values.mean(axis=0).tolist(), half)


def data_of(lines: Sequence[Line]) -> tuple[list[list[float]], list[list[float]]]:
    """Return x and y of every trace: of each line its band, if there is one, then its mean.

    The outline of a band is its upper side, then its lower side backwards.
    """
    x: list[list[float]] = []
    y: list[list[float]] = []
    for line in lines:
        band: list[float] = []
        if line.half:
            mean, half = np.array(line.mean), np.array(line.half)
            band = [*(mean + half), *np.maximum(mean - half, 0)[::-1]]  # no loss is below 0
        x += [rounded((line.x + line.x[::-1])[: len(band)]), rounded(line.x)]
        y += [rounded(band), rounded(line.mean)]
    return x, y


def add_line(figure: go.Figure, name: str, style: Style, line: Line, mode: str = "lines") -> None:
    """Add the band, then the line, or a marker for a single point."""
    (band_x, line_x), (band_y, line_y) = data_of([line])
    figure.add_scatter(
        x=band_x,
        y=band_y,
        name=name,
        mode="lines",
        line={"width": 0},
        fill="toself",
        fillcolor=_transparent(style.colour),
        hoverinfo="skip",
    )
    figure.add_scatter(
        x=line_x,
        y=line_y,
        name=name,
        mode=mode if len(line.x) > 1 else "markers",
        line={"color": style.colour, "dash": style.dash, "width": 2},
        marker={"color": style.colour, "size": 7, "symbol": style.symbol},
        hovertemplate=f"%{{x:,.5~g}}: %{{y:.4f}}<extra>{plain(name)}</extra>",
    )


def figure_of(y: str, x: str) -> go.Figure:
    """Return an empty figure with x from 0; report.js sets its colours."""
    x_axis = {"automargin": "height", "zeroline": False, "rangemode": "nonnegative"}
    y_axis = {"automargin": "left", "zeroline": False}  # report.js sets the right margin
    return go.Figure(
        layout={
            "template": "none",
            "showlegend": False,  # the page has labels beside the lines
            "margin": {"l": 56, "r": 16, "t": 12, "b": 48},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "hovermode": "closest",
            "xaxis": {"title": {"text": x}, **x_axis},
            "yaxis": {"title": {"text": y}, **y_axis},
        }
    )


def by_octaves(figure: go.Figure, ticks: Sequence[int]) -> None:
    """Make the x-axis logarithmic, with these ticks."""
    texts = [*map(str, ticks)]
    figure.update_xaxes(type="log", tickmode="array", tickvals=[*ticks], ticktext=texts)


def plain(text: str) -> str:
    """Return text without meaning in the markup and the templates of plotly."""
    return escape(text, quote=False).replace("%{", "%&#123;")


def shortened(text: str) -> str:
    """Return a name that leaves room for a plot on a phone."""
    return text if len(text) <= NAME_CHARACTERS else f"{text[: NAME_CHARACTERS - 1]}…"


def _transparent(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{BAND_OPACITY})"


def rounded(values: Sequence[float]) -> list[float]:
    """Round to six significant digits, to keep the page small."""
    return [float(f"{value:.6g}") for value in values]
