"""The plots of a report: designs as lines with bands over seeds, in colour and dash."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import plotly.graph_objects as go

from minigpt.html import PARTS_OF_OCTAVE, by_octave
from minigpt.report.comparison import LOSS, Comparison
from minigpt.report.designs import Design
from minigpt.report.evaluations import Evaluations, at_length, by_position, lengths, windows
from minigpt.report.runs import Run
from minigpt.report.statistics import Interval, half_intervals, interval

# Each has a contrast of 3 or more with a white and with a black page, and each dash with each
# colour makes one more style: neighbours differ in colour, the eighth design in dash too.
COLOURS = ("#2f7fd6", "#d9700f", "#2a9d4a", "#dc4450", "#9467d8", "#1597a5", "#8f8a1c")
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "square", "diamond", "cross", "x", "triangle-up", "star")
BAND_OPACITY = 0.18
MOST_POINTS = 300  # of a curve: more make a page heavy and look the same
WIDE = 10  # a ratio from which on an axis is logarithmic


@dataclass(frozen=True)
class Style:
    """How a design is drawn, in every plot."""

    colour: str
    dash: str
    symbol: str


@dataclass(frozen=True)
class Choice:
    """Other data for a plot: x and y of each trace, and the title of the x-axis."""

    name: str
    x: list[Any]
    y: list[Any]
    title: str


@dataclass(frozen=True)
class Plot:
    """A figure under a heading, `choices` among which a reader may switch; the first is drawn."""

    name: str
    heading: str
    text: str
    figure: go.Figure
    choices: list[Choice] = field(default_factory=list)

    @property
    def labels(self) -> list[str]:
        """The designs that are drawn."""
        return [trace["name"] for trace in self.figure.to_plotly_json()["data"]]


@dataclass(frozen=True)
class Line:
    """A mean over seeds along x, with half of the interval at each point; None for one seed."""

    x: list[float]
    mean: list[float]
    half: list[float] | None
    seeds: int


def styles(designs: Sequence[Design]) -> dict[str, Style]:
    """A style for each design, by label."""
    n = len(COLOURS)
    return {
        design.label: Style(
            COLOURS[place % n], DASHES[place // n % len(DASHES)], SYMBOLS[place % len(SYMBOLS)]
        )
        for place, design in enumerate(designs)
    }


def plots(comparison: Comparison, evaluations: Evaluations | None) -> list[Plot]:
    """Every plot that has something to show, in the order of the page."""
    made = [learning(comparison, comparison.measure.key)]
    if comparison.one_tokenizer:
        made.append(learning(comparison, "train_loss"))
    if evaluations is not None:
        made += [length_plot(comparison, evaluations), position_plot(comparison, evaluations)]
    made += [
        against(comparison, "parameters", "parameters.total", "parameters"),
        against(comparison, "time", "seconds", "seconds of training"),
    ]
    return [plot for plot in made if plot is not None]


# ---- while training ----

# What a step is worth, by the name of the button: of a run and its steps.
AXES: dict[str, tuple[str, Callable[[Run, list[int]], list[float] | None]]] = {
    "step": ("steps", lambda run, steps: [*map(float, steps)]),
    "tokens": ("tokens", lambda run, steps: _scaled(steps, _tokens_a_step(run))),
    "FLOPs": ("FLOPs", lambda run, steps: _scaled(steps, _flops_a_step(run))),
    "seconds": ("seconds", lambda run, steps: _seconds(run, steps)),
}


def learning(comparison: Comparison, key: str) -> Plot | None:
    """A metric while training, by step, tokens, FLOPs and seconds."""
    measure = comparison.measure
    training = key == "train_loss"
    name = "training loss" if training else measure.name
    unit = LOSS.unit if training else measure.unit
    known = [
        (design, logged)
        for design in comparison.designs
        if (logged := _logged(design.runs or design.unfinished, key)) is not None
    ]
    if all(len(logged.steps) < 2 for _, logged in known):  # the leaderboard has it
        return None
    drawn = styles(comparison.designs)
    found: dict[str, list[tuple[Design, Line]]] = {}
    for axis, (_, at) in AXES.items():
        for design, logged in known:
            places = [x for run in logged.runs if (x := at(run, logged.steps)) is not None]
            if len(places) == len(logged.runs):
                line = _line(np.mean(places, axis=0).tolist(), logged.by_seed)
                found.setdefault(axis, []).append((design, line))
    # A button needs the same traces in every design.
    axes = {axis: lines for axis, lines in found.items() if len(lines) == len(known)}
    figure = _figure(f"{name}, {unit}", AXES["step"][0])
    for design, line in axes["step"]:
        _add_line(figure, design.label, drawn[design.label], line)
    choices = [
        Choice(axis, *_data(line for _, line in lines), AXES[axis][0])
        for axis, lines in axes.items()
    ]
    running = [design.label for design, _ in known if not design.runs]
    text = (
        f"Mean over seeds, as far as all seeds of a design got; the band is the interval. "
        f"{'Training loss is the mean since the line before.' if training else ''}"
    ).strip()
    if running:
        text += f" No run finished yet, so those that did not are drawn: {', '.join(running)}."
    heading = f"{name.capitalize()} while training"
    return Plot(f"learning_{key}", heading, text, figure, choices)


@dataclass(frozen=True)
class Logged:
    """A metric of runs at the steps at which all of them logged it; `values` are (runs, steps)."""

    runs: list[Run]
    steps: list[int]
    values: np.ndarray

    @property
    def by_seed(self) -> np.ndarray:
        """(seeds, steps): the mean over the runs of each seed, of which a group has several."""
        rows: dict[Any, list[np.ndarray]] = {}
        for run, row in zip(self.runs, self.values, strict=True):
            rows.setdefault(run.path if run.seed is None else run.seed, []).append(row)
        return np.array([np.mean(same, axis=0) for same in rows.values()])


def _logged(runs: Sequence[Run], key: str) -> Logged | None:
    """What runs logged, at MOST_POINTS steps or fewer; None where they share no step."""
    found = [(run, logged) for run in runs if (logged := run.logged(key))]
    if not found:
        return None
    steps = sorted(set.intersection(*({*logged} for _, logged in found)))
    steps = steps[::-1][:: -(-len(steps) // MOST_POINTS) or 1][::-1]  # the last is always there
    values = np.array([[logged[step] for step in steps] for _, logged in found])
    return Logged([run for run, _ in found], steps, values) if steps else None


def _tokens_a_step(run: Run) -> float | None:
    batch, block = run.config.get("trainer.batch_size"), run.config.get("model.block_size")
    return batch * block if isinstance(batch, int) and isinstance(block, int) else None


def _flops_a_step(run: Run) -> float | None:
    tokens, flops = _tokens_a_step(run), run.number("flops_per_token")
    return None if tokens is None or flops is None else tokens * flops


def _scaled(steps: list[int], factor: float | None) -> list[float] | None:
    return None if factor is None else [step * factor for step in steps]


def _seconds(run: Run, steps: list[int]) -> list[float] | None:
    seconds = run.logged("seconds")
    return [seconds[step] for step in steps] if all(step in seconds for step in steps) else None


# ---- after training ----


def length_plot(comparison: Comparison, evaluations: Evaluations) -> Plot | None:
    """The measure against the length of the context."""
    measure = comparison.measure
    known = lengths(comparison.designs, evaluations)
    drawn = styles(comparison.designs)
    figure = _figure(f"{measure.name}, {measure.unit}", "tokens in the context")
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
            _add_line(figure, design.label, drawn[design.label], line, mode="lines+markers")
    if not figure.data:
        return None
    _mark_block_size(figure, comparison.designs)
    text = (
        f"One full pass for each length, in windows that do not overlap; weights: "
        f"{evaluations.checkpoint}. A line ends where its scheme is undefined. The band is the "
        f"interval over seeds, the dotted line the length in training."
    )
    return Plot("lengths", "Loss by length of the context", text, figure)


def position_plot(comparison: Comparison, evaluations: Evaluations) -> Plot | None:
    """The loss at each position in windows, by the windows' length."""
    if not comparison.one_tokenizer:
        return None  # a position is of a token
    designs = comparison.designs
    drawn = styles(designs)
    sizes = windows(designs, evaluations)
    trained = {design.config.get("model.block_size") for design in designs}
    sizes.sort(key=lambda n: (n not in trained, n))  # the length in training comes first
    found = {size: {d.label: by_position(d, evaluations, size) for d in designs} for size in sizes}
    labels = [d.label for d in designs if any(found[size][d.label] for size in sizes)]
    if not labels:
        return None

    def lines(size: int) -> list[Line]:
        return [_position_line(found[size][label]) for label in labels]

    figure = _figure(f"{LOSS.name}, {LOSS.unit}", "position in the window")
    _by_octaves(figure, [2**n for n in range(max(sizes).bit_length())])
    for label, line in zip(labels, lines(sizes[0]), strict=True):
        _add_line(figure, label, drawn[label], line)
    choices = [
        Choice(f"windows of {size:,}", *_data(lines(size)), "position in the window")
        for size in sizes
    ]
    text = (
        f"Averaged over the tokens at each position and drawn as the mean of each "
        f"1/{PARTS_OF_OCTAVE} octave of positions; the band is the interval over seeds."
    )
    return Plot("positions", "Loss by position in the window", text, figure, choices)


