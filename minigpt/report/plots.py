"""The plots of a report: a line for each design, with its confidence interval over seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import plotly.graph_objects as go

from minigpt.html import PARTS_OF_OCTAVE, by_octave
from minigpt.report.comparison import LOSS, Comparison
from minigpt.report.designs import Design
from minigpt.report.evaluations import BY_POSITION, Evaluations, at_length, by_position, lengths
from minigpt.report.runs import Run
from minigpt.report.statistics import Interval, half_intervals, interval

# Contrast of 3 or more with white and with black. Designs cycle through colours, then dashes.
COLOURS = ("#2f7fd6", "#d9700f", "#2a9d4a", "#dc4450", "#9467d8", "#1597a5", "#8f8a1c")
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "square", "diamond", "cross", "x", "triangle-up", "star")
BAND_OPACITY = 0.18
MAX_POINTS = 300  # of a curve, to keep the page small
LOG_RATIO = 10  # of largest to smallest x, from which the axis is logarithmic


@dataclass(frozen=True)
class Style:
    """The style of a design in every plot."""

    colour: str
    dash: str
    symbol: str


@dataclass(frozen=True)
class Choice:
    """Data of a button above a plot: x and y of each trace, and the title of the x-axis."""

    name: str
    x: list[Any]
    y: list[Any]
    title: str


@dataclass(frozen=True)
class Plot:
    """A figure under a heading. `choices`: buttons that switch its data; the first is drawn."""

    name: str
    heading: str
    text: str
    figure: go.Figure
    choices: list[Choice] = field(default_factory=list)

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
    seeds: int


def styles(designs: Sequence[Design]) -> dict[str, Style]:
    """Return a style for each design, by label."""
    n = len(COLOURS)
    return {
        design.label: Style(
            COLOURS[index % n], DASHES[index // n % len(DASHES)], SYMBOLS[index % len(SYMBOLS)]
        )
        for index, design in enumerate(designs)
    }


def plots(comparison: Comparison, evaluations: Evaluations | None) -> list[Plot]:
    """Return the plots that have data, in the order of the page."""
    drafts = [learning(comparison, comparison.measure.key)]
    if comparison.one_tokenizer:
        drafts.append(learning(comparison, "train_loss"))
    if evaluations is not None:
        drafts += [length_plot(comparison, evaluations), position_plot(comparison, evaluations)]
    drafts += [
        against(comparison, "parameters", "parameters.total", "parameters"),
        against(comparison, "time", "seconds", "seconds of training"),
    ]
    return [plot for plot in drafts if plot is not None]


# ---- during training ----

# By the name of the button: the title of the x-axis, and x of a run at its steps.
AXES: dict[str, tuple[str, Callable[[Run, list[int]], list[float] | None]]] = {
    "step": ("steps", lambda run, steps: [*map(float, steps)]),
    "tokens": ("tokens", lambda run, steps: _scaled(steps, _tokens_per_step(run))),
    "FLOPs": ("FLOPs", lambda run, steps: _scaled(steps, _flops_per_step(run))),
    "seconds": ("seconds", lambda run, steps: _seconds(run, steps)),
}


def learning(comparison: Comparison, key: str) -> Plot | None:
    """Return the plot of a metric during training, by step, tokens, FLOPs and seconds."""
    measure = comparison.measure
    is_training_loss = key == "train_loss"
    name = "training loss" if is_training_loss else measure.name
    unit = LOSS.unit if is_training_loss else measure.unit
    known = [
        (design, logged)
        for design in comparison.designs
        if (logged := _logged(design.runs or design.unfinished, key)) is not None
    ]
    if all(len(logged.steps) < 2 for _, logged in known):  # one value, which the leaderboard has
        return None
    lines = _lines_by_axis([logged for _, logged in known])
    by_label = styles(comparison.designs)
    figure = _figure(f"{name}, {unit}", AXES["step"][0])
    for (design, _), line in zip(known, lines["step"], strict=True):
        _add_line(figure, design.label, by_label[design.label], line)
    choices = [Choice(axis, *_data(lines[axis]), AXES[axis][0]) for axis in lines]
    text = (
        "Mean over seeds, up to the last step that all seeds of a design reached; band: interval."
    )
    if is_training_loss:
        text += " Training loss is the mean since the previous logged step."
    unfinished = [design.label for design, _ in known if not design.runs]
    if unfinished:
        text += f" Unfinished runs are drawn for {', '.join(unfinished)}."
    heading = f"{name.capitalize()} during training"
    return Plot(f"learning_{key}", heading, text, figure, choices)


def _lines_by_axis(known: list[Logged]) -> dict[str, list[Line]]:
    """Return a line for each design by axis; an axis that a run has no values for is left out."""
    by_axis: dict[str, list[Line]] = {}
    for axis, (_, at) in AXES.items():
        for logged in known:
            x = [values for run in logged.runs if (values := at(run, logged.steps)) is not None]
            if len(x) == len(logged.runs):
                line = _line(np.mean(x, axis=0).tolist(), logged.by_seed)
                by_axis.setdefault(axis, []).append(line)
    return {axis: lines for axis, lines in by_axis.items() if len(lines) == len(known)}


@dataclass(frozen=True)
class Logged:
    """A metric at the steps at which all runs logged it. `values`: (runs, steps)."""

    runs: list[Run]
    steps: list[int]
    values: np.ndarray

    @property
    def by_seed(self) -> np.ndarray:
        """The mean over the runs of each seed, (seeds, steps)."""
        rows: dict[Any, list[np.ndarray]] = {}
        for run, row in zip(self.runs, self.values, strict=True):
            rows.setdefault(run.path if run.seed is None else run.seed, []).append(row)
        return np.array([np.mean(same, axis=0) for same in rows.values()])


def _logged(runs: Sequence[Run], key: str) -> Logged | None:
    """Return a metric at MAX_POINTS steps or fewer, None if the runs share no step."""
    known = [(run, logged) for run in runs if (logged := run.logged(key))]
    if not known:
        return None
    steps = sorted(set.intersection(*({*logged} for _, logged in known)))
    steps = steps[::-1][:: -(-len(steps) // MAX_POINTS) or 1][::-1]  # keeps the last
    values = np.array([[logged[step] for step in steps] for _, logged in known])
    return Logged([run for run, _ in known], steps, values) if steps else None


def _tokens_per_step(run: Run) -> float | None:
    batch, block = run.config.get("trainer.batch_size"), run.config.get("model.block_size")
    return batch * block if isinstance(batch, int) and isinstance(block, int) else None


def _flops_per_step(run: Run) -> float | None:
    tokens, flops = _tokens_per_step(run), run.number("flops_per_token")
    return None if tokens is None or flops is None else tokens * flops


def _scaled(steps: list[int], factor: float | None) -> list[float] | None:
    return None if factor is None else [step * factor for step in steps]


def _seconds(run: Run, steps: list[int]) -> list[float] | None:
    seconds = run.logged("seconds")
    return [seconds[step] for step in steps] if all(step in seconds for step in steps) else None


# ---- after training ----


def length_plot(comparison: Comparison, evaluations: Evaluations) -> Plot | None:
    """Return the plot of the measure by context length."""
    measure = comparison.measure
    known = lengths(comparison.designs, evaluations)
    by_label = styles(comparison.designs)
    figure = _figure(f"{measure.name}, {measure.unit}", "context length, tokens")
    _by_octaves(figure, known)
    for design in comparison.designs:
        seeds = {n: at_length(design, evaluations, n, measure) for n in known}
        shared = [n for n in known if seeds[n]]
        intervals = [interval([*seeds[n].values()]) for n in shared]
        if shared:
            halves = [i.half or 0.0 for i in intervals]
            several = any(i.half is not None for i in intervals)
            line = Line(
                [*map(float, shared)],
                [i.mean for i in intervals],
                halves if several else None,
                max(i.n for i in intervals),
            )
            _add_line(figure, design.label, by_label[design.label], line, mode="lines+markers")
    if not figure.data:
        return None
    _mark_block_size(figure, comparison.designs)
    text = (
        f"One full pass for each length, over windows that do not overlap; weights: "
        f"{evaluations.checkpoint}. A line ends where its scheme is undefined. Band: interval over "
        f"seeds; dotted line: length in training."
    )
    return Plot("lengths", "Loss by context length", text, figure)


def position_plot(comparison: Comparison, evaluations: Evaluations) -> Plot | None:
    """Return the plot of the loss by position in the window, with a button for each length."""
    if not comparison.one_tokenizer:
        return None  # positions count tokens, which differ
    designs = comparison.designs
    by_label = styles(designs)
    sizes = lengths(designs, evaluations, BY_POSITION)
    trained = {design.config.get("model.block_size") for design in designs}
    sizes.sort(key=lambda n: (n not in trained, n))  # the length in training comes first
    losses = {size: {d.label: by_position(d, evaluations, size) for d in designs} for size in sizes}
    labels = [d.label for d in designs if any(losses[size][d.label] for size in sizes)]
    if not labels:
        return None

    def lines(size: int) -> list[Line]:
        return [_position_line(losses[size][label]) for label in labels]

    figure = _figure(f"{LOSS.name}, {LOSS.unit}", "position in the window")
    _by_octaves(figure, [2**n for n in range(max(sizes).bit_length())])
    for label, line in zip(labels, lines(sizes[0]), strict=True):
        _add_line(figure, label, by_label[label], line)
    choices = [
        Choice(f"windows of {size:,}", *_data(lines(size)), "position in the window")
        for size in sizes
    ]
    text = (
        f"Mean over the tokens at each position, averaged over 1/{PARTS_OF_OCTAVE} octaves of "
        f"positions; band: interval over seeds."
    )
    return Plot("positions", "Loss by position in the window", text, figure, choices)


def _position_line(seeds: list[list[float]]) -> Line:
    if not seeds:
        return Line([], [], [], 0)
    positions = by_octave(seeds[0])[0]
    return _line(positions, np.array([by_octave(losses)[1] for losses in seeds]))


def against(comparison: Comparison, name: str, key: str, title: str) -> Plot | None:
    """Return the plot of the measure against another result, a point for each design."""
    measure = comparison.measure
    by_label = styles(comparison.designs)
    figure = _figure(f"{measure.name}, {measure.unit}", title)
    xs: list[float] = []
    for design in comparison.designs:
        x, y = design.interval(key), design.interval(measure.key)
        if x is None or y is None:
            continue
        xs.append(x.mean)
        style = by_label[design.label]
        figure.add_scatter(
            x=[x.mean],
            y=[y.mean],
            error_x=_error(x, style),
            error_y=_error(y, style),
            name=design.label,
            legendgroup=design.label,
            mode="markers",
            marker={"color": style.colour, "size": 10, "symbol": style.symbol},
            hovertemplate="%{x:,.5~g}, %{y:.4f}<extra>%{fullData.name}</extra>",
        )
    if not xs:
        return None
    if min(xs) > 0 and max(xs) / min(xs) >= LOG_RATIO:
        figure.update_xaxes(type="log")
    text = "One point for each design, with intervals over seeds."
    return Plot(name, f"Loss against {name}", text, figure)


def _error(interval: Interval, style: Style) -> dict[str, Any]:
    return {
        "type": "data",
        "array": [interval.half or 0.0],
        "visible": bool(interval.half),
        "color": style.colour,
        "thickness": 1.5,
    }


# ---- lines, bands, axes ----


def _line(x: list[float], values: np.ndarray) -> Line:
    """Return the line of values (seeds, points)."""
    half = half_intervals(values.T).tolist() if len(values) > 1 else None
    return Line(x, values.mean(axis=0).tolist(), half, len(values))


def _band(line: Line) -> tuple[list[float], list[float]]:
    """Return the outline of the interval: its upper side, then its lower side backwards."""
    if line.half is None:
        return [], []
    upper = [m + h for m, h in zip(line.mean, line.half, strict=True)]
    lower = [m - h for m, h in zip(line.mean, line.half, strict=True)]
    return line.x + line.x[::-1], upper + lower[::-1]


def _data(lines: Any) -> tuple[list[Any], list[Any]]:
    """Return x and y of every trace, in the order in which `_add_line` adds them."""
    x: list[Any] = []
    y: list[Any] = []
    for line in lines:
        outline = _band(line)
        x += [_rounded(outline[0]), _rounded(line.x)]
        y += [_rounded(outline[1]), _rounded(line.mean)]
    return x, y


def _add_line(figure: go.Figure, name: str, style: Style, line: Line, mode: str = "lines") -> None:
    """Add the band, then the line, or a marker for a single point."""
    (band_x, line_x), (band_y, line_y) = _data([line])
    figure.add_scatter(
        x=band_x,
        y=band_y,
        name=name,
        legendgroup=name,
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
        legendgroup=name,
        mode=mode if len(line.x) > 1 else "markers",
        line={"color": style.colour, "dash": style.dash, "width": 2},
        marker={"color": style.colour, "size": 7, "symbol": style.symbol},
        hovertemplate="%{x:,.5~g}: %{y:.4f}<extra>%{fullData.name}</extra>",
    )


def _figure(y: str, x: str) -> go.Figure:
    """Return an empty figure; report.js sets its colours."""
    return go.Figure(
        layout={
            "template": "none",
            "showlegend": False,  # report.html.j2 has the legend
            "margin": {"l": 60, "r": 16, "t": 12, "b": 48},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "hovermode": "closest",
            "xaxis": {"title": {"text": x}, "automargin": True, "zeroline": False},
            "yaxis": {"title": {"text": y}, "automargin": True, "zeroline": False},
        }
    )


def _by_octaves(figure: go.Figure, ticks: Sequence[int]) -> None:
    figure.update_xaxes(
        type="log", tickmode="array", tickvals=[*ticks], ticktext=[str(tick) for tick in ticks]
    )


def _mark_block_size(figure: go.Figure, designs: Sequence[Design]) -> None:
    for size in {design.config.get("model.block_size") for design in designs}:
        if isinstance(size, int):
            figure.add_vline(x=size, line={"dash": "dot", "width": 1, "color": "#888888"})


def _transparent(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{BAND_OPACITY})"


def _rounded(values: Sequence[float]) -> list[float]:
    """Round to six significant digits, to keep the page small."""
    return [float(f"{value:.6g}") for value in values]
