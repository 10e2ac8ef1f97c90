"""What `minigpt eval` left in runs: losses at other lengths and at each position, by seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minigpt.report.comparison import Comparison, Measure
from minigpt.report.designs import Design
from minigpt.report.runs import Run, finite
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
        values = [finite(entry.get(key)) for entry in entries if isinstance(entry, dict)]
        numbers = [value for value in values if value is not None]
        if numbers:
            found[seed] = sum(numbers) / len(numbers)
    return found


def by_position(design: Design, evaluations: Evaluations, length: int) -> list[list[float]]:
    """Losses at the positions of windows of a length, by seed, cut to what all runs have."""
    found = [
        [losses for run in runs if (losses := _losses(run, evaluations, length))]
        for runs in design.by_seed.values()
    ]
    shortest = min((len(losses) for same in found for losses in same), default=0)
    return [
        [sum(at) / len(at) for at in zip(*(losses[:shortest] for losses in same), strict=True)]
        for same in found
        if same
    ]


def _losses(run: Run, evaluations: Evaluations, length: int) -> list[float]:
    losses = _curves(run, evaluations, "by_position").get(str(length))
    numbers = map(finite, losses) if isinstance(losses, list) else ()
    known = [number for number in numbers if number is not None]
    return known if isinstance(losses, list) and len(known) == len(losses) else []


def _entry(run: Run, checkpoint: str) -> dict[str, Any]:
    entry = run.evaluations.get(checkpoint)
    return entry if isinstance(entry, dict) else {}


def _curves(run: Run, evaluations: Evaluations, kind: str) -> dict[str, Any]:
    found = _entry(run, evaluations.checkpoint).get(kind)
    return {k: v for k, v in found.items() if k.isdecimal()} if isinstance(found, dict) else {}
