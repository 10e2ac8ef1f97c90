"""The plots of a report, each a function of a comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from minigpt.html import PARTS_OF_OCTAVE, by_octave
from minigpt.report.comparison import LOSS, Comparison
from minigpt.report.designs import Design
from minigpt.report.evaluations import BY_POSITION, LENGTH_CURVES, at_length, by_position, lengths
from minigpt.report.figures import (
    GREY,
    Choice,
    Line,
    Plot,
    add_line,
    by_octaves,
    data_of,
    figure_of,
    line_of,
    plain,
    rounded,
    shortened,
    styles,
)
from minigpt.report.runs import Run
from minigpt.report.statistics import CONFIDENCE, interval, spread

START = 0.1  # of training, whose losses would flatten all that follow
MAX_POINTS = 300  # maximum per curve, to keep the page small
LOG_RATIO = 10  # the x-axis is logarithmic if largest / smallest x reaches this


def plots(
    comparison: Comparison, checkpoint: str | None, measured: Sequence[Plot] = ()
) -> list[Plot]:
    """Return the plots that have data, in the order of the page.

    `measured`: plots of the command, such as the sensitivity to the learning rate.
    """
    drafts = [forest(comparison), learning(comparison, comparison.validation.key)]
    if comparison.one_tokenizer:
        drafts.append(learning(comparison, "train_loss"))
    drafts += [against(comparison, "flops"), *measured]
    if checkpoint is not None:
        drafts += [length_plot(comparison, checkpoint, curve) for curve in LENGTH_CURVES]
        drafts.append(position_plot(comparison, checkpoint))
    drafts += [against(comparison, "parameters"), against(comparison, "time")]
    return [plot for plot in drafts if plot is not None]


# ---- differences ----


def forest(comparison: Comparison) -> Plot | None:
    """Return the plot of paired differences to the best design and to the baseline, by rank."""
    measure, base = comparison.measure, comparison.baseline
    designs = [d for d in comparison.ranked if d.interval(measure.key) is not None]
    if not comparison.pairs or base is None:
        return None
    labels = [design.label for design in designs]
    references = [labels[0]] if comparison.comparable else []
    references = (
        [base.label, *references] if comparison.named_baseline else [*references, base.label]
    )
    by_label = styles(comparison.labels)
    choices = [_differences_to(comparison, one, labels) for one in dict.fromkeys(references)]
    figure = figure_of("", choices[0].title)
    for row, label in enumerate(labels):
        style = by_label[label]
        figure.add_scatter(
            x=choices[0].x[row],
            y=choices[0].y[row],
            name=label,
            mode="lines+markers",
            line={"color": style.colour, "width": 2},
            marker={
                "color": style.colour,
                "symbol": style.symbol,
                "size": [0, 10, 0],
                "opacity": 1,
                "line": {"width": 0},
            },
            hovertemplate=f"%{{x:+.4f}}<extra>{plain(label)}</extra>",
        )
    rows = [-row for row in range(len(labels))]
    names = [plain(shortened(comparison.short[label])) for label in labels]
    figure.update_yaxes(tickmode="array", tickvals=rows, ticktext=names, showgrid=False)
    line = {"zeroline": True, "zerolinewidth": 2, "zerolinecolor": GREY}
    figure.update_xaxes(rangemode="normal", **line)
    text = (
        f"Each design minus the named one with the same seed: left of the line is better. "
        f"Interval: {CONFIDENCE:.0%} t-interval over the shared seeds of this difference alone, "
        f"not corrected for the number of designs; none for one seed."
    )
    heading = f"Differences of the {measure.name}"
    return Plot("forest", heading, text, figure, choices, rows=len(labels))


def _differences_to(comparison: Comparison, reference: str, labels: Sequence[str]) -> Choice:
    """Return the ends and the mean of each row, which is empty without shared seeds."""
    x: list[list[float]] = []
    y: list[list[float]] = []
    for row, label in enumerate(labels):
        difference = comparison.difference(label, reference)
        interval = None if difference is None else difference.interval
        ends = [] if interval is None else [interval.low, interval.mean, interval.high]
        x.append([0.0, 0.0, 0.0] if label == reference else rounded(ends))
        y.append([float(-row)] * len(x[-1]))
    name = comparison.short[reference]
    title = f"minus {plain(shortened(name))}, {comparison.measure.unit}"
    return Choice(f"minus {name}", x, y, title)


# ---- during training ----

NO_LINE = Line([], [], None)
AXES = {"step": "steps", "tokens": "tokens", "FLOPs": "FLOPs", "seconds": "seconds"}  # titles


def learning(comparison: Comparison, key: str) -> Plot | None:
    """Return the plot of a metric during training, by step, tokens, FLOPs and seconds."""
    measure = comparison.validation
    is_training_loss = key == "train_loss"
    name = "training loss" if is_training_loss else measure.name
    unit = LOSS.unit if is_training_loss else measure.unit
    designs = comparison.designs
    means = {d.label: lines for d in designs if (lines := _curves(_averaged(d), key))}
    single = ((d.label, _curves([run], key)) for d in designs for run in d.training)
    training = [(label, lines) for label, lines in single if lines]
    drawn = [*training, *means.items()]
    if all(len(lines["step"].x) < 2 for _, lines in drawn):  # the leaderboard has one value
        return None
    by_label = styles(comparison.labels)
    figure = figure_of(f"{name}, {unit}", AXES["step"])
    for label, lines in training:
        add_line(figure, label, replace(by_label[label], dash="dot"), lines["step"])
    for label, lines in means.items():
        add_line(figure, label, by_label[label], lines["step"])
    has_start = max(len(lines["step"].x) for _, lines in drawn) >= 1 / START
    # A run that trains now has no count of FLOPs yet: it is left out of that axis.
    choices = [
        Choice(axis, *data_of([lines.get(axis, NO_LINE) for _, lines in drawn]), title)
        for axis, title in AXES.items()
        if all(axis in lines for lines in means.values() or (lines for _, lines in drawn))
    ]
    text = (
        "Mean over seeds, up to the last step that all seeds of a design reached; band: interval. "
        "Seconds are medians over seeds."
    )
    if has_start:
        text += f" The axis leaves out the losses of the first {START:.0%} of the steps."
    if is_training_loss:
        text += " Training loss is the mean since the previous logged step."
    if training:
        text += " Dotted: single runs that train now."
    unfinished = [d.label for d in designs if d.label in means and not d.runs]
    if unfinished:
        text += f" Unfinished runs are drawn for {', '.join(unfinished)}."
    heading = f"{name.capitalize()} during training"
    start = START if has_start else 0.0
    return Plot(f"learning_{key}", heading, text, figure, choices, start=start)


def _averaged(design: Design) -> list[Run]:
    """Return the finished runs; without one, those that ended otherwise or were killed."""
    return design.runs or [run for run in design.unfinished if not run.is_running]


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
        axis: line_of(np.median([x[axis] for x in axes], axis=0).tolist(), means)
        for axis in AXES
        if all(axis in x for x in axes)
    }


def _axes(run: Run, steps: list[int]) -> dict[str, Sequence[float]]:
    """Return x of a run at its steps, by the name of the axis."""
    per_step = run.tokens_per_step
    flops, seconds = run.number("flops_per_token"), run.logged("seconds")
    axes: dict[str, Sequence[float]] = {"step": steps}
    if per_step is not None:
        axes["tokens"] = [step * per_step for step in steps]
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
    figure = figure_of(f"{measure.name}, {measure.unit}", "context length, tokens")
    by_octaves(figure, known)
    for design in comparison.designs:
        seeds = {n: at_length(design, checkpoint, n, measure, curve) for n in known}
        intervals = {n: interval([*values.values()]) for n, values in seeds.items() if values}
        if intervals:
            means, halves = zip(*((i.mean, i.half) for i in intervals.values()), strict=True)
            half = [half or 0.0 for half in halves] if any(h is not None for h in halves) else None
            line = Line([*intervals], [*means], half)
            add_line(figure, design.label, by_label[design.label], line, mode="lines+markers")
    if not figure.data:
        return None
    for size in {design.config.get("model.block_size") for design in comparison.designs}:
        if isinstance(size, int):
            figure.add_vline(x=size, line={"dash": "dot", "width": 1, "color": GREY})
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
    figure = figure_of(f"{LOSS.name}, {LOSS.unit}", title)
    by_octaves(figure, [2**n for n in range(max(sizes).bit_length())])
    for label, line in zip(labels, lines[sizes[0]], strict=True):
        add_line(figure, label, by_label[label], line)
    choices = [Choice(f"windows of {size:,}", *data_of(lines[size]), title) for size in sizes]
    text = (
        f"Mean over the tokens at each position, averaged over 1/{PARTS_OF_OCTAVE} octaves of "
        f"positions; band: interval over seeds."
    )
    return Plot("positions", "Loss by position in the window", text, figure, choices)


def _position_line(seeds: list[list[float]]) -> Line:
    if not seeds:
        return NO_LINE
    positions = by_octave(seeds[0])[0]
    return line_of(positions, np.array([by_octave(losses)[1] for losses in seeds]))


COSTS: dict[str, tuple[str, Callable[[Run], float | None]]] = {
    "flops": ("training FLOPs", lambda run: run.training_flops),
    "parameters": ("parameters", lambda run: run.number("parameters.total")),
    "time": ("seconds of training", lambda run: run.number("seconds")),
}


def against(comparison: Comparison, cost: str) -> Plot | None:
    """Return the plot of the measure against a cost of COSTS, with the Pareto line."""
    measure, (what, of_run) = comparison.measure, COSTS[cost]
    by_label = styles(comparison.labels)
    points = {}
    for design in comparison.designs:
        costs, y = [*design.mean_by_seed(of_run).values()], design.interval(measure.key)
        if costs and y is not None:
            points[design.label] = spread(costs), y
    xs = [x.median for x, _ in points.values()]
    if len({*xs}) < 2:
        return None
    best = pareto({label: (x.median, y.mean) for label, (x, y) in points.items()})
    figure = figure_of(f"{measure.name}, {measure.unit}", what)
    figure.add_scatter(
        x=[points[label][0].median for label in best],
        y=[points[label][1].mean for label in best],
        name="Pareto line",
        mode="lines",
        line={"color": GREY, "width": 1.5, "shape": "hv"},
        hoverinfo="skip",
    )
    for label, (x, y) in points.items():
        style = by_label[label]
        bars = {"type": "data", "color": style.colour, "thickness": 1.5}
        half = y.half or 0.0
        figure.add_scatter(
            x=[x.median],
            y=[y.mean],
            error_x=bars
            | {
                "array": [x.high - x.median],
                "arrayminus": [x.median - x.low],
                "visible": x.high > x.low,
            },
            error_y=bars
            | {"array": [half], "arrayminus": [min(half, y.mean)], "visible": half > 0},
            name=label,
            mode="markers",
            marker={
                "color": style.colour,
                "size": 11,
                "symbol": style.symbol if label in best else f"{style.symbol}-open",
            },
            hovertemplate=f"%{{x:,.5~g}}, %{{y:.4f}}<extra>{plain(label)}</extra>",
        )
    if min(xs) > 0 and max(xs) / min(xs) >= LOG_RATIO:
        figure.update_xaxes(type="log", dtick="D2")
    text = (
        f"A point for each design, with the interval of its loss over seeds. Grey: the lowest mean "
        f"for as many {what} or fewer (Pareto line); the designs on it are filled."
    )
    if any(x.high > x.low for x, _ in points.values()):
        text += f" The {what} are medians over seeds, with their range."
    return Plot(cost, f"Loss against {what}", text, figure)


def pareto(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Return the names of the points (cost, loss) that no point of as low a cost equals in loss."""
    best: list[str] = []
    for name in sorted(points, key=lambda name: points[name]):
        if not best or points[name][1] < points[best[-1]][1]:
            best.append(name)
    return best
