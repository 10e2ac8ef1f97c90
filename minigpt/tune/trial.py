"""A trial: an ordinary run, trained in a Ray actor from one evaluation to the next.

The run directory has all state. If the actor is killed, the trial resumes from the run's last
checkpoint. In a population, Ray Tune's checkpoint names the run to copy.
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

from minigpt.config.overrides import compose_overrides
from minigpt.config.saved import read_config
from minigpt.errors import Failure, UserError, first_line
from minigpt.files import atomic_directory, readable_directory, write_bytes, write_json
from minigpt.report.runs import read_run
from minigpt.run.directory import RunDirectory
from minigpt.run.initial import new_config
from minigpt.train.compilation import Choice
from minigpt.train.control import EarlyStop, StopRequest
from minigpt.tune.records import TRIAL
from minigpt.tune.space import Space, Values

STOP_FILE = ".stop"  # in the search's folder: if it exists, trials save a checkpoint and exit
POLL_SECONDS = 0.3
LOCK_SECONDS = 60.0  # wait for an actor that was killed, or whose search was killed
ORIGIN = "origin.json"  # in Ray Tune's checkpoint: the run that it belongs to


@dataclass(frozen=True)
class TrialSettings:
    """Settings shared by all trials of a search. Paths are on a shared file system."""

    folder: str
    working_directory: str
    fixed: list[str]  # overrides of every trial
    command: list[str]
    metric: str
    eval_every: int | None
    population: bool  # trials copy each other's weights
    compiled: bool  # where trainer.compile is auto

    def evaluations(self, step: int) -> int:
        """Return the number of evaluations up to a step, the time unit of schedulers."""
        return math.ceil(step / self.eval_every) if self.eval_every else 1


class Order(Enum):
    """Commands to the training thread, which waits for one after each evaluation."""

    CONTINUE = "continue"
    SAVE = "save"
    END = "end"


class Trial(tune.Trainable):
    """Ray Tune's interface to a run. A step is the training up to the next evaluation."""

    def setup(self, config: dict[str, Any]) -> None:
        """Open the run directory; training starts with the first step."""
        self.settings = TrialSettings(**config.pop("settings"))
        config.pop("run")  # name of the run that it copied, if any; its own name stays
        self.values: Values = config
        os.chdir(self.settings.working_directory)  # for relative paths in overrides
        self.directory = RunDirectory(Path(self.settings.folder) / self.trial_name)
        self.directory.path.mkdir(parents=True, exist_ok=True)
        self.record = self.directory.read_optional_json(self.directory.path / TRIAL)
        self._write_record()
        self.training: Training | None = None

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """End this trial, which was stopped or is complete, and open the next one's directory."""
        self.cleanup()
        self.setup(new_config)
        return True

    def _write_record(self) -> None:
        number = int(self.trial_name.partition("_")[0])
        self.record |= {"number": number, "values": self.values}
        start = self.record.get("adopted", [{"step": 0}])[-1]["step"]  # of an older version's trial
        self.record.setdefault("schedule", [{"step": start, "values": self.values}])
        self.record |= {"pid": os.getpid(), "host": platform.node()}
        write_json(self.directory.path / TRIAL, self.record)

    def step(self) -> dict[str, Any]:
        """Train to the next evaluation or the end of the run, and return its report.

        Raises errors other than UserError and Failure, after which Ray Tune restarts the trial.
        """
        if self.training is None:
            self.training = Training(self.settings, self.directory, self.values)
            self.training.start()
        else:
            self.training.orders.put(Order.CONTINUE)
        report = self.training.next_report()
        if "error" in report and not self.directory.result.exists():
            self.record["error"] = report["error"]  # before the first step
            self._write_record()
        return report

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Save the run at this step. In a population, also copy it into Ray Tune's checkpoint."""
        assert self.training is not None
        self.training.save()
        target, latest = Path(checkpoint_dir), self.training.latest
        if self.settings.population:
            copy_run(self.directory, RunDirectory(target))
        origin = {"id": uuid.uuid4().hex, "run": self.trial_name}
        origin["schedule"] = self.record["schedule"]
        write_json(target / ORIGIN, origin | {key: latest[key] for key in ("step", "seconds")})

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Copy the run of another trial. This trial's checkpoint is already in its directory."""
        source = RunDirectory(Path(checkpoint))
        origin = source.read_json(Path(checkpoint) / ORIGIN)
        adopted = self.record.setdefault("adopted", [])
        if origin["run"] == self.trial_name or origin["id"] in {entry["id"] for entry in adopted}:
            return
        with self.directory.locked(LOCK_SECONDS):
            pass
        before = self.directory.read_json(self.directory.result)  # written when it was paused
        copy_run(source, self.directory)
        left = {"left_step": before["steps"], "left_seconds": before["seconds"]}
        changed = {"step": origin["step"], "values": self.values}
        self.record["schedule"] = [*origin.pop("schedule"), changed]
        adopted.append(origin | left | {"values": self.values})
        self._write_record()  # written last: if killed before this, the run is copied again

    def cleanup(self) -> None:
        """Save and end the run, and wait until its result is written."""
        if self.training is not None:
            self.training.orders.put(Order.END)
            self.training.join()


