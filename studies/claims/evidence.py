"""The trained runs of a setting: designs found by what they change, and their losses by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from minigpt.errors import UserError
from minigpt.files import read_json
from minigpt.report.designs import Design, group
from minigpt.report.runs import Run, find_runs
from minigpt.report.statistics import Seeds
from minigpt.run.directory import COMPARISON, SEARCH, SWEEP, TRIALS
from minigpt.run.sweep_file import listed_jobs

# The design that claims change, by keys of its config.
BASE = {
    "model.name": "gpt2",
    "model.positional.name": "learned",
    "model.norm.placement": "pre",
    "model.embedding.name": "tied",
    "model.n_layer": 4,
    "model.n_kv_head": None,
    "model.block_size": 32,
    "tokenizer.name": "char",
}
POSTS, TUNED = "posts", "tuned"
MEASURED = "measured.json"


class NotTrained(UserError):
    """The runs of a claim are missing."""


class Evidence:
    """The runs of some trainings, by their names, of one setting."""

    def __init__(self, results: Path, setting: str, names: Sequence[str]) -> None:
        """Raises NotTrained if a training is missing in the results."""
        self.results, self.setting, self.names = results, setting, names
        self.folders = [results / name for name in names]
        missing = [name for name in names if not is_complete(results / name)]
        if missing:
            raise NotTrained(f"{', '.join(missing)}: not trained; use --train {','.join(missing)}")

    @cached_property
    def designs(self) -> list[Design]:
        """The designs. A comparison's are those that it chose, trained with fresh seeds."""
        return group(find_runs([str(path) for path in self.folders]).runs, [])

    @property
    def runs(self) -> list[Run]:
        """All runs, those of a comparison's search too."""
        searches = [path / TRIALS for path in self.folders if (path / TRIALS).is_dir()]
        return find_runs([str(path) for path in (*self.folders, *searches)]).runs

    @property
    def hours(self) -> float:
        """Hours of training, of one core each."""
        return sum(run.number("seconds") or 0.0 for run in self.runs) / 3600

    def design(self, changes: Mapping[str, Any]) -> Design:
        """Return the design that has the values of BASE, but for `changes`."""
        wanted = BASE | dict(changes)
        found = [
            design
            for design in self.designs
            if all(design.config.get(key) == value for key, value in wanted.items())
        ]
        if len(found) != 1:
            what = ", ".join(f"{key}={value}" for key, value in changes.items())
            raise UserError(f"{', '.join(self.names)}: {len(found)} designs with {what}")
        return found[0]

    def losses(self, changes: Mapping[str, Any], bits: bool = False) -> Seeds:
        """Return the loss of a design by seed, in nats/token or bits/byte.

        The test loss of a comparison, else the validation loss after the last step. A run that
        diverged counts with the loss of uniform guessing: ln n per token.
        """
        design = self.design(changes)
        split = "test" if self.setting == TUNED else "val"
        seeds = design.seeds(f"{split}_bits_per_byte" if bits else f"{split}_loss")
        for run in design.unfinished:
            if run.result.get("diverged") is not True or bits or run.seed is None:
                raise UserError(f"{run.path}: {run.status}, and cannot be judged")
            seeds[run.seed] = math.log(run.manifest["vocabulary"])
        return seeds

    def number(self, changes: Mapping[str, Any], key: str) -> int:
        """Return a number that all runs of a design share."""
        (number,) = {run.number(key) for run in self.design(changes).all_runs}
        assert number is not None
        return int(number)


def is_complete(folder: Path) -> bool:
    """Return whether a training has ended: a sweep, a comparison or a search."""
    if (folder / COMPARISON).is_file():
        return "designs" in read_json(folder / COMPARISON)
    if (folder / SEARCH).is_file():
        return read_json(folder / SEARCH)["status"] == "finished"
    if (folder / SWEEP).is_file():
        jobs = listed_jobs(read_json(folder / SWEEP), folder)
        return all(job.run.result.is_file() for job in jobs)
    return (folder / MEASURED).is_file()
