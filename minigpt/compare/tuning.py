"""The search of a comparison by Ray Tune: TPE proposes values, ASHA stops trials early."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from minigpt.compare.search import FIRST_SEARCH_SEED, DesignPoint, Trial, diverged
from minigpt.compare.space import Axis
from minigpt.config.pairs import as_typed
from minigpt.config.schema import Config
from minigpt.errors import Failure
from minigpt.files import sha256, try_read_json
from minigpt.report.comparison import LOSS
from minigpt.run.directory import SEARCH, RunDirectory
from minigpt.tune.options import TuneOptions
from minigpt.tune.records import TrialRecord, read_trials
from minigpt.tune.search import search
from minigpt.tune.session import ray_session
from minigpt.tune.space import check_space, parse_space


@dataclass(frozen=True)
class Tuning:
    """The search of one design. `folder`: of the searches of all designs.

    Each space has a folder of its own, so that a wider one does not replace the first.
    """

    label: str
    design: list[str]
    config: Config
    axes: Sequence[Axis]
    folder: Path
    budget: int

    @cached_property
    def values(self) -> dict[str, list[Any]]:
        """The values of each axis for this design."""
        return {axis.key: axis.values(self.config) for axis in self.axes}

    @property
    def overrides(self) -> list[str]:
        """The overrides of `minigpt tune`."""
        space = [f"{axis.key}={domain(axis, self.values[axis.key])}" for axis in self.axes]
        return [*self.design, f"seed={FIRST_SEARCH_SEED}", *space]

    @property
    def options(self) -> TuneOptions:
        """The options of `minigpt tune`."""
        directory = self.folder / self.label / sha256(repr(self.values))[:6]
        return TuneOptions("asha", "tpe", trials=self.budget, directory=directory)

    def check(self) -> None:
        """Raise UserError for values that cannot be searched."""
        check_space(parse_space(self.overrides), self.options)

    @property
    def finished(self) -> bool:
        """Whether the search has ended."""
        directory = self.options.directory
        assert directory is not None
        return try_read_json(directory / SEARCH).get("status") == "finished"

    def trials(self) -> list[Trial]:
        """Return the trials of this space and of narrower ones.

        Raises Failure if one failed other than by diverging.
        """
        folders = sorted((self.folder / self.label).iterdir())
        records = {folder: read_trials(folder, LOSS.key) for folder in folders}
        return [self._trial(r, folder / r.name) for folder, own in records.items() for r in own]

    def _trial(self, record: TrialRecord, path: Path) -> Trial:
        if record.status == "failed" and not diverged(try_read_json(RunDirectory(path).result)):
            raise Failure(f"{path}: {record.error}")
        values = {key: record.values.get(key, known[0]) for key, known in self.values.items()}
        index = tuple(nearest(self.values[key], value) for key, value in values.items())
        loss = math.inf if record.status == "failed" or record.value is None else record.value
        stopped = record.status == "stopped"
        return Trial(DesignPoint(index, values), loss, record.seconds, stopped)


def run_searches(tunings: Sequence[Tuning]) -> None:
    """Run what is missing of the searches, one after the other on the same Ray.

    Raises UserError, Interrupted and Failure.
    """
    missing = [tuning for tuning in tunings if not tuning.finished]
    if not missing:
        return
    with ray_session(None, None, missing[0].budget):
        for tuning in missing:
            search(tuning.overrides, tuning.options)


def domain(axis: Axis, values: Sequence[Any]) -> str:
    """Return the values of an axis in Hydra's sweep syntax: one, a list, or an interval."""
    if not axis.continuous or len(values) == 1:
        return ",".join(map(as_typed, values))
    tags = ["log"] if axis.ratio is not None else []
    tags += ["int"] if all(isinstance(value, int) for value in values) else []
    interval = f"interval({as_typed(values[0])},{as_typed(values[-1])})"
    return f"tag({','.join([*tags, interval])})" if tags else interval


def nearest(values: Sequence[Any], value: Any) -> int:
    """Return the index of a value, or of the nearest number, by ratio if all are above 0."""
    if value in values:
        return values.index(value)
    if min(*values, value) > 0:
        return min(range(len(values)), key=lambda i: abs(math.log(values[i] / value)))
    return min(range(len(values)), key=lambda i: abs(values[i] - value))
