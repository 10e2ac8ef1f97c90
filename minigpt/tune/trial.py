"""One trial: an ordinary run, trained in a Ray actor one evaluation at a time.

All that outlives the actor is in the run directory. A trial whose actor is killed goes on from its
own last checkpoint; what Ray Tune keeps as its checkpoint only says whose weights to go on with.
"""

from __future__ import annotations

import math
import os
import platform
import shutil
import threading
import uuid
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from queue import Empty, SimpleQueue
from signal import SIGINT
from typing import Any

from ray import tune

from minigpt.errors import Failure, UserError, first_line
from minigpt.files import atomic_directory, readable_directory, write_bytes, write_json
from minigpt.run.directory import RunDirectory
from minigpt.tune.records import TRIAL
from minigpt.tune.space import Values

STOP_FILE = ".stop"  # in the search's folder: its trials save and end
POLL_SECONDS = 0.3
LOCK_SECONDS = 60.0  # a killed actor, or one of a killed search, may still be dying
HANDED_OVER = "handed_over.json"  # in Ray Tune's checkpoint


@dataclass(frozen=True)
class Job:
    """What all trials of a search share. Paths are of a file system that every machine sees."""

    folder: str
    working_directory: str
    fixed: list[str]  # overrides of every trial
    command: list[str]
    metric: str
    eval_every: int | None
    population: bool  # trials copy each other

    def evaluations(self, step: int) -> int:
        """How many evaluations a step is worth: the unit that schedulers count in."""
        return math.ceil(step / self.eval_every) if self.eval_every else 1


class Order(Enum):
    """What the actor tells its training, which waits after each evaluation."""

    GO_ON = "go on"
    SAVE = "save"
    END = "end"


class Trial(tune.Trainable):
    """Ray Tune's side of a run. A step is the training up to the next evaluation."""

    def setup(self, config: dict[str, Any]) -> None:
        """Learn which run this is; training begins with the first step."""
        self.job = Job(**config.pop("job"))
        config.pop("run")  # of whom it copied, once it has copied; its own name does not change
        self.values: Values = config
        os.chdir(self.job.working_directory)  # relative paths mean what they meant to the user
        self.directory = RunDirectory(Path(self.job.folder) / self.trial_name)
        self.directory.path.mkdir(parents=True, exist_ok=True)
        self.record = directory_record(self.directory)
        self._write_record()
        self.training: Training | None = None

    def _write_record(self) -> None:
        self.record |= {
            "number": int(self.trial_name.partition("_")[0]),
            "values": self.values,
            "pid": os.getpid(),
            "host": platform.node(),
        }
        write_json(self.directory.path / TRIAL, self.record)

    def step(self) -> dict[str, Any]:
        """Train to the next evaluation and report it, or the end of the run.

        Raises whatever is neither a wrong config nor a training that failed: Ray tries again.
        """
        if self.training is None:
            self.training = Training(self.job, self.directory, self.values)
            self.training.start()
        else:
            self.training.orders.put(Order.GO_ON)
        report = self.training.next_report()
        if "error" in report and self.directory.result.exists() is False:
            self.record["error"] = report["error"]  # it never began
            self._write_record()
        return report

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Save the run where it stands; for a population also hand over a copy of it."""
        assert self.training is not None
        self.training.save()
        training = self.training.latest
        handed_over = {
            "id": uuid.uuid4().hex,
            "run": self.trial_name,
            "step": training["step"],
            "seconds": training["seconds"],
        }
        target = Path(checkpoint_dir)
        if self.job.population:
            copy_run(self.directory, RunDirectory(target))
        write_json(target / HANDED_OVER, handed_over)

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Go on from another trial's run, if the checkpoint is another's; own ones are in place."""
        source = RunDirectory(Path(checkpoint))
        handed_over = source.read_json(Path(checkpoint) / HANDED_OVER)
        adopted = self.record.setdefault("adopted", [])
        if handed_over["run"] == self.trial_name or any(
            entry["id"] == handed_over["id"] for entry in adopted
        ):
            return
        with self.directory.locked(LOCK_SECONDS):
            pass
        left = self.directory.read_json(self.directory.result)  # written as it was paused
        copy_run(source, self.directory)
        adopted.append(
            handed_over
            | {"left_step": left["steps"], "left_seconds": left["seconds"], "values": self.values}
        )
        self._write_record()  # last: a kill before this copies again

    def cleanup(self) -> None:
        """End the run as it stands, saved, and wait until its result is written."""
        if self.training is not None:
            self.training.orders.put(Order.END)
            self.training.join()


