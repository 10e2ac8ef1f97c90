"""One job of a sweep, in whatever process a launcher runs it."""

from __future__ import annotations

import getpass
import os
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from filelock import FileLock, Timeout

from minigpt.config.hydra_main import job_number
from minigpt.errors import UserError, first_line
from minigpt.files import write_json
from minigpt.run.directory import Busy, RunDirectory
from minigpt.sweep.plan import Job

if TYPE_CHECKING:
    from minigpt.train.control import Stop

LOG = "output.log"
POLL_SECONDS = 0.5
LOCK_SECONDS = 10.0  # in which a run whose sweep was killed saves itself
FAILED = "failed"


class SweepJob:
    """What Hydra calls a job's function: trains, and never raises, so that a sweep goes on.

    The file `stop` ends a sweep: no job starts once it is there, and those that run save themselves
    and end. It holds the number of a signal, or FAILED.
    """

    def __init__(self, jobs: list[Job], stop: Path, fail_fast: bool, threads: int | None) -> None:
        self.jobs, self.stop, self.fail_fast, self.threads = jobs, stop, fail_fast, threads
        self.sweeper = os.getpid()

    def __call__(self, composed: Any) -> None:
        """Train the job whose number Hydra says; its config was made when the sweep was planned."""
        from minigpt.train.control import Stop
        from minigpt.train.session import train_run

        job, stop = self.jobs[job_number()], Stop()
        if self.stop.exists():
            return
        with self.output(job) as output, output.caught():
            training = self.training(job)
            if training is not None:
                with self.watching(stop), a_gpu_of_its_own():
                    train_run(**training, stop=stop)

    def end(self, why: str) -> None:
        """Let no job start, and those that run end; the first reason stays."""
        if not self.stop.exists():
            self.stop.write_text(why)

    @contextmanager
    def output(self, job: Job) -> Iterator[Output]:
        """Where a job prints."""
        job.path.mkdir(parents=True, exist_ok=True)
        with (job.path / LOG).open("a", encoding="utf-8", buffering=1) as log:
            yield Output(self, job, log)

    def training(self, job: Job) -> dict[str, Any] | None:
        """What `train_run` and `training_session` are to be given for a job; None if it is done.

        Raises UserError for a job whose config is none, and Busy where another process has the run.
        """
        from minigpt.config.compose import load_config

        run, config = job.run, job.config
        if isinstance(config, UserError):
            raise config
        with run.locked(LOCK_SECONDS):
            pass
        if run.status == "finished":  # by the same command elsewhere
            return None
        resumed = run.config.exists()
        if resumed:
            config = load_config(run.config)
        elif config.trainer.threads is None:
            config = replace(config, trainer=replace(config.trainer, threads=self.threads))
        return {
            "config": config,
            "run": run,
            "resumed": resumed,
            "command": ["minigpt", "train", *job.overrides],
            "facts": {} if job.matched is None else {"match": job.matched},
        }

    @contextmanager
    def watching(self, stop: Stop) -> Iterator[None]:
        """Ask the run to stop when the sweep does, or when the process that began it is gone."""
        ended = threading.Event()
        parent = os.getppid()

        def watch() -> None:
            while not ended.wait(POLL_SECONDS):
                orphan = os.getpid() != self.sweeper and os.getppid() != parent
                if stop.number is None and (orphan or self.stop.exists()):
                    stop.number = signal.SIGTERM

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


@dataclass
class Output:
    """What a job prints and raises: into its log, and no further."""

    sweep: SweepJob
    job: Job
    log: TextIO
    began: float = field(default_factory=time.time)

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Print into the log, and end the job, not the sweep, by what is raised in here."""
        with redirect_stdout(self.log), redirect_stderr(self.log):
            try:
                yield
            except KeyboardInterrupt as stop:
                self.sweep.end(str(getattr(stop, "number", int(signal.SIGINT))))
            except Busy as error:  # the same command elsewhere: it will finish the run
                print(error)
            except Exception as error:
                traceback.print_exc()
                _record(self.job.run, error, self.began)
                if self.sweep.fail_fast:
                    self.sweep.end(FAILED)


def _record(run: RunDirectory, error: Exception, began: float) -> None:
    """Say in result.json how a job ended, where the run did not come to say it."""
    if run.result.exists() and run.result.stat().st_mtime >= began:
        return
    with suppress(UserError):  # a broken file gives way
        if run.status == "finished":
            return
    write_json(run.result, {"status": "failed", "error": first_line(error)})


@contextmanager
def a_gpu_of_its_own() -> Iterator[None]:
    """Compute on a GPU that no other job of this machine has, where there are several."""
    import torch

    count = torch.cuda.device_count()
    if count < 2:
        yield
        return
    ids = [str(torch.cuda.get_device_properties(index).uuid) for index in range(count)]
    # A folder of one user: no other may open the files in it.
    folder = Path(tempfile.gettempdir()) / f"minigpt_{getpass.getuser()}"
    folder.mkdir(exist_ok=True)
    with leased(ids, folder) as index:
        torch.cuda.set_device(index)
        yield


@contextmanager
def leased(names: list[str], folder: Path) -> Iterator[int]:
    """The place in `names` of one that no other process has leased; waits for one to come free.

    The system frees the lease of a killed process.
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
