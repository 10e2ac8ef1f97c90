"""The folder of a search: its lock, tune.json and best.yaml."""

from __future__ import annotations

import datetime
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from minigpt.config.saved import read_config, save_config
from minigpt.errors import UserError
from minigpt.files import write_json
from minigpt.run.directory import RUNS, SEARCH, RunDirectory
from minigpt.tune.records import TrialRecord, trial_name
from minigpt.tune.space import Space

BEST = "best.yaml"
LOCK = ".lock"
RAY = "ray"  # files of Ray Tune, while a search is running


def new_folder(space: Space) -> Path:
    """Return a new folder under runs/, named after the time and the searched keys."""
    now = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    label = trial_name(0, {key.rpartition(".")[2]: "" for key in space.domains}, False)[4:]
    return RUNS / f"{now}_tune_{label.replace('=', '')}_{secrets.token_hex(2)}"


@contextmanager
def locked(folder: Path, identity: dict[str, Any]) -> Iterator[None]:
    """Create the folder, and lock it against other searches while the block runs.

    `identity`: overrides and options, which a resumed search must repeat. Raises UserError if
    another search is running there, or if the folder contains something else.
    """
    file = folder / SEARCH
    if file.exists():
        _require_same_search(RunDirectory(folder).read_json(file), identity, folder)
    elif folder.exists() and not (folder.is_dir() and {*folder.iterdir()} <= {folder / LOCK}):
        raise UserError(f"--dir={folder}: contains other files; choose a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        why = "another minigpt tune is running there; stop it first"
        raise UserError(f"--dir={folder}: {why}") from None
    shutil.rmtree(folder / RAY, ignore_errors=True)  # left by a killed search
    try:
        yield
    finally:
        shutil.rmtree(folder / RAY, ignore_errors=True)
        content = RunDirectory(folder).read_optional_json(file)
        if content.get("status") == "running":  # an exception ended the search
            write_json(file, content | {"status": "failed"})
        lock.release()
        if not content:  # the search did not start
            (folder / LOCK).unlink(missing_ok=True)
            with suppress(OSError):
                folder.rmdir()


def _require_same_search(saved: dict[str, Any], wanted: dict[str, Any], folder: Path) -> None:
    """Raise UserError unless a folder's tune.json has the same overrides and options."""
    for key in ("overrides", "options"):
        old = saved.get(key) or ["none"]
        if saved.get(key) != wanted[key]:
            texts = [f"{k} {v}" for k, v in old.items()] if isinstance(old, dict) else old
            raise UserError(
                f"--dir={folder}: contains a search with other {key} ({' '.join(texts)}); repeat "
                f"them to resume it, or choose another directory"
            )


def save_best(folder: Path, best: TrialRecord) -> None:
    """Write best.yaml: the best trial's config, without the tracker group of the search.

    If the values of a member of a population changed, its first lines have the schedule.
    """
    config = read_config(RunDirectory(folder / best.name).config)
    group = None if config.group == folder.name else config.group
    save_config(replace(config, group=group), folder / BEST, _schedule_lines(best))


def _schedule_lines(best: TrialRecord) -> list[str]:
    """Return lines that tell the values of each part of a training, none if they never changed."""
    if not best.adopted:
        return []
    changes = [
        f"  from step {entry['step']}: {' '.join(Space([], {}).overrides(entry['values']))}"
        for entry in best.schedule
    ]
    return [
        f"This config does not reproduce {best.name}: it has the last values, and --scheduler pbt",
        "changed them during the training (of this trial, and of those whose weights it copied):",
        *changes,
    ]