class Training(threading.Thread):
    """Trains a run in a second thread, since Ray calls the actor's methods in the first."""

    def __init__(self, settings: TrialSettings, directory: RunDirectory, values: Values) -> None:
        super().__init__(daemon=True)
        self.settings, self.directory, self.values = settings, directory, values
        self.orders: SimpleQueue[Order] = SimpleQueue()
        self.reports: SimpleQueue[dict[str, Any] | Exception] = SimpleQueue()
        self.saved: SimpleQueue[None] = SimpleQueue()
        self.latest: dict[str, Any] = {}
        self.stop_file = Path(settings.folder) / STOP_FILE
        self.stop = StopRequest()

    def next_report(self) -> dict[str, Any]:
        """Wait for an evaluation or the end of the run. Raises unexpected errors of the thread."""
        while True:
            try:
                report = self.reports.get(timeout=POLL_SECONDS)
            except Empty:
                if self.stop_file.exists():
                    self.stop.number = SIGINT
                continue
            if isinstance(report, Exception):
                raise report
            self.latest = report
            return report

    def save(self) -> None:
        """Write a checkpoint while training is paused."""
        self.orders.put(Order.SAVE)
        self.saved.get()

    def run(self) -> None:
        try:
            self._train()
            result = self.directory.read_json(self.directory.result)
            metric = self.settings.metric
            result[metric] = read_run(self.directory.path).number(metric)
            self.reports.put(self._report(result["steps"], result) | {"done": True})
        except (UserError, Failure) as error:  # a restart would fail again
            self.reports.put({"status": "failed", "error": first_line(error), "done": True})
        except KeyboardInterrupt:
            self.reports.put({"status": "interrupted", "done": True})
        except Exception as error:
            self.reports.put(error)
        except BaseException as error:  # no Exception, as a panic in Rust: Ray would not catch it
            self.reports.put(Failure(first_line(error)))

    def _train(self) -> None:
        from minigpt.train.session import train_run

        config = new_config(
            compose_overrides(Space(self.settings.fixed, {}).overrides(self.values))
        )
        resumed = self.directory.config.exists()
        if resumed:
            with self.directory.locked(LOCK_SECONDS):
                pass
            if self.directory.finished:  # killed before it was reported
                return
            saved = read_config(self.directory.config)
            # A population changes numbers of the optimizer only.
            population = self.settings.population
            config = replace(saved, optimizer=config.optimizer) if population else saved
        train_run(
            config,
            self.directory,
            resumed=resumed,
            command=self.settings.command,
            on_evaluation=self._evaluated,
            stop=self.stop,
            compilation=Choice(self.settings.compiled, "decided for the whole search"),
        )

    def _evaluated(self, trainer: Any) -> None:
        """Report an evaluation and wait for an order. The last one is reported with the result."""
        progress = trainer.progress
        if progress.step == trainer.options.max_steps:
            return
        self.reports.put(self._report(progress.step, asdict(progress)) | {"status": "running"})
        status = "stopped"
        while (order := self.orders.get()) is not Order.CONTINUE:
            trainer.save()
            if order is Order.END:
                raise EarlyStop("interrupted" if self.stop_file.exists() else status)
            status = "paused"
            self.saved.put(None)

    def _report(self, step: int, numbers: dict[str, Any]) -> dict[str, Any]:
        return {
            "step": step,
            "evaluations": self.settings.evaluations(step),
            self.settings.metric: numbers[self.settings.metric],
            "seconds": numbers["seconds"],
            "status": numbers.get("status"),
        }


def copy_run(source: RunDirectory, target: RunDirectory) -> None:
    """Copy checkpoints and logs of a run."""
    for name in ("best", "last"):
        checkpoint = readable_directory(getattr(source, name))
        if checkpoint.exists():
            with atomic_directory(getattr(target, name)) as directory:
                shutil.copytree(checkpoint, directory, dirs_exist_ok=True)
    for name in ("metrics", "samples"):
        log = getattr(source, name)
        write_bytes(getattr(target, name), log.read_bytes() if log.exists() else b"")
