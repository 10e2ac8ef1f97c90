"""What `minigpt eval` left in runs: losses at other lengths and at each position, by seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minigpt.report.comparison import Comparison, Measure
from minigpt.report.designs import Design
from minigpt.report.runs import Run
from minigpt.report.statistics import Seeds

CHECKPOINTS = ("best", "last")  # entries of eval.json that changed nothing of the run


@dataclass(frozen=True)
class Evaluations:
    """Which entry of every run's eval.json is compared, so that no design has other weights."""

    checkpoint: str


def choose(comparison: Comparison) -> Evaluations | None:
    """The checkpoint that most runs have curves of; None where no run has any."""
    runs = [run for design in comparison.designs for run in design.runs]
    counts = {
        name: sum(bool(_entry(run, name).keys() & {"lengths", "by_position"}) for run in runs)
        for name in CHECKPOINTS
    }
    name = max(CHECKPOINTS, key=lambda name: counts[name])
    return Evaluations(name) if counts[name] else None


def lengths(designs: Sequence[Design], evaluations: Evaluations) -> list[int]:
    """Every length that some run was evaluated at."""
    return sorted(
        {
            int(length)
            for design in designs
            for run in design.runs
            for length in _curves(run, evaluations, "lengths")
        }
    )


def windows(designs: Sequence[Design], evaluations: Evaluations) -> list[int]:
    """Every length of windows whose positions some run was evaluated at."""
    return sorted(
        {
            int(length)
            for design in designs
            for run in design.runs
            for length in _curves(run, evaluations, "by_position")
        }
    )


def at_length(design: Design, evaluations: Evaluations, length: int, measure: Measure) -> Seeds:
    """The measure at a context length by seed; without seeds where it is undefined."""
    key = measure.key.removeprefix("val_")
    found = {}
    for seed, runs in design.by_seed.items():
        entries = [_curves(run, evaluations, "lengths").get(str(length)) for run in runs]
        values = [entry.get(key) for entry in entries if isinstance(entry, dict)]
        numbers = [v for v in values if isinstance(v, int | float) and math.isfinite(v)]
        if numbers:
            found[seed] = sum(numbers) / len(numbers)
    return found


def by_position(design: Design, evaluations: Evaluations, length: int) -> list[list[float]]:
    """Each run's losses at the positions of windows of a length, cut to what all runs have."""
    found = [
        losses
        for run in design.runs
        if (losses := _curves(run, evaluations, "by_position").get(str(length)))
        and isinstance(losses, list)
        and all(isinstance(loss, int | float) for loss in losses)
    ]
    shortest = min(map(len, found), default=0)
    return [losses[:shortest] for losses in found]


def _entry(run: Run, checkpoint: str) -> dict[str, Any]:
    entry = run.evaluations.get(checkpoint)
    return entry if isinstance(entry, dict) else {}


def _curves(run: Run, evaluations: Evaluations, kind: str) -> dict[str, Any]:
    found = _entry(run, evaluations.checkpoint).get(kind)
    return {k: v for k, v in found.items() if k.isdigit()} if isinstance(found, dict) else {}
