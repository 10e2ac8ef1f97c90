"""sweep.json in the folder of a sweep: the list of its jobs. Commands for the whole folder."""

from __future__ import annotations

import shlex
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt.errors import UserError
from minigpt.files import write_json
from minigpt.run.directory import SWEEP, RunDirectory, find_folder


@dataclass(frozen=True)
class Job:
    """One run of a sweep: its overrides and its run directory."""

    overrides: list[str]
    path: Path

    @property
    def label(self) -> str:
        """The name of its run directory."""
        return self.path.name

    @property
    def run(self) -> RunDirectory:
        """Its run directory."""
        return RunDirectory(self.path)


def listed_jobs(content: dict[str, Any], folder: Path) -> list[Job]:
    """Return the jobs in the content of a sweep.json; entries without a path are skipped."""
    entries = content.get("jobs")
    return [
        Job([str(override) for override in entry.get("overrides") or []], folder / entry["path"])
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, dict) and isinstance(entry.get("path"), str) and entry["path"]
    ]


def write_sweep_file(
    folder: Path, jobs: list[Job], command: list[str], name: str | None, match: str | None
) -> None:
    """Write sweep.json; jobs that earlier commands listed there stay.

    Raises UserError if the file is broken.
    """
    file = folder / SWEEP
    earlier = listed_jobs(RunDirectory(folder).read_optional_json(file), folder)
    by_name = {job.label: job for job in [*earlier, *jobs]}
    entries = [{"overrides": job.overrides, "path": label} for label, job in by_name.items()]
    write_json(file, {"command": command, "name": name, "match": match, "jobs": entries})


def next_commands(folder: Path) -> list[str]:
    """Return lines with the commands for all runs in the folder of a sweep or a search."""
    name = quoted = shlex.quote(str(folder))
    with suppress(UserError):  # no run below runs/
        if find_folder("latest").resolve() == folder.resolve():
            name = "latest"
    lines = [f"compare    minigpt report {name}"]
    if any(folder.glob("*/wandb/offline-run-*")):
        lines.append(f"upload     wandb sync {quoted}/*/wandb/offline-run-*")
    return lines
