"""Run directories read back as plain values: what is there, and one line for what is not."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from minigpt.errors import UserError, did_you_mean, first_line
from minigpt.run.directory import RUNS, SEARCH, SWEEP, RunDirectory, find_run

FILES = ("config.yaml", "manifest.json", "result.json", "metrics.jsonl", "eval.json", SWEEP, SEARCH)
NO_RESULT = "no result.json: still running, or killed"


@dataclass(frozen=True)
class Job:
    """One job of a sweep: its run directory, and what it overrides."""

    path: Path
    overrides: list[str]


@dataclass(frozen=True)
class Sweep:
    """A sweep folder. `match` names the quantity that was made equal across its designs."""

    path: Path
    name: str
    match: str | None
    jobs: list[Job]


@dataclass(frozen=True)
class Run:
    """One run directory. Sections that are missing are empty; `problems` says what is broken.

    `config` is flat: dotted keys. `place` orders runs as their sweep does.
    """

    path: Path
    config: dict[str, Any]
    manifest: dict[str, Any]
    result: dict[str, Any]
    evaluations: dict[str, Any]
    problems: list[str] = field(default_factory=list)
    place: tuple[Any, ...] = ()

    @property
    def seed(self) -> int | None:
        """The seed, from the config, or of a run without one from its result."""
        seed = self.config.get("seed", self.result.get("seed"))
        return seed if isinstance(seed, int) else None

    @property
    def status(self) -> str:
        """finished, interrupted, failed, or why there is no status."""
        return str(self.result.get("status", NO_RESULT))

    @property
    def finished(self) -> bool:
        """Whether its numbers are final."""
        return self.result.get("status") == "finished" and self.number("val_loss") is not None

    @property
    def started(self) -> str:
        """When it began, in ISO format; '' where nothing says."""
        return str(self.manifest.get("started", ""))

    def number(self, key: str) -> float | None:
        """A finite number of result.json by its dotted key; None where there is none."""
        value: Any = self.result
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return finite(value)

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl that are whole: a killed run may have cut its last one."""
        lines = []
        for line in _text(RunDirectory(self.path).metrics).splitlines():
            try:
                found = json.loads(line)
            except ValueError:
                continue
            if isinstance(found, dict) and isinstance(found.get("step"), int):
                lines.append(found)
        return lines

    def logged(self, key: str) -> dict[int, float]:
        """A metric by step, where it is a finite number."""
        found = {line["step"]: finite(line.get(key)) for line in self.metrics if key in line}
        return {step: value for step, value in found.items() if value is not None}

    @cached_property
    def sample(self) -> tuple[int, str] | None:
        """The step and the text of the last sample."""
        parts = re.split(r"(?m)^--- step (\d+) ---\n", _text(RunDirectory(self.path).samples))
        return (int(parts[-2]), parts[-1].rstrip("\n")) if len(parts) >= 3 else None


@dataclass(frozen=True)
class Found:
    """All runs below the folders that were named, and the sweeps among those.

    `searching`: folders in which `minigpt tune` has not come to its end.
    """

    runs: list[Run]
    sweeps: list[Sweep]
    problems: list[str]
    searching: list[Path]

    @property
    def jobs(self) -> list[Job]:
        """Every job that a sweep.json lists."""
        return [job for sweep in self.sweeps for job in sweep.jobs]


def find_runs(names: Sequence[str]) -> Found:
    """Read every run below the folders a user names; `latest` is the newest sweep or run.

    A run directory holds config.yaml or result.json. Raises UserError where a folder is missing or
    none holds a run or a sweep.
    """
    folders = [folder(name) for name in names]
    sweeps, problems = _sweeps(folders)
    order = {job.path.resolve(): n for n, job in enumerate(j for s in sweeps for j in s.jobs)}
    paths = {path.resolve(): path for top in folders for path in _run_directories(top)}
    runs = [run for path in paths.values() if _is_run(run := read_run(path))]
    searches = {file.resolve(): file for top in folders for file in top.rglob(SEARCH)}.values()
    searching = [f.parent for f in searches if _read(f, problems).get("status") == "running"]
    if not (runs or order or searching):
        raise UserError(
            f"{' '.join(names)}: no run in there (a folder with config.yaml or result.json); "
            f"give a run, a sweep or a folder of them, or `latest`"
        )
    for number, run in enumerate(runs):
        listed = order.get(run.path.resolve(), len(order))
        runs[number] = replace(run, place=(listed, run.started, _natural(str(run.path))))
    runs.sort(key=lambda run: run.place)
    problems += [problem for run in runs for problem in run.problems]
    return Found(runs, sweeps, problems, searching)


