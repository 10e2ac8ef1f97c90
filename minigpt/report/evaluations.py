"""Results of `minigpt eval` in run directories: losses by context length and by position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minigpt.report.comparison import Comparison, Measure
from minigpt.report.designs import Design
from minigpt.report.runs import Run, finite
from minigpt.report.statistics import Seeds

CHECKPOINTS = ("best", "last")  # entries of eval.json for unchanged options
# Curves of an entry, by number of tokens.
LENGTHS, CONTEXTS, BY_POSITION = "lengths", "contexts", "by_position"
LENGTH_CURVES = {  # title and protocol
    LENGTHS: (
        "Loss by length of the windows",
        "One full pass for each length, over windows that do not overlap",
    ),
    CONTEXTS: (
        "Loss by length of the context, of the same tokens",
        "The same tokens at each length, each predicted from exactly so many tokens before it",
    ),
}


def choose_checkpoint(comparison: Comparison) -> str | None:
    """Return the checkpoint for which most runs have curves, None if there are no curves."""
    runs = [run for design in comparison.designs for run in design.runs]
    curves = {LENGTHS, CONTEXTS, BY_POSITION}
    counts = {n: sum(bool(_entry(run, n).keys() & curves) for run in runs) for n in CHECKPOINTS}
    name = max(CHECKPOINTS, key=lambda name: counts[name])
    return name if counts[name] else None


def lengths(designs: Sequence[Design], checkpoint: str, curve: str = LENGTHS) -> list[int]:
    """Return the lengths at which any run has this curve, in ascending order."""
    runs = [run for design in designs for run in design.runs]
    return sorted({int(length) for run in runs for length in _curve(run, checkpoint, curve)})


def at_length(
    design: Design, checkpoint: str, length: int, measure: Measure, curve: str = LENGTHS
) -> Seeds:
    """Return the measure at a context length by seed; empty if it is undefined there."""
    key = measure.key.removeprefix("val_")

    def value(run: Run) -> float | None:
        entry = _curve(run, checkpoint, curve).get(str(length))
        return finite(entry.get(key)) if isinstance(entry, dict) else None

    return design.mean_by_seed(value)


def by_position(design: Design, checkpoint: str, length: int) -> list[list[float]]:
    """Return losses by position in windows of `length` tokens, (seeds, positions).

    Positions that a run lacks are dropped from all runs.
    """
    by_seed = [
        [losses for run in runs if (losses := _losses(run, checkpoint, length))]
        for runs in design.by_seed.values()
    ]
    shortest = min((len(losses) for runs in by_seed for losses in runs), default=0)
    return [
        [sum(at) / len(at) for at in zip(*(losses[:shortest] for losses in runs), strict=True)]
        for runs in by_seed
        if runs
    ]


def _losses(run: Run, checkpoint: str, length: int) -> list[float]:
    """Return a run's losses by position, [] unless all are finite numbers."""
    losses = _curve(run, checkpoint, BY_POSITION).get(str(length))
    numbers = [*map(finite, losses)] if isinstance(losses, list) else []
    known = [number for number in numbers if number is not None]
    return known if len(known) == len(numbers) else []


def _curve(run: Run, checkpoint: str, name: str) -> dict[str, Any]:
    curve = _entry(run, checkpoint).get(name)
    return {k: v for k, v in curve.items() if k.isdecimal()} if isinstance(curve, dict) else {}


def _entry(run: Run, checkpoint: str) -> dict[str, Any]:
    entry = run.evaluations.get(checkpoint)
    return entry if isinstance(entry, dict) else {}