class Training(threading.Thread):
    """Trains a run beside the actor's own thread, which Ray needs."""

    def __init__(self, job: Job, directory: RunDirectory, values: Values) -> None:
        from minigpt.train.control import Stop

        super().__init__(daemon=True)
        self.job, self.directory, self.values = job, directory, values
        self.orders: SimpleQueue[Order] = SimpleQueue()
        self.reports: SimpleQueue[dict[str, Any] | Exception] = SimpleQueue()
        self.saved: SimpleQueue[None] = SimpleQueue()
        self.latest: dict[str, Any] = {}
        self.stop = Stop()

    def next_report(self) -> dict[str, Any]:
        """Wait for an evaluation or the end. Raises what ended the training unexpectedly."""
        stop_file = Path(self.job.folder) / STOP_FILE
        while True:
            try:
                report = self.reports.get(timeout=POLL_SECONDS)
            except Empty:
                if stop_file.exists():
                    self.stop.number = SIGINT
                continue
            if isinstance(report, Exception):
                raise report
            self.latest = report
            return report

    def save(self) -> None:
        """Have the waiting training write its checkpoint."""
        self.orders.put(Order.SAVE)
        self.saved.get()

    def run(self) -> None:
        try:
            self._train()
            result = self.directory.read_json(self.directory.result)
            self.reports.put(self._report(result["steps"], result) | {"done": True})
        except (UserError, Failure) as error:  # would happen again
            self.reports.put({"status": "failed", "error": first_line(error), "done": True})
        except KeyboardInterrupt:
            self.reports.put({"status": "interrupted", "done": True})
        except Exception as error:
            self.reports.put(error)

    def _train(self) -> None:
        from minigpt.config.compose import composed_config, load_config
        from minigpt.train.session import train_run
        from minigpt.tune.space import Space

        config = composed_config(Space(self.job.fixed, {}).overrides(self.values))
        resumed = self.directory.config.exists()
        if resumed:
            with self.directory.locked(LOCK_SECONDS):
                pass
            if self.directory.status == "finished":  # killed before it was reported
                return
            saved = load_config(self.directory.config)
            # Of a population the optimizer's numbers change; all else is as it began.
            config = replace(saved, optimizer=config.optimizer) if self.job.population else saved
        train_run(
            config,
            self.directory,
            resumed=resumed,
            command=self.job.command,
            on_evaluation=self._evaluated,
            stop=self.stop,
        )

    def _evaluated(self, trainer: Any) -> None:
        """Report an evaluation, then do as ordered. The last one is reported with the result."""
        from minigpt.train.control import Stopped

        progress = trainer.progress
        if progress.step == trainer.options.max_steps:
            return
        self.reports.put(self._report(progress.step, asdict(progress)) | {"status": "running"})
        status = "stopped"
        while (order := self.orders.get()) is not Order.GO_ON:
            trainer.save()
            if order is Order.END:
                stopping = (Path(self.job.folder) / STOP_FILE).exists()
                raise Stopped("interrupted" if stopping else status)
            status = "paused"
            self.saved.put(None)

    def _report(self, step: int, numbers: dict[str, Any]) -> dict[str, Any]:
        return {
            "step": step,
            "evaluations": self.job.evaluations(step),
            self.job.metric: numbers[self.job.metric],
            "seconds": numbers["seconds"],
            "status": numbers.get("status"),
        }


def directory_record(directory: RunDirectory) -> dict[str, Any]:
    """What trial.json says already; empty for a new trial."""
    file = directory.path / TRIAL
    return directory.read_json(file) if file.exists() else {}


def copy_run(source: RunDirectory, target: RunDirectory) -> None:
    """Copy what a run has learned and logged, so that the copy is one run from its first step."""
    for name in ("best", "last"):
        checkpoint = readable_directory(getattr(source, name))
        if checkpoint.exists():
            with atomic_directory(getattr(target, name)) as directory:
                shutil.copytree(checkpoint, directory, dirs_exist_ok=True)
    for name in ("metrics", "samples"):
        log = getattr(source, name)
        write_bytes(getattr(target, name), log.read_bytes() if log.exists() else b"")
