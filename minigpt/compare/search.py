"""The trials of a comparison: a grid for every design, and the best point of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from minigpt.compare.options import MAX_SEEDS
from minigpt.compare.space import Axis, grid
from minigpt.config.pairs import Values, as_typed
from minigpt.config.schema import Config
from minigpt.report.comparison import LOSS
from minigpt.report.runs import Run, read_run
from minigpt.sweep.plan import PlannedJob

FIRST_SEARCH_SEED = MAX_SEEDS + 1  # seeds of the search; those of the final runs count from 1


@dataclass(frozen=True)
class DesignPoint:
    """A point of the grid for one design: `index` on each axis, and the values there."""

    index: tuple[int, ...]
    values: Values

    @property
    def overrides(self) -> list[str]:
        """The values as overrides."""
        return [f"{key}={as_typed(value)}" for key, value in self.values.items()]


@dataclass(frozen=True)
class Trial:
    """A point with its runs. `loss`: the mean validation loss, infinite if a run diverged.

    `stopped`: before its last step, so that its loss cannot be compared.
    """

    point: DesignPoint
    loss: float
    seconds: float
    stopped: bool = False

    @property
    def diverged(self) -> bool:
        """Whether a run diverged."""
        return math.isinf(self.loss)


@dataclass(frozen=True)
class DesignSearch:
    """All trials of a design, in the order of the grid."""

    label: str
    overrides: list[str]
    axes: Sequence[Axis]
    trials: list[Trial]

    @property
    def best(self) -> Trial | None:
        """The full-length trial with the lowest validation loss, None if all of them diverged."""
        full = [trial for trial in self.trials if not (trial.stopped or trial.diverged)]
        return min(full, key=lambda trial: trial.loss, default=None)

    @property
    def edges(self) -> dict[str, str]:
        """'lowest' or 'highest' by key, where the best value is an end of its axis."""
        if self.best is None:
            return {}
        pairs = zip(self.axes, self.best.point.index, strict=True)
        return {axis.key: edge for axis, index in pairs if (edge := axis.edge(index)) is not None}


def points(axes: Sequence[Axis], config: Config) -> list[DesignPoint]:
    """Return the grid with the values that it has for a design."""
    values = [axis.values(config) for axis in axes]
    keys = [axis.key for axis in axes]
    return [
        DesignPoint(index, {k: v[i] for k, v, i in zip(keys, values, index, strict=True)})
        for index in grid(axes)
    ]


def probes(axes: Sequence[Axis], config: Config) -> list[DesignPoint]:
    """Return the points that have the first value of every axis but one."""
    return [point for point in points(axes, config) if sum(map(bool, point.index)) <= 1]


def trial(point: DesignPoint, jobs: Sequence[PlannedJob]) -> Trial:
    """Return a trial from the results of its runs, one for each seed of the search."""
    runs = [read_run(job.path) for job in jobs]
    return Trial(point, fmean(map(_loss, runs)), sum(run.number("seconds") or 0.0 for run in runs))


def _loss(run: Run) -> float:
    loss = run.number(LOSS.key)
    return math.inf if loss is None or diverged(run.result) else loss


def diverged(result: dict[str, object]) -> bool:
    """Return whether a run ended because its loss was not finite, which it would do again."""
    return result.get("status") == "failed" and result.get("diverged") is True
