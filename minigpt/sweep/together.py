"""Jobs of a sweep that train together in one process: `hydra/launcher=replicas`."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

from minigpt.config.compose import load_config
from minigpt.config.schema import Config
from minigpt.errors import UserError, require
from minigpt.sweep.job import Output, SweepJob, leased_gpu
from minigpt.sweep.plan import PlannedJob
from minigpt.train.control import Interrupted, Stop, Stopwatch
from minigpt.train.replicas import BACKEND, Program, program_of, step, why_not
from minigpt.train.session import training_session
from minigpt.train.trainer import Trainer


@dataclass(frozen=True)
class Replica:
    """A run that takes its steps with others. `context`: what `training_session` gave."""

    output: Output
    context: AbstractContextManager[Trainer]
    trainer: Trainer

    def goes_on(self) -> bool:
        """Do what is due before the next step; whether there is one. Where not, the run ends."""
        with self.output.caught():
            with ExitStack() as pause, ExitStack() as end:
                end.push(self.context)
                if self.trainer.periodic_work():
                    end.pop_all()
                    return True
                pause.enter_context(self.trainer.stopwatch.paused())  # the others' steps wait
            if self.trainer.stopped_by is not None:
                raise Interrupted(self.trainer.stopped_by)
        return False

    def fail(self, error: BaseException) -> None:
        """End the run by what went wrong for all."""
        with self.output.caught(), ExitStack() as end:
            end.push(self.context)
            raise error


def require_replicas(jobs: Iterable[PlannedJob], at_once: int) -> None:
    """Raise UserError unless each job that has a config can train together with others."""
    whole = isinstance(at_once, int) and at_once >= 1
    require(whole, "hydra.launcher.at_once", at_once, "must be a whole number of 1 or more")
    for job in jobs:
        why = why_not(job.config) if isinstance(job.config, Config) else None
        if why is not None:
            raise UserError(f"hydra/launcher=replicas: {why}")


def train_together(sweep: SweepJob, at_once: int) -> None:
    """Train a sweep's jobs, at most `at_once` of one program at once, and raise nothing."""
    programs: dict[Hashable, list[PlannedJob]] = {}
    for job in sweep.jobs:
        programs.setdefault(_program_of(job), []).append(job)
    for jobs in programs.values():
        for first in range(0, len(jobs), at_once):
            _train(sweep, jobs[first : first + at_once])


def _program_of(job: PlannedJob) -> Hashable:
    """See `program_of`. A run that has begun keeps the device, precision and threads it has."""
    if isinstance(job.config, UserError):
        return job.label
    try:
        return program_of(load_config(job.run.config) if job.run.config.exists() else job.config)
    except UserError:  # a damaged one: told when the job begins
        return job.label


def _train(sweep: SweepJob, jobs: Sequence[PlannedJob]) -> None:
    stop, stopwatch = Stop(), Stopwatch()
    replicas: list[Replica] = []
    with ExitStack() as stack:
        try:
            stack.enter_context(sweep.watching(stop))
            stack.enter_context(leased_gpu())
            for replica in _begun(sweep, jobs, stack):
                replicas.append(replica)
                trainer = replica.trainer
                trainer.stop, trainer.stopwatch, trainer.backend = stop, stopwatch, BACKEND
            for replica in replicas:
                replica.trainer.begin()
            program: Program | None = None
            while going := [replica for replica in replicas if replica.goes_on()]:
                trainers = [replica.trainer for replica in going]
                if program is None or going != replicas:
                    options, runtime = trainers[0].options, trainers[0].runtime
                    program = Program([t.model for t in trainers], runtime, options.compile)
                replicas = going
                step(program, trainers)
        except BaseException as error:
            for replica in replicas:
                replica.fail(error)


def _begun(sweep: SweepJob, jobs: Sequence[PlannedJob], stack: ExitStack) -> Iterator[Replica]:
    """The runs that are ready for their next step; their logs are open until the stack closes."""
    for job in jobs:
        if sweep.stop_file.exists():
            return
        output = stack.enter_context(sweep.output(job))
        with output.caught():
            training = sweep.training(job)
            if training is not None:
                training["facts"] |= {"replicas": len(jobs), "backend": BACKEND}
                context = training_session(**training)
                yield Replica(output, context, context.__enter__())
