"""The plots of a report: a line for each design, with its confidence interval over seeds."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import plotly.graph_objects as go

from minigpt.html import PARTS_OF_OCTAVE, by_octave
from minigpt.report.comparison import LOSS, Comparison
from minigpt.report.evaluations import BY_POSITION, LENGTH_CURVES, at_length, by_position, lengths
from minigpt.report.runs import Run
from minigpt.report.statistics import half_intervals, interval

# Contrast of 3 or more with white and with black. Designs cycle through colours, then dashes.
COLOURS = ("#2f7fd6", "#d9700f", "#2a9d4a", "#dc4450", "#9467d8", "#1597a5", "#8f8a1c")
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "square", "diamond", "cross", "x", "triangle-up", "star")
BAND_OPACITY = 0.18
MAX_POINTS = 300  # maximum per curve, to keep the page small
LOG_RATIO = 10  # the x-axis is logarithmic if largest / smallest x reaches this


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

    `legend`: the styles of its labels, if they are not those of the designs.
    """

    name: str
    heading: str
    text: str
    figure: go.Figure
    choices: list[Choice] = field(default_factory=list)
    legend: dict[str, Style] = field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        """Labels of the designs in the figure."""
        return [trace["name"] for trace in self.figure.to_plotly_json()["data"]]


@dataclass(frozen=True)
class Line:
    """A mean over seeds along x. `half`: half-width of its interval; None for one seed."""

    x: list[float]
    mean: list[float]
    half: list[float] | None


def styles(labels: Sequence[str]) -> dict[str, Style]:
    """Return a style for each label of a design."""
    colours, symbols = itertools.cycle(COLOURS), itertools.cycle(SYMBOLS)
    dashes = itertools.cycle(dash for dash in DASHES for _ in COLOURS)
    return dict(zip(labels, map(Style, colours, dashes, symbols), strict=False))


def plots(comparison: Comparison, checkpoint: str | None) -> list[Plot]:
    """Return the plots that have data, in the order of the page."""
    drafts = [learning(comparison, comparison.validation.key)]
    if comparison.one_tokenizer:
        drafts.append(learning(comparison, "train_loss"))
    if checkpoint is not None:
        drafts += [length_plot(comparison, checkpoint, curve) for curve in LENGTH_CURVES]
        drafts.append(position_plot(comparison, checkpoint))
    drafts += [
        against(comparison, "parameters", "parameters.total", "parameters"),
        against(comparison, "time", "seconds", "seconds of training, median and range over seeds"),
    ]
    return [plot for plot in drafts if plot is not None]


# ---- during training ----

AXES = {"step": "steps", "tokens": "tokens", "FLOPs": "FLOPs", "seconds": "seconds"}  # titles


def learning(comparison: Comparison, key: str) -> Plot | None:
    """Return the plot of a metric during training, by step, tokens, FLOPs and seconds."""
    measure = comparison.validation
    is_training_loss = key == "train_loss"
    name = "training loss" if is_training_loss else measure.name
    unit = LOSS.unit if is_training_loss else measure.unit
    curves = [
        (design, _curves(design.runs or design.unfinished, key)) for design in comparison.designs
    ]
    known = {design.label: lines for design, lines in curves if lines}
    if all(len(lines["step"].x) < 2 for lines in known.values()):  # the leaderboard has one value
        return None
    by_label = styles(comparison.labels)
    figure = _figure(f"{name}, {unit}", AXES["step"])
    for label, lines in known.items():
        _add_line(figure, label, by_label[label], lines["step"])
    choices = [
        Choice(axis, *_data([lines[axis] for lines in known.values()]), title)
        for axis, title in AXES.items()
        if all(axis in lines for lines in known.values())
    ]
    text = (
        "Mean over seeds, up to the last step that all seeds of a design reached; band: interval. "
        "Seconds are medians over seeds."
    )
    if is_training_loss:
        text += " Training loss is the mean since the previous logged step."
    unfinished = [design.label for design, lines in curves if lines and not design.runs]
    if unfinished:
        text += f" Unfinished runs are drawn for {', '.join(unfinished)}."
    heading = f"{name.capitalize()} during training"
    return Plot(f"learning_{key}", heading, text, figure, choices)


