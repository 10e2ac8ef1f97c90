"""The run directory: the only interface between commands."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from minigpt.errors import UserError, did_you_mean
from minigpt.export.hub import download, is_hub_name
from minigpt.export.shards import INDEX, WEIGHTS, has_weights
from minigpt.files import named, read_json, readable_directory, to_json, user_path, write_json

SWEEP, SEARCH = "sweep.json", "tune.json"  # written in the folder of a sweep or a search
COMPARISON = "compare.json"
TRIALS, FINAL = PHASES = ("search", "final")  # the two sweeps of a comparison
RUNS = Path("runs")  # the same as in configs/runtime.yaml; `latest` is the newest run below it
RUNNING, KILLED, NOT_STARTED = "running", "killed", "not started"  # statuses without a result.json
PEEK_SECONDS = 0.2  # `is_running` holds the lock for an instant
BUSY = "another process is training this run; wait for it or stop it first"


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
        self.lock = path / ".lock"
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
    def is_running(self) -> bool:
        """Whether a process of this machine holds the lock: it trains the run."""
        if not self.lock.exists():
            return False
        try:
            with FileLock(self.lock, timeout=0):
                return False
        except Timeout:
            return True
        except OSError:  # a read-only copy
            return False

    def require_not_running(self) -> None:
        """Raise Busy if a process trains the run."""
        if self.is_running:
            raise Busy(f"{self.path}: {BUSY}")

    @property
    def has_trained(self) -> bool:
        """Whether it has logged a step or saved a checkpoint."""
        logged = self.metrics.is_file() and self.metrics.stat().st_size > 0
        return logged or any(readable_directory(path).is_dir() for path in (self.last, self.best))

    @property
    def has_begun(self) -> bool:
        """Whether `latest` may be this run: it can be resumed, and has trained or is running."""
        return self.config.is_file() and (self.has_trained or self.is_running)

    @property
    def unrecorded_status(self) -> str:
        """The status of a run without a result.json: running, killed or not started."""
        if self.is_running:
            return RUNNING
        return KILLED if self.has_trained else NOT_STARTED

    @property
    def in_group(self) -> bool:
        """Whether it is a run of a sweep or a search."""
        return any((self.path.parent / file).is_file() for file in (SWEEP, SEARCH))

    @property
    def job_type(self) -> str:
        """What trains it, from the files of the folders above: compare, search, sweep or train."""
        folder = self.path.parent
        is_compared = (folder.parent / COMPARISON).is_file()
        if (folder / SEARCH).is_file() or (is_compared and folder.name == TRIALS):
            return "search"
        if is_compared and folder.name == FINAL:
            return "compare"
        return "sweep" if self.in_group else "train"

    @property
    def data_sha256(self) -> str | None:
        """The sha256 of the text the run was trained on. Raises UserError without a manifest.

        None: unknown.
        """
        return str(self.read_json(self.manifest).get("data_sha256"))

    @contextmanager
    def locked(self, seconds: float = PEEK_SECONDS) -> Iterator[None]:
        """Hold the run's lock, so that no other process trains it.

        The operating system releases the lock of a killed process. Raises Busy if another process
        still holds it after `seconds`.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.lock)
        try:
            lock.acquire(timeout=seconds)
        except Timeout:
            raise Busy(f"{self.path}: {BUSY}") from None
        try:
            yield
        finally:
            lock.release()

    def require_own_files(self, why: str, pattern: str = "*") -> None:
        """Raise UserError, with `why`, for an entry or checkpoint that is a link to outside."""
        top, checkpoints = self.path.resolve(), self.last.parent
        for path in (*self.path.glob(pattern), checkpoints, *checkpoints.glob("*")):
            if not path.resolve().is_relative_to(top):
                raise UserError(f"{path}: is a link to {path.resolve()}, {why}")

    def write(self, path: Path, values: dict[str, Any]) -> None:
        """Write a JSON file of the run, atomically, with a digest of the values."""
        write_json(path, values, digest=True)

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

    def _append(self, path: Path, text: str) -> None:
        with named(path), path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(text)


class ObservedRun(RunDirectory):
    """A run that another process trains together with this one, and alone writes.

    What this process would write is dropped: it is the same.
    """

    @contextmanager
    def locked(self, seconds: float = PEEK_SECONDS) -> Iterator[None]:
        yield

    def write(self, path: Path, values: dict[str, Any]) -> None:
        pass

    def _append(self, path: Path, text: str) -> None:
        pass


