"""Remove run directories and the folders of sweeps, searches and comparisons, and nothing else.

A directory with a file that minigpt did not write is refused. A removal first renames the directory
to a hidden name, which no command lists; if it is killed, the same command removes the rest.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from minigpt.errors import UserError
from minigpt.files import absolute_path, directory_bytes, try_read_json, user_path
from minigpt.run.directory import COMPARISON, PHASES, SEARCH, SWEEP, RunDirectory, find_run

REPORT = ("report.html", "report.md", "report.tex", "report_*.csv", "report_wandb.json")
COMMON = (".lock", ".*.lock", ".*.tmp", *REPORT)
RUN = (
    *("config.yaml", "manifest.json", "tokenizer.json", "metrics.jsonl", "samples.txt"),
    *("result.json", "eval.json", "output.log", "trial.json"),
    *("checkpoints", "eval", "inspect", "wandb", "tensorboard", *COMMON),
)
CHECKPOINTS = ("last", "best", ".last.*", ".best.*")
GROUP = (SWEEP, SEARCH, "best.yaml", "ray", ".stop", ".stop_*", ".submitit", ".*.deleted", *COMMON)
STARTED = (".lock", "manifest.json", "result.json", "output.log", "trial.json")
SHOWN = 3  # names in an error


@dataclass(frozen=True)
class Removal:
    """A directory to remove: a run; the folder of a sweep, search or comparison, with its `runs`;
    the rest of a removal."""

    path: Path
    kind: str
    runs: list[RunDirectory]

    def describe(self) -> str:
        """Return what it is, with the number of its runs by status."""
        statuses = Counter(
            try_read_json(run.result).get("status") or run.unrecorded_status for run in self.runs
        )
        if self.kind == "run":
            return f"run, {next(iter(statuses))}"
        if not self.runs:
            return self.kind
        counts = ", ".join(f"{n} {status}" for status, n in statuses.most_common())
        return f"{self.kind} with all its runs, {len(self.runs)} ({counts})"

    @property
    def bytes(self) -> int:
        """The size of its files."""
        return directory_bytes(self.path)

    def require_not_running(self) -> None:
        """Raise UserError if a process trains one of the runs, or runs the search."""
        for run in self.runs:
            run.require_not_running()
        if RunDirectory(self.path).is_running:
            raise UserError(f"{self.path}: a search is running there; stop it first")

    def remove(self) -> None:
        """Remove the directory. Raises UserError if it is in use, OSError if that fails."""
        self.require_not_running()
        hidden = _hidden(self.path)
        if self.path.name != hidden.name:
            _remove(hidden)  # of an earlier run of this name
            os.rename(self.path, hidden)
        _remove(hidden)


def plan_removal(names: Sequence[str]) -> list[Removal]:
    """Return what to remove for the RUNs a user names; those inside another are left out.

    Raises UserError for a path that is neither a run nor the folder of several, that is a link or
    contains one to outside, that contains other files, or that is in use.
    """
    planned = {Path(absolute_path(str(r.path))): r for r in map(_removal, names)}
    for removal in planned.values():
        removal.require_not_running()
    return [removal for path, removal in planned.items() if not {*path.parents} & planned.keys()]


def _removal(name: str) -> Removal:
    if name == "latest":
        path = find_run(name).path
        raise UserError(f"latest: may be another run by now; name the directory, such as {path}")
    path = user_path("RUN", name)
    if path.is_symlink():
        raise UserError(f"{name}: is a link to {path.resolve()}; name that directory")
    hidden = _hidden(path)
    if name and not path.exists() and hidden.is_dir():
        return Removal(hidden, "rest of a run that was removed before", [])
    if not name or not path.is_dir():
        raise UserError(f"{name}: no such run directory; `minigpt runs` lists them")
    for file, kind in ((SWEEP, "sweep"), (SEARCH, "search")):
        if (path / file).is_file():
            return Removal(path, kind, _runs_of_group(path))
    if (path / COMPARISON).is_file():
        return Removal(path, "comparison", _runs_of_comparison(path))
    run = RunDirectory(path)
    if not (run.manifest.is_file() or (run.in_group and _has_started(path))):
        why = "neither a run with a manifest.json nor the folder of a sweep, search or comparison"
        raise UserError(f"{name}: {why}")
    _require_own(run)
    return Removal(path, "run", [run])


def _runs_of_group(folder: Path) -> list[RunDirectory]:
    entries = sorted(folder.iterdir())
    runs = [e for e in entries if e.is_dir() and not e.is_symlink() and _has_started(e)]
    others = [e for e in entries if e not in runs and not _is_own(e, GROUP)]
    _refuse(folder, others)
    for path in runs:
        _require_own(RunDirectory(path))
    return [*map(RunDirectory, runs)]


def _runs_of_comparison(folder: Path) -> list[RunDirectory]:
    sweeps = [e for phase in PHASES if ((e := folder / phase) / SWEEP).is_file()]
    others = [e for e in folder.iterdir() if not _is_own(e, (COMPARISON, *COMMON))]
    _refuse(folder, [entry for entry in others if entry not in sweeps or entry.is_symlink()])
    return [run for sweep in sweeps for run in _runs_of_group(sweep)]


def _require_own(run: RunDirectory) -> None:
    """Raise UserError for a link to outside, and for a file that minigpt did not write."""
    run.require_own_files("which would stay; remove the link first")
    others = [entry for entry in run.path.iterdir() if not _is_own(entry, RUN)]
    if run.last.parent.is_dir():
        others += [entry for entry in run.last.parent.iterdir() if not _is_own(entry, CHECKPOINTS)]
    _refuse(run.path, others)


def _refuse(folder: Path, others: list[Path]) -> None:
    if others:
        more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
        names = ", ".join(str(path.relative_to(folder)) for path in sorted(others)[:SHOWN])
        why = f"contains {names}{more}, which minigpt did not write; move them away first"
        raise UserError(f"{folder}: {why}")


def _is_own(path: Path, patterns: Sequence[str]) -> bool:
    return any(fnmatch(path.name, pattern) for pattern in patterns)


def _has_started(path: Path) -> bool:
    return any((path / name).exists() for name in STARTED)


def _hidden(path: Path) -> Path:
    path = Path(absolute_path(str(path)))  # of `.`, which has no name
    return path if path.name.endswith(".deleted") else path.with_name(f".{path.name}.deleted")


def _remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)
