"""Run one job of a sweep, in the process chosen by the launcher."""

from __future__ import annotations

import getpass
import os
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TextIO

import torch
from filelock import FileLock, Timeout

from minigpt.config.hydra_main import job_number
from minigpt.config.saved import read_config
from minigpt.errors import UserError, first_line
from minigpt.files import file_state, try_read_json
from minigpt.run.directory import Busy, RunDirectory
from minigpt.sweep.plan import PlannedJob
from minigpt.torchrun import patched_environment
from minigpt.train.compilation import Choice
from minigpt.train.control import StopRequest, polling

LOG = "output.log"
POLL_SECONDS = 0.5
LOCK_SECONDS = 10.0  # wait for a run of a killed sweep to save its checkpoint
FAILED = "failed"
WORKING = threading.Lock()  # held while this process runs a job


class SweepJob:
    """Called by Hydra's launchers for each job. It never raises, so that the sweep continues.

    While `stop_file` exists, no job starts, and running jobs save a checkpoint and exit. It
    contains the number of a signal, or FAILED.
    """

    def __init__(
        self,
        jobs: list[PlannedJob],
        stop_file: Path,
        fail_fast: bool,
        threads: int | None,
        compilation: Choice | None,
    ) -> None:
        self.jobs, self.stop_file = jobs, stop_file
        self.fail_fast, self.threads, self.compilation = fail_fast, threads, compilation
        self.sweeper_pid, self.working_directory = os.getpid(), Path.cwd()

    def __call__(self, composed: Any) -> None:
        """Train the job with Hydra's job number, with the config composed by `plan`."""
        from minigpt.train.launch import start_run

        os.chdir(self.working_directory)  # for relative paths; a worker starts in another one
        parent = os.getppid()
        job, stop = self.jobs[job_number()], StopRequest()
        if self.stop_file.exists():
            return
        if os.getpid() != self.sweeper_pid:
            end_with(parent)
        with WORKING, self.output(job) as output, output.caught():
            training = self.training(job)
            if training is not None:
                n = training["config"].trainer.processes or 1
                with self.watching(stop, parent), leased_gpus(n):
                    start_run(**training, stop=stop, output=job.path / LOG)

    def is_orphan(self, parent: int) -> bool:
        """Return whether the process that started this one, `parent`, has exited."""
        return os.getpid() != self.sweeper_pid and os.getppid() != parent

    def request_stop(self, reason: str) -> None:
        """Write the stop file, unless it exists."""
        if not self.stop_file.exists():
            self.stop_file.write_text(reason)

    @contextmanager
    def output(self, job: PlannedJob) -> Iterator[Output]:
        """Open the job's log."""
        job.path.mkdir(parents=True, exist_ok=True)
        log = (job.path / LOG).open("a", encoding="utf-8", buffering=1)
        try:
            yield Output(self, job, log)
        finally:
            with suppress(OSError):  # a full disk, which has failed the job
                log.close()

    def training(self, job: PlannedJob) -> dict[str, Any] | None:
        """Return the arguments of `start_run`, None if the run finished.

        Raises UserError for a job without a config, and Busy if another process trains the run.
        """
        run, config = job.run, job.config
        if isinstance(config, UserError):
            raise config
        with run.locked(LOCK_SECONDS):
            pass
        if run.finished:  # the same command in another process finished it
            return None
        resumed = run.config.exists()
        if resumed:
            config = read_config(run.config)
        return {
            "config": config,
            "run": run,
            "resumed": resumed,
            "command": ["minigpt", "train", *job.overrides],
            "threads": self.threads,
            "compilation": self.compilation,
            "facts": job.facts,
        }

    @contextmanager
    def watching(self, stop: StopRequest, parent: int) -> Iterator[None]:
        """Stop the run when the stop file appears, or when the `parent` process exits."""

        def check() -> bool:
            if self.stop_file.exists() or self.is_orphan(parent):
                stop.number = stop.number or signal.SIGTERM
            return stop.number is not None

        with polling(check, POLL_SECONDS):
            yield


@cache
def end_with(parent: int) -> None:
    """End this process, a worker, soon after its parent; a job that it runs is saved before."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        with WORKING:
            os._exit(0)  # nothing else ends a worker of joblib for minutes

    threading.Thread(target=watch, daemon=True).start()


@dataclass
class Output:
    """Redirects the output and exceptions of a job into its log."""

    sweep: SweepJob
    job: PlannedJob
    log: TextIO

    def __post_init__(self) -> None:
        self.result_before = file_state(self.job.run.result)

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Redirect stdout and stderr into the log, and catch exceptions, which end only the job."""
        with redirect_stdout(self.log), redirect_stderr(self.log):
            try:
                yield
            except KeyboardInterrupt as stop:
                self.sweep.request_stop(str(getattr(stop, "number", int(signal.SIGINT))))
            except Busy as error:  # the same command in another process will finish the run
                print(error)
            except BaseException as error:  # also what is no Exception, as a panic in Rust
                with suppress(OSError):  # the log is what could not be written
                    traceback.print_exc()
                _record_failure(self.job.run, error, self.result_before)
                if self.sweep.fail_fast:
                    self.sweep.request_stop(FAILED)


def _record_failure(
    run: RunDirectory, error: BaseException, before: tuple[int, ...] | None
) -> None:
    """Write result.json for a job that failed before its run wrote one.

    `before`: the `file_state` of result.json when the job began.
    """
    if file_state(run.result) not in (None, before):
        return
    if try_read_json(run.result).get("status") == "finished":  # replace a broken file
        return
    run.write(run.result, {"status": "failed", "error": first_line(error)})


@contextmanager
def leased_gpus(n: int) -> Iterator[None]:
    """On a machine with several GPUs, use `n` that no other job uses.

    More than one are for other processes, which this one starts: they see only these.
    """
    count = torch.cuda.device_count()
    if count < 2:
        yield
        return
    ids = [str(torch.cuda.get_device_properties(index).uuid) for index in range(count)]
    # One folder for each user: users cannot open each other's lock files.
    folder = Path(tempfile.gettempdir()) / f"minigpt_{getpass.getuser()}"
    folder.mkdir(exist_ok=True)
    with ExitStack() as leases:
        if n == 1:
            torch.cuda.set_device(leases.enter_context(leased(ids, folder)))
        else:
            # One job at a time takes several, so that none waits for what another one has taken.
            with FileLock(folder / "several.lock"):
                taken = [leases.enter_context(leased(ids, folder)) for _ in range(min(n, count))]
            visible = ",".join(f"GPU-{ids[index].removeprefix('GPU-')}" for index in taken)
            leases.enter_context(patched_environment("CUDA_VISIBLE_DEVICES", visible))
        yield


@contextmanager
def leased(names: list[str], folder: Path) -> Iterator[int]:
    """Yield the index of a name that no other process has leased; wait until there is one.

    The operating system releases the lease of a killed process.
    """
    while True:
        for index, name in enumerate(names):
            lock = FileLock(folder / f"{name}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            try:
                yield index
            finally:
                lock.release()
            return
        time.sleep(POLL_SECONDS)