def folder(name: str) -> Path:
    """The folder a user names. `latest`: the newest run's sweep or search, or the run itself."""
    if name == "latest":
        run = find_run(name).path
        several = any((run.parent / sign).is_file() for sign in (SWEEP, SEARCH))
        return run.parent if several else run
    path = Path(name).expanduser()
    if path.is_file():
        raise UserError(f"DIR={name}: is a file; give the folder that it is in, {path.parent}")
    if not name or not path.is_dir():
        near = [str(entry) for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = did_you_mean(str(path), near)
        raise UserError(
            f"DIR={name}: no such folder.{hint} Give a run, a sweep or a folder of them, as "
            f"{RUNS}/, or `latest`"
        )
    return path


def read_run(path: Path) -> Run:
    """Read one run directory; what is broken becomes a problem of the run, not an error."""
    directory, problems = RunDirectory(path), []
    if directory.config.is_file():
        try:
            content = yaml.load(directory.config.read_bytes(), Loader=_LOADER)
            if not isinstance(content, dict):
                raise ValueError("not a mapping")
        except (yaml.YAMLError, ValueError, OSError) as error:
            problems.append(f"{directory.config}: not readable YAML ({first_line(error)}); ignored")
            content = {}
    else:
        content = {}
    return Run(
        path=path,
        config=flat(content),
        manifest=_read(directory.manifest, problems),
        result=_read(directory.result, problems),
        evaluations=_read(path / "eval.json", problems),
        problems=problems,
    )


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted keys."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict):
            found |= flat(value, f"{key}.")
        else:
            found[key] = value
    return found


def _run_directories(top: Path) -> Iterator[Path]:
    """Run directories below and including `top`; none is looked for inside another."""
    for parent, folders, files in os.walk(top, followlinks=True):
        if {"config.yaml", "result.json"} & {*files}:
            folders.clear()
            yield Path(parent)
        folders[:] = sorted((f for f in folders if not f.startswith(".")), key=_natural)


def _is_run(run: Run) -> bool:
    """Whether a folder with a config.yaml is one of ours: other programs write such files too."""
    ours = any(key.startswith("model.") for key in run.config)
    return ours or bool(run.problems) or bool(run.result) or bool(run.manifest)


def _sweeps(folders: Sequence[Path]) -> tuple[list[Sweep], list[str]]:
    """The sweep.json files in the folders and below, and what is broken in them."""
    sweeps, problems = {}, []
    for top in folders:
        for file in sorted(top.rglob(SWEEP)):
            values = _read(file, problems)
            jobs = values.get("jobs")
            if not isinstance(jobs, list) or file.resolve() in sweeps:
                continue
            known = [
                Job(file.parent / str(job["path"]), [str(o) for o in job.get("overrides") or []])
                for job in jobs
                if isinstance(job, dict) and job.get("path")
            ]
            sweeps[file.resolve()] = Sweep(
                file.parent,
                str(values.get("name") or file.parent.resolve().name),
                match if isinstance(match := values.get("match"), str) else None,
                known,
            )
    return [*sweeps.values()], problems


def _read(path: Path, problems: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not an object")
    except (ValueError, OSError) as error:
        problems.append(f"{path}: broken JSON ({first_line(error)}); ignored")
        return {}
    return content


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def finite(value: Any) -> float | None:
    """A finite number as it is; None for anything else."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        return float(value) if number and math.isfinite(value) else None
    except OverflowError:  # a whole number beyond every float
        return None


def _natural(text: str) -> list[tuple[int, str]]:
    """A key by which 10 comes after 9."""
    return [(int(p), "") if p.isdigit() else (0, p) for p in re.split(r"(\d+)", text)]


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml where PyYAML was built with it
