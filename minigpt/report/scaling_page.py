"""Tables, plots and notes of the laws that `minigpt report --fit` fits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minigpt.report.designs import word
from minigpt.report.figures import Line, Plot, log_plot
from minigpt.report.page import Extra
from minigpt.report.power_law import DELTA, RESAMPLES, Fit, Point, PowerLaw
from minigpt.report.results import PERCENT
from minigpt.report.scaling import AXES, ENVELOPE, FLOPS, Scaling, Slice, largest_slice
from minigpt.report.statistics import Spread, interval, paired
from minigpt.report.tables import Cell, Column, Table

BUDGETS = 5  # of the compute-optimal line, from the fewest FLOPs of the runs to the most
BEYOND = 10  # one more budget: so many times the most FLOPs
CURVE = 60  # points of a fitted curve
MEASURED, LAW = "measured", "fitted law"


def extra(scaling: Scaling) -> Extra:
    """Return the tables and plots of the fits."""
    tables = [laws(scaling), compute_optimal(scaling), residuals(scaling)]
    plots = [law_plot(scaling), *size_plots(scaling), residual_plot(scaling)]
    return Extra([t for t in tables if t is not None], [p for p in plots if p is not None])


def notes(scaling: Scaling) -> list[str]:
    """Return what the fits leave out, and what limits them, one line each."""
    lines = []
    if scaling.others:
        keys = ", ".join(map(word, scaling.others))
        lines.append(f"The designs differ in {keys} too, and the laws take them as one family.")
    if scaling.left_out:
        reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(scaling.left_out.items()))
        lines.append(f"The laws use no runs that are: {reasons}.")
    lines += [f"{line[0].upper()}{line[1:]}." for line in scaling.missing]
    for law, (fit, _) in scaling.fits.items():
        if len(fit.axes) == 1 and fit.axes != (FLOPS,):
            lines += _rise(law, fit)
        if fit.undetermined:
            what = " and ".join(fit.undetermined)
            lines.append(
                f"{law}: the fit is at its bound in {what}: these runs do not determine it."
            )
    passes = max(point.x["D"] / point.x["U"] for point in scaling.points)
    if passes > 1:
        lines.append(
            f"Runs read the training split up to {passes:,.1f} times. L(N, D) and its "
            f"compute-optimal line take every token as new; a repeated one teaches less, hardly so "
            f"up to about 4 times (Muennighoff et al. 2023). data.fraction varies U, the unique "
            f"tokens."
        )
    return lines


def _rise(law: str, fit: Fit) -> list[str]:
    """Return a note if the loss at the largest value is above the lowest by more than noise."""
    (axis,) = fit.axes
    best = min(fit.points, key=lambda point: point.mean)
    top = max(fit.points, key=lambda point: point.x[axis])
    rise = paired(top.losses, best.losses)
    if rise is None or rise.interval.low <= 0:
        return []
    return [
        f"{law}: the loss is lowest at {axis} = {best.x[axis]:,.0f} ({best.mean:.4f}), not at the "
        f"largest, {top.x[axis]:,.0f} ({top.mean:.4f}), which no power law describes."
    ]


# ---- tables ----


def laws(scaling: Scaling) -> Table:
    """Return the parameters of each law, with intervals, and its largest residual."""
    columns = [
        Column("law"),
        Column("over"),
        Column("designs"),
        Column("irreducible", "E", 3),
        Column("scale", "A", 2),
        Column("exponent", "alpha", 3),
        Column("scale_d", "B", 2),
        Column("exponent_d", "beta", 3),
        Column("worst", "largest residual", 4, "+"),
    ]
    rows: list[list[Cell]] = []
    for law, (fit, part) in scaling.fits.items():
        cells: list[Cell] = [law, _over(fit, part), len(fit.points)]
        cells.append(fit.estimate(lambda law: law.irreducible))
        cells += [cell for axis in fit.axes for cell in _term(fit, axis)]
        cells += [None] * (2 * (2 - len(fit.axes)))
        rows.append([*cells, fit.residual(fit.worst)])
    kept = [p for p in range(len(columns)) if any(row[p] is not None for row in rows)]
    meanings = "; ".join(f"{axis}, {AXES[axis].name}" for axis in AXES)
    note = (
        f"L(x) = E + A / x^alpha, and L(N, D) = E + A / N^alpha + B / D^beta, in "
        f"{scaling.measure.unit} (Hoffmann et al. 2022): {meanings}; C, {ENVELOPE.name}, over the "
        f"designs with the lowest loss for their FLOPs, which favours lucky seeds. Fitted to means "
        f"over seeds: least Huber loss ({DELTA:g}) of log residuals. E holds what the fixed axes "
        f"leave. In parentheses: {PERCENT} percentile intervals of {RESAMPLES} bootstrap samples "
        f"of the seeds of each design; they hold the noise of seeds, not an error of the formula, "
        f"which the residuals (measured minus fitted) show."
    )
    if not any(fit.samples for fit, _ in scaling.fits.values()):
        note += " One seed gives no interval."
    columns, rows = [columns[p] for p in kept], [[row[p] for p in kept] for row in rows]
    return Table("laws", "Scaling laws", columns, rows, note)


def _term(fit: Fit, axis: str) -> list[Spread]:
    return [fit.estimate(lambda law, at=at: law.terms[axis][at]) for at in (0, 1)]


def _over(fit: Fit, part: Slice) -> str:
    ranges = []
    for axis in fit.axes:
        values = [point.x[axis] for point in part.points]
        ranges.append(f"{axis} {_short(min(values))} to {_short(max(values))}")
    ranges += [f"{axis} = {_short(value)}" for axis, value in part.fixed.items()]
    return ", ".join(ranges)


def compute_optimal(scaling: Scaling) -> Table | None:
    """Return N and D of the lowest loss by FLOPs, from L(N, D); None without it."""
    fit = scaling.joint
    if fit is None:
        return None
    per_pair = flops_per_pair(fit.points)
    budgets = [point.x[FLOPS] for point in fit.points]
    columns = [
        Column("flops", "C, FLOPs"),
        Column("n", "N, parameters", 0),
        Column("d", "D, tokens", 0),
        Column("tokens_per_parameter", "D / N", 1),
        Column("loss", f"loss, {scaling.measure.unit}"),
        Column("within", "within the runs"),
    ]
    rows: list[list[Cell]] = []
    for flops in [*np.geomspace(min(budgets), max(budgets), BUDGETS), BEYOND * max(budgets)]:

        def pair(law: PowerLaw, flops: float = flops) -> tuple[float, float]:
            return law.optimum(flops, per_pair)

        def loss(law: PowerLaw, flops: float = flops) -> float:
            return law.loss(dict(zip("ND", law.optimum(flops, per_pair), strict=True)))

        n, d = pair(fit.law)
        cells = [
            fit.estimate(lambda law, pair=pair: pair(law)[0]),
            fit.estimate(lambda law, pair=pair: pair(law)[1]),
            fit.estimate(lambda law, pair=pair: pair(law)[1] / pair(law)[0]),
            fit.estimate(loss),
        ]
        rows.append([f"{flops:.2e}", *cells, _within(fit.points, {"N": n, "D": d})])
    a, b = (fit.estimate(lambda law, at=at: law.optimal_exponents[at]) for at in (0, 1))
    factors = [point.x[FLOPS] / point.x["N"] / point.x["D"] for point in fit.points]
    note = (
        f"N and D of the lowest L(N, D) for C = {per_pair:.1f} N D, the median of these runs "
        f"({min(factors):.1f} to {max(factors):.1f}: attention and the output layer count too). "
        f"N grows as C^{_exponent(a)}, D as C^{_exponent(b)}. Outside of the runs it is an "
        f"extrapolation."
    )
    return Table("compute_optimal", "Compute-optimal size and length", columns, rows, note)


def flops_per_pair(points: Sequence[Point]) -> float:
    """Return the median FLOPs per parameter and token."""
    return float(np.median([point.x[FLOPS] / point.x["N"] / point.x["D"] for point in points]))


def _within(points: Sequence[Point], at: dict[str, float]) -> str:
    """Return yes, or the axes in which a value is beyond all points."""
    outside = []
    for axis, value in at.items():
        values = [point.x[axis] for point in points]
        if not min(values) <= value <= max(values):
            outside.append(axis)
    return f"no: {' and '.join(outside)}" if outside else "yes"


def _exponent(spread: Spread) -> str:
    interval = f" ({spread.low:.2f} to {spread.high:.2f})" if spread.n > 1 else ""
    return f"{spread.median:.2f}{interval}"


def residuals(scaling: Scaling) -> Table:
    """Return the measured and the fitted loss of each design, by law, the worst first."""
    columns = [
        *map(Column, ("law", "design", "N", "D", "U")),
        Column("measured"),
        Column("fitted"),
        Column("residual", sign="+"),
    ]
    rows: list[list[Cell]] = []
    for law, (fit, _) in scaling.fits.items():
        for point in sorted(fit.points, key=lambda p: -abs(fit.residual(p))):
            values: list[Cell] = [int(point.x[axis]) for axis in AXES]
            measured = interval([*point.losses.values()])
            fitted = [fit.law.loss(point.x), fit.residual(point)]
            rows.append([law, point.label, *values, measured, *fitted])
    note = f"In {scaling.measure.unit}, the largest residual of each law first."
    return Table("residuals", "Residuals", columns, rows, note)


# ---- plots ----


def law_plot(scaling: Scaling) -> Plot | None:
    """Return the plot of measured losses and fitted curves, a button for each law of one axis."""
    by_axis: dict[str, dict[str, Line]] = {}
    for fit, part in scaling.fits.values():
        axis, *others = fit.axes
        if others:
            continue
        at = "".join(f", {other} = {_short(value)}" for other, value in part.fixed.items())
        title = f"{axis}, {(ENVELOPE if axis == FLOPS else AXES[axis]).name}{at}"
        xs = [point.x[axis] for point in fit.points]
        curve = np.geomspace(min(xs), max(xs), CURVE).tolist()
        fitted = Line(curve, [fit.law.loss({axis: x}) for x in curve], None)
        by_axis[title] = {MEASURED: _measured(xs, fit.points), LAW: fitted}
    if not by_axis:
        return None
    text = "Mean over seeds and the fitted law; band: interval over seeds."
    unit = f"{scaling.measure.name}, {scaling.measure.unit}"
    modes = {MEASURED: "markers", LAW: "lines"}
    return log_plot("laws", "Scaling laws", text, unit, by_axis, modes)


def size_plots(scaling: Scaling) -> list[Plot]:
    """Return the plots of the loss by N: a line for each D at one U, and for each U at one D."""
    drafts = []
    for axis, fixed in (("D", "U"), ("U", "D")):
        part = largest_slice(scaling.points, ("N", axis))
        lines: dict[str, Line] = {}
        for value in sorted({point.x[axis] for point in part.points}):
            some = sorted((p for p in part.points if p.x[axis] == value), key=lambda p: p.x["N"])
            lines[f"{axis} = {_short(value)}"] = _measured([p.x["N"] for p in some], some)
        if len(lines) < 2 or all(len(line.x) < 2 for line in lines.values()):
            continue
        text = (
            f"A line for each number of {AXES[axis].name}, at {fixed} = "
            f"{_short(part.fixed[fixed])} {AXES[fixed].name}. Band: interval over seeds. More "
            f"parameters help as far as a line falls."
        )
        unit = f"{scaling.measure.name}, {scaling.measure.unit}"
        by_axis = {f"N, {AXES['N'].name}": lines}
        heading = f"Loss by parameters and {AXES[axis].name}"
        drafts.append(log_plot(f"sizes_{axis.lower()}", heading, text, unit, by_axis))
    return drafts


def residual_plot(scaling: Scaling) -> Plot:
    """Return the plot of measured against fitted losses, of every law."""
    lines = {
        law: _measured([fit.law.loss(point.x) for point in fit.points], fit.points)
        for law, (fit, _) in scaling.fits.items()
    }
    ends = [x for line in lines.values() for x in line.x]
    exact = [min(ends), max(ends)]
    lines["measured = fitted"] = Line(exact, exact, None)
    text = "A point for each design. Points off the line are what the law does not describe."
    unit = f"measured, {scaling.measure.unit}"
    modes = dict.fromkeys(scaling.fits, "markers") | {"measured = fitted": "lines"}
    by_axis = {f"fitted, {scaling.measure.unit}": lines}
    return log_plot("residuals", "Measured against fitted", text, unit, by_axis, modes)


def _measured(x: Sequence[float], points: Sequence[Point]) -> Line:
    """Return the means of points in ascending order of x, with their intervals if all have one."""
    order = sorted(range(len(points)), key=lambda place: x[place])
    intervals = [interval([*points[place].losses.values()]) for place in order]
    halves = [i.half for i in intervals if i.half is not None]
    band = halves if len(halves) == len(intervals) else None
    return Line([x[place] for place in order], [i.mean for i in intervals], band)


def _short(value: float) -> str:
    """Return a count with thousands separators, or in powers of ten if it is long."""
    return f"{value:,.0f}" if value < 1e9 else f"{value:.2e}"