def _curves(runs: Sequence[Run], key: str) -> dict[str, Line]:
    """Return the line of a metric by axis, at up to MAX_POINTS shared steps; {} without data.

    An axis is left out if a run has no values for it.
    """
    known = [(run, logged) for run in runs if (logged := run.logged(key))]
    shared = [{*logged} for _, logged in known]
    steps = sorted(shared[0].intersection(*shared)) if shared else []
    if not steps:
        return {}
    steps = steps[::-1][:: -(-len(steps) // MAX_POINTS)][::-1]  # so that the last step is kept
    by_seed: dict[Any, list[list[float]]] = {}
    for run, logged in known:
        values = [logged[step] for step in steps]
        by_seed.setdefault(run.path if run.seed is None else run.seed, []).append(values)
    means = np.array([np.mean(same, axis=0) for same in by_seed.values()])
    axes = [_axes(run, steps) for run, _ in known]
    return {
        axis: _line(np.median([x[axis] for x in axes], axis=0).tolist(), means)
        for axis in AXES
        if all(axis in x for x in axes)
    }


def _axes(run: Run, steps: list[int]) -> dict[str, Sequence[float]]:
    """Return x of a run at its steps, by the name of the axis."""
    batch, block = run.config.get("trainer.batch_size"), run.config.get("model.block_size")
    flops, seconds = run.number("flops_per_token"), run.logged("seconds")
    axes: dict[str, Sequence[float]] = {"step": steps}
    if isinstance(batch, int) and isinstance(block, int):
        axes["tokens"] = [step * batch * block for step in steps]
        if flops is not None:
            axes["FLOPs"] = [tokens * flops for tokens in axes["tokens"]]
    if all(step in seconds for step in steps):
        axes["seconds"] = [seconds[step] for step in steps]
    return axes


# ---- after training ----


def length_plot(comparison: Comparison, checkpoint: str, curve: str) -> Plot | None:
    """Return the plot of the measure by context length, for a curve of LENGTH_CURVES."""
    measure = comparison.validation
    known = lengths(comparison.designs, checkpoint, curve)
    by_label = styles(comparison.labels)
    figure = _figure(f"{measure.name}, {measure.unit}", "context length, tokens")
    _by_octaves(figure, known)
    for design in comparison.designs:
        seeds = {n: at_length(design, checkpoint, n, measure, curve) for n in known}
        intervals = {n: interval([*values.values()]) for n, values in seeds.items() if values}
        if intervals:
            means, halves = zip(*((i.mean, i.half) for i in intervals.values()), strict=True)
            half = [half or 0.0 for half in halves] if any(h is not None for h in halves) else None
            line = Line([*intervals], [*means], half)
            _add_line(figure, design.label, by_label[design.label], line, mode="lines+markers")
    if not figure.data:
        return None
    for size in {design.config.get("model.block_size") for design in comparison.designs}:
        if isinstance(size, int):
            figure.add_vline(x=size, line={"dash": "dot", "width": 1, "color": "#888888"})
    heading, protocol = LENGTH_CURVES[curve]
    text = (
        f"{protocol}; weights: {checkpoint}. A line ends where its scheme is undefined. Band: "
        f"interval over seeds; dotted line: length in training."
    )
    return Plot(curve, heading, text, figure)


def position_plot(comparison: Comparison, checkpoint: str) -> Plot | None:
    """Return the plot of the loss by position in the window, with a button for each length."""
    if not comparison.one_tokenizer:
        return None  # positions are in tokens, which differ
    designs = comparison.designs
    by_label = styles([design.label for design in designs])
    sizes = lengths(designs, checkpoint, BY_POSITION)
    trained = {design.config.get("model.block_size") for design in designs}
    sizes.sort(key=lambda n: (n not in trained, n))  # the length in training comes first
    losses = {size: {d.label: by_position(d, checkpoint, size) for d in designs} for size in sizes}
    labels = [d.label for d in designs if any(losses[size][d.label] for size in sizes)]
    if not labels:
        return None

    title = "position in the window"
    lines = {size: [_position_line(losses[size][label]) for label in labels] for size in sizes}
    figure = _figure(f"{LOSS.name}, {LOSS.unit}", title)
    _by_octaves(figure, [2**n for n in range(max(sizes).bit_length())])
    for label, line in zip(labels, lines[sizes[0]], strict=True):
        _add_line(figure, label, by_label[label], line)
    choices = [Choice(f"windows of {size:,}", *_data(lines[size]), title) for size in sizes]
    text = (
        f"Mean over the tokens at each position, averaged over 1/{PARTS_OF_OCTAVE} octaves of "
        f"positions; band: interval over seeds."
    )
    return Plot("positions", "Loss by position in the window", text, figure, choices)


def _position_line(seeds: list[list[float]]) -> Line:
    if not seeds:
        return Line([], [], None)
    positions = by_octave(seeds[0])[0]
    return _line(positions, np.array([by_octave(losses)[1] for losses in seeds]))


def against(comparison: Comparison, name: str, key: str, title: str) -> Plot | None:
    """Return the plot of the measure against another result, a point for each design."""
    measure = comparison.measure
    by_label = styles(comparison.labels)
    figure = _figure(f"{measure.name}, {measure.unit}", title)
    xs: list[float] = []
    for design in comparison.designs:
        x, y = design.spread(key), design.interval(measure.key)
        if x is None or y is None:
            continue
        xs.append(x.median)
        style = by_label[design.label]
        bars = {"type": "data", "color": style.colour, "thickness": 1.5}
        figure.add_scatter(
            x=[x.median],
            y=[y.mean],
            error_x=bars
            | {
                "array": [x.high - x.median],
                "arrayminus": [x.median - x.low],
                "visible": x.high > x.low,
            },
            error_y=bars | {"array": [y.half or 0.0], "visible": bool(y.half)},
            name=design.label,
            mode="markers",
            marker={"color": style.colour, "size": 10, "symbol": style.symbol},
            hovertemplate="%{x:,.5~g}, %{y:.4f}<extra>%{fullData.name}</extra>",
        )
    if not xs:
        return None
    if min(xs) > 0 and max(xs) / min(xs) >= LOG_RATIO:
        figure.update_xaxes(type="log")
    text = "One point for each design, with the interval of its loss over seeds."
    return Plot(name, f"Loss against {name}", text, figure)


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
    figure = _figure(unit, first)
    figure.update_xaxes(type="log")
    by_label = styles([*lines_by_axis[first]])
    for label, line in lines_by_axis[first].items():
        mode = (modes or {}).get(label, "lines+markers")
        _add_line(figure, label, by_label[label], line, mode)
    axes = [Choice(axis, *_data([*lines.values()]), axis) for axis, lines in lines_by_axis.items()]
    return Plot(name, heading, text, figure, axes, by_label)


# ---- lines, bands, axes ----


def _line(x: list[float], values: np.ndarray) -> Line:
    """Return the line of values (seeds, points)."""
    half = half_intervals(values.T).tolist() if len(values) > 1 else None
    return Line(x, values.mean(axis=0).tolist(), half)


def _data(lines: Sequence[Line]) -> tuple[list[list[float]], list[list[float]]]:
    """Return x and y of every trace: of each line its band, if there is one, then its mean.

    The outline of a band is its upper side, then its lower side backwards.
    """
    x: list[list[float]] = []
    y: list[list[float]] = []
    for line in lines:
        mean, half = np.array(line.mean), np.array(line.half or [])
        band = [*(mean + half), *(mean - half)[::-1]] if line.half else []
        x += [_rounded((line.x + line.x[::-1])[: len(band)]), _rounded(line.x)]
        y += [_rounded(band), _rounded(line.mean)]
    return x, y


def _add_line(figure: go.Figure, name: str, style: Style, line: Line, mode: str = "lines") -> None:
    """Add the band, then the line, or a marker for a single point."""
    (band_x, line_x), (band_y, line_y) = _data([line])
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
        hovertemplate="%{x:,.5~g}: %{y:.4f}<extra>%{fullData.name}</extra>",
    )


def _figure(y: str, x: str) -> go.Figure:
    """Return an empty figure with x from 0; report.js sets its colours."""
    axis = {"automargin": True, "zeroline": False}
    return go.Figure(
        layout={
            "template": "none",
            "showlegend": False,  # report.html.j2 has the legend
            "margin": {"l": 60, "r": 16, "t": 12, "b": 48},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "hovermode": "closest",
            "xaxis": {"title": {"text": x}, "rangemode": "nonnegative", **axis},
            "yaxis": {"title": {"text": y}, **axis},
        }
    )


def _by_octaves(figure: go.Figure, ticks: Sequence[int]) -> None:
    texts = [*map(str, ticks)]
    figure.update_xaxes(type="log", tickmode="array", tickvals=[*ticks], ticktext=texts)


def _transparent(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{BAND_OPACITY})"


def _rounded(values: Sequence[float]) -> list[float]:
    """Round to six significant digits, to keep the page small."""
    return [float(f"{value:.6g}") for value in values]
