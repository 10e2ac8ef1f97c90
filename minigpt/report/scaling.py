"""`minigpt report --fit`: laws of the loss in parameters N, tokens D, unique tokens U and FLOPs C.

Each law is fitted where all else is equal: L(N) to the runs of one D and one U. A law of the form
E + A / N^alpha has 3 parameters, so it needs 4 values of N.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from minigpt.console import Progress
from minigpt.errors import UserError
from minigpt.report.comparison import Comparison, Measure, count
from minigpt.report.designs import Design, choices, varying
from minigpt.report.power_law import Fit, Point, fit_law
from minigpt.report.runs import Run

VALUES = 4  # of each axis of a law
POINTS = {1: 4, 2: 6}  # of a law by its number of axes: one more than it has parameters
APART = 1.1  # the ratio of two values that count as different


@dataclass(frozen=True)
class Axis:
    """A quantity that runs vary. `keys`: the options that vary it."""

    name: str
    keys: str


AXES = {
    "N": Axis("parameters without embeddings", "model.n_embd or model.n_layer"),
    "D": Axis("training tokens", "trainer.max_steps or trainer.batch_size"),
    "U": Axis("tokens of the training split", "data.fraction"),
}
# Keys that set N, D or U.
SIZES = ("model.n_embd", "model.n_layer", "model.n_head", "model.n_kv_head", "data.fraction")
SIZES += ("trainer.max_steps", "trainer.batch_size")
FLOPS = "C"
ENVELOPE = Axis("training FLOPs", f"{AXES['N'].keys}, and {AXES['D'].keys}")
LAWS = (("N",), ("D",), ("U",), (FLOPS,), ("N", "D"))


@dataclass(frozen=True)
class Slice:
    """Points that agree in the axes `fixed`, with the values there."""

    points: Sequence[Point]
    fixed: dict[str, float]


@dataclass(frozen=True)
class Scaling:
    """Laws by name, such as `L(N, D)`, each with the slice it is fitted to.

    `points`: of every design. `missing`: a line for each law that the runs do not determine.
    `left_out`: the number of runs that are not used, by reason. `others`: keys in which designs
    differ besides their size, length and text.
    """

    points: Sequence[Point]
    fits: dict[str, tuple[Fit, Slice]]
    missing: Sequence[str]
    left_out: dict[str, int]
    measure: Measure
    others: Sequence[str]

    @property
    def joint(self) -> Fit | None:
        """The fit of L(N, D), if there is one."""
        pair = self.fits.get(name(("N", "D")))
        return None if pair is None else pair[0]


def name(axes: tuple[str, ...]) -> str:
    """Return the name of a law of these axes."""
    return f"L({', '.join(axes)})"


def fit_scaling(comparison: Comparison) -> Scaling:
    """Fit every law that the runs of a comparison determine. Raises UserError if there is none."""
    if not comparison.comparable:
        raise UserError(
            "--fit: the runs used different texts or splits, so their losses are not comparable; "
            "give runs of one text"
        )
    unfinished = [run for run in comparison.collection.runs if not run.finished]
    left_out = Counter(
        "without a validation loss" if run.status == "finished" else run.status
        for run in unfinished
    )
    points = []
    for design in comparison.designs:
        unusable = [reason for run in design.runs if (reason := _reason_against(run)) is not None]
        left_out.update(unusable)
        point = _point(design, comparison.measure)
        if point is not None:
            points.append(point)
    fits, missing = {}, []
    with Progress("fitting", total=len(LAWS)) as progress:
        for axes in progress.counted(LAWS):
            progress.activity = f"fitting {name(axes)}"
            part = frontier(points) if axes == (FLOPS,) else largest_slice(points, axes)
            lack = _lack(part, axes)
            if lack is None:
                fits[name(axes)] = fit_law(part.points, axes), part
            else:
                missing.append(f"no {name(axes)}: {lack}")
    if not fits:
        values = "; ".join(
            f"{_n_values(points, axis)} of {axis} ({AXES[axis].name}; vary {AXES[axis].keys})"
            for axis in AXES
        )
        raise UserError(
            f"--fit: a law of 3 parameters needs {VALUES} values of N, D or U with all else equal, "
            f"at least {APART - 1:.0%} apart, and {count(len(points), 'usable design')} of these "
            f"runs have {values}"
        )
    keys = choices(varying([design.config for design in comparison.designs]), SIZES)
    return Scaling(points, fits, missing, dict(left_out), comparison.measure, keys)


# ---- points ----


def _reason_against(run: Run) -> str | None:
    """Return why a finished run has no place in a fit, None if it has one."""
    if run.stopped_by_patience:
        return "stopped by trainer.patience"
    if None in _values(run).values():
        return "without size, length or FLOPs"
    if not run.number("parameters.non_embedding"):
        return "without parameters besides embeddings"
    vocabulary, loss = run.manifest.get("vocabulary"), run.number("val_loss")
    if isinstance(vocabulary, int) and loss is not None and loss >= math.log(vocabulary):
        return "no better than guessing"
    return None


def _values(run: Run) -> dict[str, float | None]:
    """Return the value of each axis and the FLOPs; None for what the run did not record."""
    sizes = run.manifest.get("tokens")
    unique = sizes.get("train") if isinstance(sizes, dict) else None
    return {
        "N": run.number("parameters.non_embedding"),
        "D": run.training_tokens,
        "U": float(unique) if isinstance(unique, int) else None,
        FLOPS: run.training_flops,
    }


def _point(design: Design, measure: Measure) -> Point | None:
    usable = [run for run in design.runs if _reason_against(run) is None]
    losses = design.mean_by_seed(lambda run: run.number(measure.key) if run in usable else None)
    if not losses:
        return None
    x = {axis: value for axis, value in _values(usable[0]).items() if value is not None}
    return Point(design.label, x, losses)


# ---- slices ----


def largest_slice(points: Sequence[Point], axes: tuple[str, ...]) -> Slice:
    """Return the points that agree in all axes but these, with enough values of these for a law.

    Of several such slices, that with the largest values of the others; if there is none, that with
    the most values.
    """
    fixed = [axis for axis in AXES if axis not in axes]
    slices: dict[tuple[float, ...], list[Point]] = {}
    for point in points:
        slices.setdefault(tuple(point.x[axis] for axis in fixed), []).append(point)
    if not slices:
        return Slice([], {})

    def rank(values: tuple[float, ...]) -> tuple[int, tuple[float, ...]]:
        return min(VALUES, *(_n_values(slices[values], axis) for axis in axes)), values

    values = max(slices, key=rank)
    return Slice(slices[values], dict(zip(fixed, values, strict=True)))


def frontier(points: Sequence[Point]) -> Slice:
    """Return the points of one U that no point of as few FLOPs or fewer equals in loss.

    It is empty if N or D does not vary, since then FLOPs leave no choice.
    """
    part = largest_slice(points, ("N", "D"))
    best: list[Point] = []
    if min(_n_values(part.points, axis) for axis in ("N", "D")) < 2:
        return Slice(best, part.fixed)
    for point in sorted(part.points, key=lambda p: (p.x[FLOPS], p.mean, p.label)):
        if not best or point.mean < best[-1].mean:
            best.append(point)
    return Slice(best, part.fixed)


def _lack(part: Slice, axes: tuple[str, ...]) -> str | None:
    """Return what a slice lacks for the fit of a law, None if nothing."""
    where = "".join(f" at {axis} = {value:,.0f}" for axis, value in part.fixed.items())
    for axis in axes:
        n, keys = _n_values(part.points, axis), (ENVELOPE if axis == FLOPS else AXES[axis]).keys
        if n < VALUES:
            return f"needs {VALUES} values of {axis}, and there {_are(n)}{where}; vary {keys}"
    if len(part.points) < POINTS[len(axes)]:
        return (
            f"needs {POINTS[len(axes)]} designs, and there {_are(len(part.points))}{where}; vary "
            f"{' and '.join(axes)} independently"
        )
    return None


def _are(n: int) -> str:
    return f"is {n}" if n == 1 else f"are {n}"


def _n_values(points: Iterable[Point], axis: str) -> int:
    """Return the number of values that are at least APART from the next lower one counted."""
    n, last = 0, 0.0
    for value in sorted(point.x[axis] for point in points):
        if value >= APART * last:
            n, last = n + 1, value
    return n
