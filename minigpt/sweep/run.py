"""A sweep from its jobs to its exit code."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

from hydra.types import TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from minigpt.config.compose import to_options
from minigpt.errors import Failure, first_line, require
from minigpt.sweep.job import FAILED, SweepJob
from minigpt.sweep.match import SweepConfig
from minigpt.sweep.plan import Job, plan, write_plan
from minigpt.sweep.together import require_replicas
from minigpt.sweep.watch import Watch
from minigpt.train.control import Interrupted, Stop, stop_signals
from minigpt.tune.session import QUIET

# How many jobs each of Hydra's launchers runs at once on this machine; of no other it is known.
AT_ONCE: dict[str, Callable[[DictConfig], int]] = {
    "BasicLauncher": lambda launcher: 1,
    "ReplicasLauncher": lambda launcher: 1,  # one program
    "JoblibLauncher": lambda launcher: _cores() if launcher.n_jobs < 0 else launcher.n_jobs,
    "RayLauncher": lambda launcher: int(_cores() / float(launcher.ray.remote.get("num_cpus") or 1)),
    "LocalLauncher": lambda launcher: sys.maxsize,  # submitit_local starts all
}


def run_sweep(
    jobs: list[list[str]],
    config: DictConfig,
    compose: Callable[[list[str]], DictConfig],
    launch: Callable[[TaskFunction, list[list[str]]], None],
) -> None:
    """Run the jobs that are not done yet, show how they come on, and list them at the end.

    Raises Failure where jobs failed, Interrupted where a signal ended the sweep, and UserError,
    before any work, where the config of a job is none.
    """
    _quieten(config.hydra.launcher)
    options = to_options(SweepConfig, config, "sweep")
    directory = Path(config.hydra.sweep.dir).absolute()
    where = config.hydra.sweep.dir
    is_free = directory.is_dir() or not directory.exists()
    require(is_free, "hydra.sweep.dir", where, "is a file; name a folder")
    if config.hydra.launcher._target_.endswith(".JoblibLauncher"):
        n_jobs = config.hydra.launcher.n_jobs
        require(n_jobs != 0, "hydra.launcher.n_jobs", n_jobs, "needs 1 or more; -1 is all cores")
    planned = plan(jobs, directory, options, compose)
    missing = [job for job in planned if not job.done]
    if config.hydra.launcher._target_.endswith(".ReplicasLauncher"):
        require_replicas(missing, config.hydra.launcher.at_once)
    directory.mkdir(parents=True, exist_ok=True)
    write_plan(directory, planned, ["minigpt", "train", *_arguments()], options)

    stop_file = directory / f".stop_{uuid.uuid4().hex[:8]}"
    task = SweepJob(missing, stop_file, options.fail_fast, threads_each(config, len(planned)))
    watch = Watch(planned, str(_shown(directory)))
    try:
        # Jobs in other processes see the file.
        with stop_signals(Stop(), lambda number: stop_file.write_text(str(number))), watch:
            if missing:
                _launched(launch, task, missing)
        ended_by = stop_file.read_text() if stop_file.exists() else ""
    finally:
        stop_file.unlink(missing_ok=True)
        watch.summary()
    if ended_by not in ("", FAILED):
        raise Interrupted(int(ended_by))
    _require_all_done(watch, planned)


def _quieten(launcher: DictConfig) -> None:
    """Let Ray start without a dashboard and print nothing, unless the user says otherwise."""
    if launcher._target_.endswith(".RayLauncher"):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        with open_dict(launcher):
            launcher.ray.init = OmegaConf.merge(QUIET, launcher.ray.init)


def _launched(
    launch: Callable[[TaskFunction, list[list[str]]], None], task: SweepJob, missing: list[Job]
) -> None:
    try:
        launch(task, [job.overrides for job in missing])
    except Exception as error:  # a job raises nothing: the launcher's own, as of a killed worker
        raise Failure(
            f"hydra/launcher gave up: {first_line(error)}; the same command goes on with the rest"
        ) from error


def threads_each(config: DictConfig, n_jobs: int) -> int | None:
    """Threads of a job, so that those at once share the cores; None: torch's choice."""
    launcher = config.hydra.launcher
    at_once = AT_ONCE.get(launcher._target_.rpartition(".")[2])
    if at_once is None:
        return None
    n = min(at_once(launcher), n_jobs)
    return None if n <= 1 else max(1, _cores() // n)


def _shown(directory: Path) -> Path:
    here = Path.cwd()
    return directory.relative_to(here) if directory.is_relative_to(here) else directory


def _cores() -> int:
    return os.cpu_count() or 1


def _arguments() -> list[str]:
    return [argument for argument in sys.argv[1:] if not argument.startswith("hydra.sweep.dir=")]


def _require_all_done(watch: Watch, planned: list[Job]) -> None:
    failed = watch.count("failed")
    if failed:
        raise Failure(f"{failed} of {len(planned)} jobs failed; the same command runs them again")
    open_ends = len(planned) - watch.count("done") - watch.count("skipped")
    if open_ends:
        raise Failure(
            f"{open_ends} of {len(planned)} jobs are not done; the same command goes on with them"
        )