class ExportedFolder(RunDirectory):
    """A folder that `minigpt export` wrote, or another one in the format of transformers.

    It has one set of weights, and no log. Evaluations are written to it as to a run.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.manifest = path / "minigpt.json"  # missing in a folder of other origin

    def checkpoint(self, name: str) -> Path:
        return self.path

    @property
    def data_sha256(self) -> str | None:
        return self.read_optional_json(self.manifest).get("data_sha256")


def is_exported(path: Path) -> bool:
    """Return whether a folder is an ExportedFolder, not a run."""
    is_run = (path / "config.yaml").is_file()
    return not is_run and (path / "config.json").is_file() and has_weights(path)


def find_run(name: str, key: str = "RUN") -> RunDirectory:
    """Return the run directory at a path, or for `latest` the newest one below runs/.

    Raises UserError with `key`, the option or argument that names it, if it is not a run.
    """
    if name == "latest":
        return _latest_run()
    path = user_path(key, name)
    if not name:
        raise UserError(
            f"{key}: the run's name is empty; give a directory like runs/..., or latest"
        )
    if not (path / "config.yaml").is_file():
        reason = "not a run: no config.yaml" if path.is_dir() else "no such run directory"
        raise UserError(f"{key}={name}: {reason}; give a directory like runs/..., or `latest`")
    return RunDirectory(path)


def find_trained(name: str, key: str = "RUN") -> RunDirectory:
    """Return the run of `find_run`, or the ExportedFolder at a path."""
    if name in ("", "latest"):
        return find_run(name, key)
    path = user_path(key, name)
    if is_exported(path):
        return ExportedFolder(path)
    if (path / "config.json").is_file() and not (path / "config.yaml").is_file():
        raise UserError(f"{key}={name}: has config.json, but no {WEIGHTS} or {INDEX}; add it")
    return find_run(name, key)


def find_base(key: str, name: str) -> RunDirectory:
    """Return the run or ExportedFolder that the option `key` names. Raises UserError with it.

    A name of the Hugging Face Hub is downloaded.
    """
    if not name:
        raise UserError(f"{key}: empty; give {key}=PATH of a run, or of a folder of transformers")
    path = user_path(key, name)
    if name == "latest" or path.is_dir():
        return find_trained(name, key)
    if path.exists():
        raise UserError(f"{key}={name}: is a file; give a run, or a folder of transformers")
    if is_hub_name(name):
        return find_trained(str(download(key, name)), key)
    remedy = "give a run, a folder of transformers, or OWNER/NAME of the Hugging Face Hub"
    raise UserError(f"{key}={name}: no such run or folder of transformers; {remedy}")


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


def run_directories(top: Path) -> Iterator[RunDirectory]:
    """Yield the run directories below and including `top`; a run contains no other run.

    A run directory contains config.yaml or result.json.
    """
    for folder, files in folders_of_runs(top):
        if _is_run(files):
            yield RunDirectory(folder)


def group_files(top: Path, name: str) -> Iterator[Path]:
    """Yield the files SWEEP or SEARCH, as `name` says, in `top` and the folders of runs below."""
    return (folder / name for folder, files in folders_of_runs(top) if name in files)


def newest_first(runs: Iterable[RunDirectory]) -> list[RunDirectory]:
    """Sort runs by the time of their last start or resume, which writes the manifest."""

    def started(run: RunDirectory) -> tuple[float, Path]:
        try:
            return run.manifest.stat().st_mtime, run.path
        except FileNotFoundError:  # a job that failed before it started
            return 0.0, run.path

    return sorted(runs, key=started, reverse=True)


def _is_run(files: set[str]) -> bool:
    return bool({"config.yaml", "result.json"} & files)


def folders_of_runs(top: Path) -> Iterator[tuple[Path, set[str]]]:
    """Yield each folder with the names of its files, but not those inside runs and hidden ones."""
    seen = set()  # a link may lead back
    for parent, folders, names in os.walk(top, followlinks=True):
        stat, files = os.stat(parent), {*names}
        if _is_run(files) or (stat.st_dev, stat.st_ino) in seen:
            folders.clear()
        if (stat.st_dev, stat.st_ino) not in seen:
            seen.add((stat.st_dev, stat.st_ino))
            yield Path(parent), files
        folders[:] = [folder for folder in folders if not folder.startswith(".")]


def _latest_run() -> RunDirectory:
    """Return the newest run that has begun; say so if a newer one has not."""
    runs = newest_first(run for run in run_directories(RUNS) if run.manifest.is_file())
    for run in runs:
        if run.has_begun:
            if run is not runs[0]:
                why = f"the newest, {runs[0].path}, has logged no step"
                print(f"minigpt: latest is {run.path}; {why}", file=sys.stderr)
            return run
    none = f"no run under {RUNS}/ has logged a step" if runs else f"no run under {RUNS}/ yet"
    raise UserError(f"latest: {none}; start one with `minigpt train`")
