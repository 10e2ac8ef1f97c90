"""Remove runs, and sweeps and searches with all of their runs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from minigpt.errors import UserError
from minigpt.files import disk_bytes, try_read_json, user_path
from minigpt.run.directory import SEARCH, SWEEP, RunDirectory, find_run, run_directories
from minigpt.run.sweep_file import listed_jobs

REMOVED = ".removed-"  # prefix of a folder that is being removed: no command reads hidden folders


@dataclass(frozen=True)
class Target:
    """A folder to remove: one run, or a sweep or search. `runs`: the runs in it."""

    path: Path
    runs: list[Path]
    bytes: int


def find_targets(names: Sequence[str]) -> list[Target]:
    """Return what to remove for the names of runs, sweeps and searches, each folder once.

    Raises UserError for any other folder, for a link, and for a run that is being trained.
    """
    paths = {path.resolve(): path for path in map(_require_own, names)}
    outer = [path for real, path in paths.items() if not {*real.parents} & {*paths}]
    targets = [Target(path, [*run_directories(path)], disk_bytes(path)) for path in outer]
    for run in (run for target in targets for run in target.runs):
        if RunDirectory(run).is_training:
            raise UserError(f"{run}: a process is training this run; stop it first")
    return targets


def remove(target: Target) -> None:
    """Remove a folder. If this is killed, the rest is hidden; the next removal beside it ends it.

    Raises OSError.
    """
    for rest in target.path.parent.glob(f"{REMOVED}*"):
        shutil.rmtree(rest)
    hidden = target.path.with_name(f"{REMOVED}{target.path.name}")
    target.path.rename(hidden)
    shutil.rmtree(hidden)


def _require_own(name: str) -> Path:
    """Return the folder with this name. Raises UserError unless all of it is minigpt's."""
    if not name:
        raise UserError("the run's name is empty; give a directory like runs/..., or `latest`")
    path = find_run(name).path if name == "latest" else user_path("RUN", name)
    if path.is_symlink():
        raise UserError(f"{name}: is a link to {path.resolve()}; name that folder")
    real = path.resolve()
    if real in (Path.cwd().resolve(), *Path.cwd().resolve().parents):
        raise UserError(f"{name}: contains the working directory; leave that first")
    group = [file for file in (SWEEP, SEARCH) if (path / file).is_file()]
    if not (group or _is_run(path)):
        why = "not a run, a sweep or a search" if path.exists() else "no such run"
        raise UserError(f"{name}: {why}; name a folder that `minigpt runs` lists, or its sweep's")
    foreign = [] if not group else sorted(_foreign(path))
    if foreign:
        why = "is in it and is not a run; move it away, or name the runs"
        raise UserError(f"{name}: {foreign[0].name} {why}")
    return path


def _is_run(path: Path) -> bool:
    return "code_sha256" in try_read_json(RunDirectory(path).manifest)


def _foreign(group: Path) -> Iterator[Path]:
    """Yield the folders in a sweep or a search that are neither runs nor unstarted jobs."""
    jobs = {job.path for job in listed_jobs(try_read_json(group / SWEEP), group)}
    for path in group.iterdir():
        is_own = path in jobs or path.name.startswith(".") or _is_run(path)
        if path.is_dir() and not is_own and any(path.iterdir()):
            yield path