def _position_line(seeds: list[list[float]]) -> Line:
    if not seeds:
        return Line([], [], [], 0)
    places = by_octave(seeds[0])[0]
    return _line(places, np.array([by_octave(losses)[1] for losses in seeds]))


def against(comparison: Comparison, name: str, key: str, title: str) -> Plot | None:
    """The measure against another number of the result, a point with intervals a design."""
    measure = comparison.measure
    drawn = styles(comparison.designs)
    figure = _figure(f"{measure.name}, {measure.unit}", title)
    xs: list[float] = []
    for design in comparison.designs:
        x, y = design.interval(key), design.interval(measure.key)
        if x is None or y is None:
            continue
        xs.append(x.mean)
        style = drawn[design.label]
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
    if min(xs) > 0 and max(xs) / min(xs) >= WIDE:
        figure.update_xaxes(type="log")
    text = "A point a design, with the intervals over seeds."
    return Plot(name, f"Loss against {name}", text, figure)


def _error(found: Interval, style: Style) -> dict[str, Any]:
    return {
        "type": "data",
        "array": [found.half or 0.0],
        "visible": bool(found.half),
        "color": style.colour,
        "thickness": 1.5,
    }


# ---- lines, bands, axes ----


def _line(x: list[float], values: np.ndarray) -> Line:
    """A line of values, which are (seeds, points)."""
    half = half_intervals(values.T).tolist() if len(values) > 1 else None
    return Line(x, values.mean(axis=0).tolist(), half, len(values))


