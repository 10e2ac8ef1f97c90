"""Run directories read as plain values; broken files become one-line problems."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from minigpt.config.comments import require_own_values
from minigpt.config.pairs import flat
from minigpt.config.renamed import rename_keys
from minigpt.errors import UserError, first_line
from minigpt.files import read_json_lines, try_read_json
from minigpt.loss_of import CAUSAL, EVERY_TOKEN, grouped
from minigpt.run.directory import (
    COMPARISON,
    RUNNING,
    SEARCH,
    SWEEP,
    TRIALS,
    RunDirectory,
    find_folder,
    folders_of_runs,
    group_files,
    run_directories,
)
from minigpt.run.sweep_file import Job, listed_jobs

FILES = ("config.yaml", "manifest.json", "result.json", "metrics.jsonl", "samples.txt", "eval.json")
FILES += (SWEEP, SEARCH, COMPARISON)
VALIDATION = ("val_loss", "val_bits_per_byte")
CONTINUATION = "val_continuation_bits_per_byte"
# What else decides which tokens are predicted, if not all are.
OF_WINDOWS = {"tokenizer": "tokenizer.name", "block_size": "model.block_size"}
DISTILLATION = ("objective.teacher", "objective.temperature", "objective.weight")


class NoRuns(UserError):
    """No folder has a run, a sweep or a search."""


@dataclass(frozen=True)
class Sweep:
    """The jobs that a sweep.json lists."""

    name: str
    jobs: list[Job]


@dataclass(frozen=True)
class Run:
    """One run directory. The content of a missing or broken file is empty.

    `config` is flat: dotted keys. `problems` describe broken files. `order` sorts runs as their
    sweep lists them.
    """

    path: Path
    config: dict[str, Any]
    manifest: dict[str, Any]
    result: dict[str, Any]
    evaluations: dict[str, Any]
    problems: list[str] = field(default_factory=list)
    order: tuple[Any, ...] = ()

    @property
    def seed(self) -> int | None:
        """The seed, from the config, else from the result."""
        seed = self.config.get("seed", self.result.get("seed"))
        return seed if isinstance(seed, int) else None

    @cached_property
    def status(self) -> str:
        """`status` in result.json, or without that running, killed or not started."""
        return str(self.result.get("status") or RunDirectory(self.path).unrecorded_status)

    @property
    def is_running(self) -> bool:
        """Whether a process of this machine trains it now."""
        return self.status == RUNNING

    @property
    def task(self) -> dict[str, Any] | None:
        """The objective with what else decides which tokens are predicted; None if unknown.

        These are its options, the tokenizer and the block size. Runs without one are of versions
        that had the causal one only.
        """
        if not (self.config or self.result):
            return None
        name = self.config.get("objective.name", self.result.get("objective", CAUSAL))
        keys = {key for key in self.config if key.startswith("objective.")}
        options = sorted(keys - {"objective.name", *DISTILLATION})
        if name == CAUSAL:
            return {"name": name}
        windows = {key: self.config.get(of) for key, of in OF_WINDOWS.items()}
        windows["vocabulary"] = self.manifest.get("vocabulary")
        return {
            "name": name,
            **{key.partition(".")[2]: self.config[key] for key in options},
        } | windows

    @property
    def loss_of(self) -> str | None:
        """Which tokens its losses are of; None if it has no result yet."""
        task = self.task
        is_causal = task is not None and task["name"] == CAUSAL
        return self.result.get("loss_of", EVERY_TOKEN if is_causal else None)

    @property
    def has_ended(self) -> bool:
        """Whether the run wrote its result."""
        return "status" in self.result

    @property
    def finished(self) -> bool:
        """Whether it trained to its last step and has a validation loss."""
        return self.result.get("status") == "finished" and self.number("val_loss") is not None

    @property
    def started(self) -> str:
        """The time of its first step, in ISO format; '' if unknown."""
        return str(self.manifest.get("started", ""))

    @property
    def stopped_by_patience(self) -> bool:
        """Whether `trainer.patience` ended it before its last step."""
        steps, last = self._recorded("steps"), finite(self.config.get("trainer.max_steps"))
        early = steps is not None and last is not None and steps < last
        return early and self.result.get("status") == "finished"

    def number(self, key: str) -> float | None:
        """Return a finite number of result.json by its dotted key, else None.

        The validation loss of a run that `trainer.patience` stopped is its lowest, that of its best
        checkpoint, since such a run ends only after the loss has risen.
        """
        if key == CONTINUATION and self.stopped_by_patience:
            return self._recorded(f"best_{key}")
        value = self._recorded(key)
        if key not in VALIDATION or not self.stopped_by_patience:
            return value
        best, last = self._recorded("best_val_loss"), self._recorded("val_loss")
        if value is None or best is None or last is None:
            return value
        return best if value == last else value * best / last  # bits/byte, in proportion

    @property
    def tokens_per_step(self) -> int | None:
        """The tokens of a training step; None if the config does not say."""
        batch = self.config.get("trainer.batch_size")
        block = self.config.get("model.block_size")
        return batch * block if isinstance(batch, int) and isinstance(block, int) else None

    @property
    def training_tokens(self) -> float | None:
        """The tokens of all its training steps; None if they are not recorded."""
        steps, per_step = self.number("steps"), self.tokens_per_step
        return None if steps is None or per_step is None else steps * per_step

    @property
    def training_flops(self) -> float | None:
        """The FLOPs of all its training steps; None if they are not recorded."""
        tokens, per_token = self.training_tokens, self.number("flops_per_token")
        return None if tokens is None or per_token is None else tokens * per_token

    def _recorded(self, key: str) -> float | None:
        value: Any = self.result
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return finite(value)

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        lines = read_json_lines(RunDirectory(self.path).metrics)
        return [line for line in lines if isinstance(line.get("step"), int)]

    def logged(self, key: str) -> dict[int, float]:
        """Return the finite values of a metric by step."""
        values = {line["step"]: finite(line.get(key)) for line in self.metrics if key in line}
        return {step: value for step, value in values.items() if value is not None}

    @cached_property
    def sample(self) -> tuple[int, str] | None:
        """The step and the text of the last sample."""
        try:
            text = RunDirectory(self.path).samples.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        parts = re.split(r"(?m)^--- step (\d+) ---\n", text)
        return (int(parts[-2]), parts[-1].rstrip("\n")) if len(parts) >= 3 else None


@dataclass(frozen=True)
class RunCollection:
    """All runs below the given folders, and the sweeps that list them.

    `searching`: folders of `minigpt tune` searches that are still running. `left_out`: folders with
    the search of a comparison, whose runs chose the values of the others.
    """

    runs: list[Run]
    sweeps: list[Sweep]
    problems: list[str]
    searching: list[Path]
    left_out: list[Path]

    @property
    def jobs(self) -> list[Job]:
        """Every job that a sweep.json lists."""
        return [job for sweep in self.sweeps for job in sweep.jobs]

    def by_objective(self) -> dict[str, RunCollection]:
        """Return the runs of each objective. The first has all that is of no run."""
        groups = grouped(self.runs, lambda run: run.task)
        first, *others = groups
        owners = {run.path.resolve(): name for name in others for run in groups[name]}
        of_runs = {p for name in others for run in groups[name] for p in run.problems}
        problems = [problem for problem in self.problems if problem not in of_runs]
        collections: dict[str, RunCollection] = {}
        collections[first] = replace(self, runs=groups[first], problems=problems)
        for name in others:
            problems = [problem for run in groups[name] for problem in run.problems]
            collections[name] = RunCollection(groups[name], self.sweeps, problems, [], [])
        for name, collection in collections.items():
            sweeps = [
                Sweep(s.name, [j for j in s.jobs if owners.get(j.path.resolve(), first) == name])
                for s in collection.sweeps
            ]
            collections[name] = replace(collection, sweeps=sweeps)
        return collections

    @property
    def has_ended(self) -> bool:
        """Whether each run, each job of a sweep and each search has ended."""
        ended = {run.path.resolve() for run in self.runs if run.has_ended}
        listed = [*(run.path for run in self.runs), *(job.path for job in self.jobs)]
        return not self.searching and {path.resolve() for path in listed} <= ended


def find_runs(names: Sequence[str]) -> RunCollection:
    """Read every run below the folders a user names; `latest` is the newest sweep or run.

    A run directory contains config.yaml or result.json. Of a comparison only the final runs are
    read, unless its search is named. Raises UserError for a missing folder, and NoRuns if no folder
    contains a run or a sweep.
    """
    folders = [find_folder(name) for name in names]
    problems: list[str] = []
    left_out = [file.parent / TRIALS for file in _group_files(folders, COMPARISON)]
    left_out = [folder for folder in left_out if folder.is_dir()]
    sweeps = _read_sweeps(folders, left_out, problems)
    listed = {job.path.resolve(): n for n, job in enumerate(j for s in sweeps for j in s.jobs)}
    found = (run.path for top in folders for run in run_directories(top))
    paths = {path.resolve(): path for path in found if not _is_below(path, left_out)}
    runs = [run for path in paths.values() if _is_run(run := read_run(path))]
    files = _group_files(folders, SEARCH)
    searching = [f.parent for f in files if try_read_json(f, problems).get("status") == "running"]
    if not (runs or listed or searching):
        raise NoRuns(
            f"{' '.join(names)}: contains no run (a folder with config.yaml or result.json); "
            f"give a run, a sweep or a folder of them, or `latest`"
        )
    for number, run in enumerate(runs):
        place = listed.get(run.path.resolve(), len(listed))
        runs[number] = replace(run, order=(place, run.started, _natural(str(run.path))))
    runs.sort(key=lambda run: run.order)
    problems += [problem for run in runs for problem in run.problems]
    return RunCollection(runs, sweeps, problems, searching, left_out)


def file_states(folders: Sequence[Path]) -> dict[Path, tuple[int, int]]:
    """Return the modification time and size of every file that a report reads."""
    states = {}
    found = (pair for top in folders for pair in folders_of_runs(top))
    for path in (folder / name for folder, names in found for name in FILES if name in names):
        with suppress(FileNotFoundError):  # deleted since it was listed
            stat = path.stat()
            states[path] = (stat.st_mtime_ns, stat.st_size)
    return states


def read_run(path: Path) -> Run:
    """Read one run directory; broken files are listed in its `problems`."""
    directory, problems = RunDirectory(path), []
    manifest = try_read_json(directory.manifest, problems)
    config = flat(_read_config(directory.config, problems))
    resolved = manifest.get("resolved", {}) if config else {}
    return Run(
        path=path,
        config=config | resolved,
        manifest=manifest,
        result=try_read_json(directory.result, problems),
        evaluations=try_read_json(path / "eval.json", problems),
        problems=problems,
    )


def _read_config(file: Path, problems: list[str]) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        text = file.read_bytes()
        content = yaml.load(text, Loader=_LOADER)
        if not isinstance(content, dict):
            raise ValueError("not a mapping")
        require_own_values(text.decode("utf-8"))
    except (yaml.YAMLError, ValueError, OSError) as error:
        problems.append(f"{file}: not readable YAML ({first_line(error)}); ignored")
        return {}
    rename_keys(content)
    return content


def _is_run(run: Run) -> bool:
    """Whether minigpt wrote the folder: other programs write a config.yaml too."""
    is_config = any(key.startswith("model.") for key in run.config)
    return is_config or bool(run.problems) or bool(run.result) or bool(run.manifest)


def _group_files(folders: Sequence[Path], name: str) -> list[Path]:
    """Return the files of this name in the folders of sweeps or searches, each once."""
    found = (file for top in folders for file in sorted(group_files(top, name)))
    return [*{file.resolve(): file for file in found}.values()]


def _is_below(path: Path, folders: Sequence[Path]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)


def _read_sweeps(
    folders: Sequence[Path], left_out: Sequence[Path], problems: list[str]
) -> list[Sweep]:
    """Read the sweep.json files in the folders and below."""
    sweeps = []
    for file in _group_files(folders, SWEEP):
        if _is_below(file, left_out):
            continue
        content = try_read_json(file, problems)
        if isinstance(content.get("jobs"), list):
            name = str(content.get("name") or file.parent.resolve().name)
            sweeps.append(Sweep(name, listed_jobs(content, file.parent)))
    return sweeps


def finite(value: Any) -> float | None:
    """Return a finite number as float, None for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        return float(value) if is_number and math.isfinite(value) else None
    except OverflowError:  # an integer too large for a float
        return None


def _natural(text: str) -> list[tuple[int, str]]:
    """Return a sort key that puts 10 after 9."""
    return [(int(p), "") if p.isdigit() else (0, p) for p in re.split(r"(\d+)", text)]


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml, if PyYAML was built with it
