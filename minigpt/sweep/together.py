"""Train jobs of a sweep together in one process (`hydra/launcher=replicas`)."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

from minigpt.config.saved import read_config
from minigpt.config.schema import Config
from minigpt.errors import UserError, require
from minigpt.model.compatibility import replica_problems
from minigpt.run.load import as_trained
from minigpt.runtime import choose_runtime
from minigpt.sweep.job import Output, SweepJob, leased_gpus
from minigpt.sweep.plan import PlannedJob
from minigpt.train.control import Interrupted, StopRequest, Stopwatch
from minigpt.train.replicas import BACKEND, Program, program_of, step
from minigpt.train.session import training_session
from minigpt.train.trainer import Trainer


@dataclass(frozen=True)
class Replica:
    """A run that trains together with others. `session`: the context that yielded `trainer`."""

    output: Output
    session: AbstractContextManager[Trainer]
    trainer: Trainer

    def periodic_work(self) -> bool:
        """Do the periodic work before a step. After the last step, end the run and return False."""
        with self.output.caught():
            with ExitStack() as pause, ExitStack() as session:
                session.push(self.session)
                if self.trainer.periodic_work():
                    session.pop_all()
                    return True
                # The other runs do not step while this one is closed.
                pause.enter_context(self.trainer.stopwatch.paused())
            if self.trainer.stopped_by is not None:
                raise Interrupted(self.trainer.stopped_by)
        return False

    def fail(self, error: BaseException) -> None:
        """End the run with an error of the shared program."""
        with self.output.caught(), ExitStack() as session:
            session.push(self.session)
            raise error


def require_at_once(at_once: object) -> None:
    """Raise UserError unless `hydra.launcher.at_once` is an integer of 1 or more."""
    valid = type(at_once) is int and at_once >= 1  # True is an int too
    require(valid, "hydra.launcher.at_once", at_once, "must be an integer of 1 or more")


def require_replicas(jobs: Iterable[PlannedJob], at_once: int) -> None:
    """Raise UserError unless every job with a valid config can train together with others."""
    require_at_once(at_once)
    for config in (job.config for job in jobs if isinstance(job.config, Config)):
        for problem in replica_problems(config.model):
            raise UserError(f"hydra/launcher=replicas: {problem}")
        why = "is not computed for several runs at once; use another launcher"
        teacher = config.teacher
        require(config.adapter.name == "none", "adapter", config.adapter.name, why)
        require(teacher is None, "objective.teacher", teacher, why)
        parallel = config.trainer.parallel
        require(parallel == "none", "trainer.parallel", parallel, why)
        why = "the runs take their steps together, and not as graphs of their own; use auto or off"
        require(config.trainer.graph != "on", "trainer.graph", config.trainer.graph, why)


def cpu_warning(jobs: Iterable[PlannedJob]) -> str | None:
    """Return a line that recommends another launcher if jobs run on a CPU, otherwise None."""
    if not any(_is_on_cpu(job.config) for job in jobs if isinstance(job.config, Config)):
        return None
    return (
        "hydra/launcher=replicas gains little on a CPU, whose cores one run fills; "
        "hydra/launcher=processes, the default, is faster"
    )


def _is_on_cpu(config: Config) -> bool:
    try:
        return choose_runtime(config.trainer.device, config.trainer.precision).device == "cpu"
    except UserError:  # reported when the job starts
        return False


def train_together(sweep: SweepJob, at_once: int) -> None:
    """Train all jobs, up to `at_once` of one program at a time. Errors are logged, not raised."""
    programs: dict[Hashable, list[PlannedJob]] = {}
    for job in sweep.jobs:
        programs.setdefault(_program_of(job), []).append(job)
    for jobs in programs.values():
        for first in range(0, len(jobs), at_once):
            _train(sweep, jobs[first : first + at_once])


def _program_of(job: PlannedJob) -> Hashable:
    """Return `program_of` the job. A resumed run keeps its device, precision and threads."""
    if isinstance(job.config, UserError):
        return job.label
    try:
        if job.run.config.exists():
            return program_of(as_trained(job.run, read_config(job.run.config)))
        return program_of(job.config)
    except UserError:  # a damaged config.yaml, reported when the job starts
        return job.label


def _train(sweep: SweepJob, jobs: Sequence[PlannedJob]) -> None:
    """Train the jobs of one program until all have ended. Jobs that cannot start are skipped."""
    stop = StopRequest()
    replicas: list[Replica] = []
    with ExitStack() as stack:
        try:
            stack.enter_context(sweep.watching(stop, os.getppid()))
            stack.enter_context(leased_gpus(1))
            for replica in _start(sweep, jobs, stop, stack):
                replicas.append(replica)
            for replica in replicas:
                replica.trainer.begin()
            program: Program | None = None
            while running := [replica for replica in replicas if replica.periodic_work()]:
                trainers = [replica.trainer for replica in running]
                if program is None or running != replicas:
                    options, runtime = trainers[0].options, trainers[0].runtime
                    compiled = options.compile is True
                    program = Program([t.model for t in trainers], runtime, compiled)
                replicas = running
                step(program, trainers)
        except BaseException as error:
            for replica in replicas:
                replica.fail(error)


def _start(
    sweep: SweepJob, jobs: Sequence[PlannedJob], stop: StopRequest, stack: ExitStack
) -> Iterator[Replica]:
    """Yield the runs that can start. `stack` closes their logs."""
    stopwatch = Stopwatch()
    for job in jobs:
        if sweep.stop_file.exists():
            return
        output = stack.enter_context(sweep.output(job))
        with output.caught():
            training = sweep.training(job)
            if training is not None:
                training["facts"] |= {"replicas": len(jobs)}
                session = training_session(
                    **training, stop=stop, stopwatch=stopwatch, backend=BACKEND
                )
                yield Replica(output, session, session.__enter__())