def _band(line: Line) -> tuple[list[float], list[float]]:
    """The outline of a band: its upper side, then its lower one backwards."""
    if line.half is None:
        return [], []
    upper = [m + h for m, h in zip(line.mean, line.half, strict=True)]
    lower = [m - h for m, h in zip(line.mean, line.half, strict=True)]
    return line.x + line.x[::-1], upper + lower[::-1]


def _data(lines: Any) -> tuple[list[Any], list[Any]]:
    """x and y of every trace, in the order in which `_add_line` adds them."""
    x: list[Any] = []
    y: list[Any] = []
    for line in lines:
        outline = _band(line)
        x += [_rounded(outline[0]), _rounded(line.x)]
        y += [_rounded(outline[1]), _rounded(line.mean)]
    return x, y


def _add_line(figure: go.Figure, name: str, style: Style, line: Line, mode: str = "lines") -> None:
    """Add the band, then the line; where it is one point, a mark."""
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
    """An empty figure without colours of its own: those of the page come with its theme."""
    return go.Figure(
        layout={
            "template": "none",
            "showlegend": False,  # the page has one for all plots
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
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red},{green},{blue},{BAND_OPACITY})"


def _rounded(values: Sequence[float]) -> list[float]:
    """Six digits: what a screen shows, at half the bytes."""
    return [float(f"{value:.6g}") for value in values]
