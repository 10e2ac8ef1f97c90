"""The run directory: the only interface between commands."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from minigpt.errors import UserError, did_you_mean
from minigpt.files import read_json, to_json, user_path

SWEEP, SEARCH = "sweep.json", "tune.json"  # written in the folder of a sweep or a search
LOCK = ".lock"
PROBE_SECONDS = 0.2  # `is_training` in another process may hold a lock for an instant
RUNS = Path("runs")  # the same as in configs/runtime.yaml; `latest` is the newest run below it


class Busy(UserError):
    """Another process holds the lock of a run."""


class RunDirectory:
    """Paths and files of one run. Files are replaced atomically; logs are appended to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.manifest = path / "manifest.json"
        self.tokenizer = path / "tokenizer.json"
        self.metrics = path / "metrics.jsonl"
        self.samples = path / "samples.txt"
        self.result = path / "result.json"
        self.evaluations = path / "eval.json"
        self.last = path / "checkpoints" / "last"
        self.best = path / "checkpoints" / "best"

    def checkpoint(self, name: str) -> Path:
        """Return the folder of the checkpoint "best" or "last"."""
        return self.path / "checkpoints" / name

    @property
    def status(self) -> str | None:
        """`status` in result.json; None without that file. Raises UserError if it is broken."""
        return self.read_optional_json(self.result).get("status")

    @property
    def finished(self) -> bool:
        """Whether it trained to its last step. Raises UserError if result.json is broken."""
        return self.status == "finished"

    @property
    def began(self) -> bool:
        """Whether it has trained a step, or may: not a run that failed during its set-up."""
        try:
            ended = self.status not in (None, "finished")
        except UserError:  # result.json is broken
            ended = False
        steps = self.metrics.is_file() and self.metrics.stat().st_size > 0
        return self.config.is_file() and (steps or self.last.is_dir() or not ended)

    @property
    def is_training(self) -> bool:
        """Whether a process trains it now: another process holds the lock."""
        if not (self.path / LOCK).is_file():
            return False
        try:
            with self.locked(0.0):
                return False
        except Busy:
            return True
        except OSError:  # a folder that cannot be written: no process trains there
            return False

    @property
    def in_group(self) -> bool:
        """Whether it is a run of a sweep or a search."""
        return any((self.path.parent / file).is_file() for file in (SWEEP, SEARCH))

    @property
    def data_sha256(self) -> str:
        """The sha256 of the text the run was trained on. Raises UserError without a manifest."""
        return str(self.read_json(self.manifest).get("data_sha256"))

    @contextmanager
    def locked(self, seconds: float = PROBE_SECONDS) -> Iterator[None]:
        """Hold the run's lock, so that no other process trains it.

        The operating system releases the lock of a killed process. Raises Busy if another process
        still holds it after `seconds`.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / LOCK)
        try:
            lock.acquire(timeout=seconds)
        except Timeout:
            why = "another process is training this run; wait for it or stop it first"
            raise Busy(f"{self.path}: {why}") from None
        try:
            yield
        finally:
            lock.release()

    def require_own_files(self) -> None:
        """Raise UserError for a file or checkpoint that is a link to outside of the directory."""
        top, checkpoints = self.path.resolve(), self.last.parent
        for path in (*self.path.glob("*.*"), checkpoints, *checkpoints.glob("*")):
            if not path.resolve().is_relative_to(top):
                raise UserError(
                    f"{path}: is a link to {path.resolve()}, which a resumed run would change; "
                    f"replace it by a copy"
                )

    def append_metrics(self, values: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        self._append(self.metrics, to_json(values) + "\n")

    def append_sample(self, step: int, text: str) -> None:
        """Append one generated text to samples.txt."""
        self._append(self.samples, f"--- step {step} ---\n{text}\n\n")

    def log_sizes(self) -> dict[str, int]:
        """Return the size of each log in bytes, for `rewind_logs`."""
        return {file.name: file.stat().st_size if file.exists() else 0 for file in self._logs()}

    def rewind_logs(self, sizes: dict[str, int]) -> None:
        """Truncate the logs to earlier sizes: a resumed run writes the rest again."""
        for file in self._logs():
            if file.exists():
                with file.open("r+b") as handle:
                    handle.truncate(min(sizes.get(file.name, 0), file.stat().st_size))

    def read_json(self, path: Path) -> dict[str, Any]:
        """Return the object in a JSON file. Raises UserError if it is missing or broken."""
        try:
            return read_json(path)
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; has this run started?") from None
        except ValueError as error:
            raise UserError(f"{path}: broken JSON ({error}); restore it or train again") from None

    def read_optional_json(self, path: Path) -> dict[str, Any]:
        """Return the object in a JSON file, or {} if missing. Raises UserError if it is broken."""
        return self.read_json(path) if path.exists() else {}

    def _logs(self) -> tuple[Path, Path]:
        return self.metrics, self.samples

    @staticmethod
    def _append(path: Path, text: str) -> None:
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(text)


def find_run(name: str) -> RunDirectory:
    """Return the run directory at a path, or for `latest` the newest one below runs/.

    Raises UserError if it is not a run.
    """
    if name == "latest":
        return _latest_run()
    path = user_path("RUN", name)
    if not name:
        raise UserError("the run's name is empty; give a directory like runs/..., or `latest`")
    if not (path / "config.yaml").is_file():
        reason = "not a run: no config.yaml" if path.is_dir() else "no such run directory"
        raise UserError(f"{name}: {reason}; give a directory like runs/..., or `latest`")
    return RunDirectory(path)


def find_folder(name: str) -> Path:
    """Return the folder of runs with this name.

    `latest` is the sweep or search of the newest run, or that run's own directory. Raises UserError
    if it is not a folder.
    """
    if name == "latest":
        run = _latest_run()
        return run.path.parent if run.in_group else run.path
    path = user_path("DIR", name)
    if path.is_file():
        raise UserError(f"DIR={name}: is a file; give the folder that contains it, {path.parent}")
    if not name or not path.is_dir():
        siblings = [str(entry) for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        remedy = f"Give a run, a sweep or a folder of them, such as {RUNS}/, or `latest`"
        raise UserError(f"DIR={name}: no such folder.{did_you_mean(str(path), siblings)} {remedy}")
    return path


def run_directories(top: Path) -> Iterator[Path]:
    """Yield the run directories below and including `top`; a run contains no other run.

    A run directory contains config.yaml or result.json. Hidden folders are skipped.
    """
    for parent, folders, files in os.walk(top, followlinks=True):
        if {"config.yaml", "result.json"} & {*files}:
            folders.clear()
            yield Path(parent)
        folders[:] = sorted((f for f in folders if not f.startswith(".")), key=natural)


def natural(text: str) -> list[tuple[int, str]]:
    """Return a sort key that puts 10 after 9."""
    return [(int(p), "") if p.isdigit() else (0, p) for p in re.split(r"(\d+)", text)]


def _latest_run() -> RunDirectory:
    """Return the newest run that began, by its last (re)start. Raises UserError if none did."""
    runs = (RunDirectory(path) for path in run_directories(RUNS))
    starts = [(run.manifest.stat().st_mtime, run) for run in runs if run.manifest.is_file()]
    for _, run in sorted(starts, key=lambda start: start[0], reverse=True):
        if run.began:
            return run
    raise UserError(f"latest: no run under {RUNS}/ yet; start one with `minigpt train`")
