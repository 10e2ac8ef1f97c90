"""Run a sweep, from its overrides to its exit code."""

from __future__ import annotations

import logging
import os
import sys
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from minigpt.config.hydra_main import Multirun
from minigpt.console import PipeConsole
from minigpt.errors import Failure, first_line, require
from minigpt.run.directory import SWEEP
from minigpt.run.sweep_file import next_commands, write_sweep_file
from minigpt.sweep.compilation import common_compilation
from minigpt.sweep.job import FAILED, SweepJob
from minigpt.sweep.match import SweepConfig
from minigpt.sweep.plan import PlannedJob, plan
from minigpt.sweep.together import cpu_warning, require_at_once, require_replicas
from minigpt.sweep.watch import SKIPPED, Watch, list_jobs, shown
from minigpt.train.compilation import Choice
from minigpt.train.control import Interrupted, StopRequest, stop_signals

# Options of ray.init: without a dashboard, and with nothing printed.
QUIET: dict[str, Any] = {
    "include_dashboard": False,
    "log_to_driver": False,  # jobs have their own logs
    "configure_logging": True,
    "logging_level": logging.CRITICAL,
}
# trainer.compile=auto with hydra/launcher=replicas, whose program is not in the cache of designs.
REPLICAS = Choice(False, "hydra/launcher=replicas compiles only with trainer.compile=true")
# The number of concurrent jobs on this machine, by launcher.
AT_ONCE: dict[str, Callable[[dict[str, Any]], int]] = {
    "BasicLauncher": lambda settings: 1,
    "ProcessesLauncher": lambda settings: processes_at_once(settings["at_once"]),
    "ReplicasLauncher": lambda settings: 1,  # all jobs are one program
    "JoblibLauncher": lambda settings: _cores() if settings["n_jobs"] < 0 else settings["n_jobs"],
    "RayLauncher": lambda settings: int(
        _cores() / float(settings["ray"]["remote"].get("num_cpus") or 1)
    ),
    "LocalLauncher": lambda settings: sys.maxsize,  # submitit_local starts all at once
}


def run_sweep(multirun: Multirun) -> None:
    """Run the jobs that have not finished before, show their progress and print a summary.

    With `sweep.dry_run` it lists the jobs and writes nothing. Raises Failure if jobs failed,
    Interrupted after a signal, and UserError for wrong options, before any job starts.
    """
    options = multirun.section(SweepConfig, "sweep")
    directory = Path(multirun.directory).absolute()
    _require_options(multirun)
    planned = plan(multirun.jobs, directory, options, multirun.compose)
    if options.dry_run:
        list_jobs(planned, directory)
        return
    arguments = [word for word in sys.argv[1:] if not word.startswith("hydra.sweep.dir=")]
    try:
        watch = run_jobs(multirun, planned, ["minigpt", "train", *arguments], options)
        _require_all_finished(watch)
    finally:
        if (directory / SWEEP).exists():
            console = PipeConsole(highlight=False)
            for line in next_commands(Path(shown(directory))):
                console.print(line, soft_wrap=True, markup=False)


def run_jobs(
    multirun: Multirun,
    planned: list[PlannedJob],
    command: list[str],
    options: SweepConfig,
    others: Sequence[PlannedJob] = (),
    later_steps: int = 0,
) -> Watch:
    """Run the jobs that have not finished before, and print a summary; return their statuses.

    `others`: jobs of another sweep, which decide on `trainer.compile=auto` together with these.
    `later_steps`: training steps that follow the sweep, for the time left. Raises Interrupted after
    a signal.
    """
    directory = Path(multirun.directory).absolute()
    missing = [job for job in planned if not job.finished_before]
    threads, at_once = threads_each(multirun, len(planned)), jobs_at_once(multirun, len(planned))
    warning: str | None = None
    if multirun.launcher == "ReplicasLauncher":
        require_replicas(missing, multirun.settings["at_once"])
        warning = cpu_warning(missing)
        compilation = REPLICAS
    else:
        compilation = common_compilation([*planned, *others], threads, at_once)
    directory.mkdir(parents=True, exist_ok=True)
    stop_file = directory / f".stop_{uuid.uuid4().hex[:8]}"
    task = SweepJob(missing, stop_file, options.fail_fast, threads, compilation)
    watch = Watch(planned, shown(directory), later_steps)
    try:
        # Jobs in other processes see the file.
        with stop_signals(StopRequest(), lambda number: stop_file.write_text(str(number))):
            write_sweep_file(directory, [*planned], command, options.name, options.match)
            try:
                with watch:
                    if warning is not None:
                        watch.view.line(f"warning    {warning}")
                    if missing:
                        _launch(multirun, task, missing)
            finally:
                watch.summary()
        stopped_by = stop_file.read_text() if stop_file.exists() else ""
    finally:
        stop_file.unlink(missing_ok=True)
    if stopped_by not in ("", FAILED):
        raise Interrupted(int(stopped_by))
    return watch


def _require_options(multirun: Multirun) -> None:
    """Raise UserError for a sweep directory or launcher options that cannot be used."""
    folder = Path(multirun.directory)
    is_free = folder.is_dir() or not folder.exists()
    require(is_free, "hydra.sweep.dir", folder, "is a file; name a folder")
    if multirun.launcher == "ProcessesLauncher":
        at_once = multirun.settings["at_once"]
        if at_once is not None:  # one for each core
            require_at_once(at_once)
    if multirun.launcher == "JoblibLauncher":
        n_jobs = multirun.settings["n_jobs"]
        require(n_jobs != 0, "hydra.launcher.n_jobs", n_jobs, "needs 1 or more; -1 is all cores")


def _launch(multirun: Multirun, task: SweepJob, missing: list[PlannedJob]) -> None:
    quiet: dict[str, Any] = {}
    if multirun.launcher == "RayLauncher":  # no dashboard and no output, unless configured
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        quiet = {"ray": {"init": QUIET | (multirun.settings["ray"]["init"] or {})}}
    try:
        multirun.launch(task, [job.overrides for job in missing], quiet)
    except Exception as error:  # from the launcher, e.g. a killed worker; jobs never raise
        # A signal ends workers that have not begun their job.
        if task.stop_file.exists() and task.stop_file.read_text() != FAILED:
            return
        raise Failure(
            f"hydra/launcher failed: {first_line(error)}; the same command runs the rest"
        ) from error


def threads_each(multirun: Multirun, n_jobs: int) -> int | None:
    """Return the number of threads per job, so that jobs share the cores; None: torch's default."""
    n = jobs_at_once(multirun, n_jobs)
    return None if n is None or n <= 1 else max(1, _cores() // n)


def jobs_at_once(multirun: Multirun, n_jobs: int) -> int | None:
    """Return the number of concurrent jobs on this machine; None: the launcher does not say."""
    at_once = AT_ONCE.get(multirun.launcher)
    return None if at_once is None else min(at_once(multirun.settings), n_jobs)


def processes_at_once(at_once: int | None) -> int:
    """Return `at_once`, or for None one process per GPU, or without a GPU one per core."""
    return at_once or torch.cuda.device_count() or _cores()


def _cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _require_all_finished(watch: Watch) -> None:
    total, failed = len(watch.jobs), watch.count("failed")
    if failed:
        raise Failure(f"{failed} of {total} jobs failed; the same command runs them again")
    rest = total - watch.count("finished") - watch.count(SKIPPED)
    if rest:
        raise Failure(f"{rest} of {total} jobs have not finished; the same command runs the rest")
