"""A sweep from its jobs to its exit code."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minigpt.config.hydra_main import Multirun
from minigpt.errors import Failure, first_line, require
from minigpt.sweep.job import FAILED, SweepJob
from minigpt.sweep.match import SweepConfig
from minigpt.sweep.plan import Job, plan, write_plan
from minigpt.sweep.together import require_replicas
from minigpt.sweep.watch import Watch
from minigpt.train.control import Interrupted, Stop, stop_signals
from minigpt.tune.session import QUIET

# How many jobs each of Hydra's launchers runs at once on this machine; of no other it is known.
AT_ONCE: dict[str, Callable[[dict[str, Any]], int]] = {
    "BasicLauncher": lambda settings: 1,
    "ReplicasLauncher": lambda settings: 1,  # one program
    "JoblibLauncher": lambda settings: _cores() if settings["n_jobs"] < 0 else settings["n_jobs"],
    "RayLauncher": lambda settings: int(
        _cores() / float(settings["ray"]["remote"].get("num_cpus") or 1)
    ),
    "LocalLauncher": lambda settings: sys.maxsize,  # submitit_local starts all
}


def run_sweep(multirun: Multirun) -> None:
    """Run the jobs that are not done yet, show how they come on, and list them at the end.

    Raises Failure where jobs failed, Interrupted where a signal ended the sweep, and UserError,
    before any work, where the config of a job is none.
    """
    launcher, settings, where = multirun.launcher, multirun.settings, multirun.directory
    options = multirun.section(SweepConfig, "sweep")
    directory = Path(where).absolute()
    is_free = directory.is_dir() or not directory.exists()
    require(is_free, "hydra.sweep.dir", where, "is a file; name a folder")
    if launcher == "JoblibLauncher":
        n_jobs = settings["n_jobs"]
        require(n_jobs != 0, "hydra.launcher.n_jobs", n_jobs, "needs 1 or more; -1 is all cores")
    planned = plan(multirun.jobs, directory, options, multirun.compose)
    missing = [job for job in planned if not job.done]
    if launcher == "ReplicasLauncher":
        require_replicas(missing, settings["at_once"])
    directory.mkdir(parents=True, exist_ok=True)
    write_plan(directory, planned, ["minigpt", "train", *_arguments()], options)

    stop_file = directory / f".stop_{uuid.uuid4().hex[:8]}"
    task = SweepJob(missing, stop_file, options.fail_fast, threads_each(multirun, len(planned)))
    watch = Watch(planned, str(_shown(directory)))
    try:
        # Jobs in other processes see the file.
        with stop_signals(Stop(), lambda number: stop_file.write_text(str(number))), watch:
            if missing:
                _launched(multirun, task, missing)
        ended_by = stop_file.read_text() if stop_file.exists() else ""
    finally:
        stop_file.unlink(missing_ok=True)
        watch.summary()
    if ended_by not in ("", FAILED):
        raise Interrupted(int(ended_by))
    _require_all_done(watch, planned)


def _launched(multirun: Multirun, task: SweepJob, missing: list[Job]) -> None:
    quiet: dict[str, Any] = {}
    if multirun.launcher == "RayLauncher":  # no dashboard and no output, unless configured
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        quiet = {"ray": {"init": QUIET | (multirun.settings["ray"]["init"] or {})}}
    try:
        multirun.launch(task, [job.overrides for job in missing], quiet)
    except Exception as error:  # a job raises nothing: the launcher's own, as of a killed worker
        raise Failure(
            f"hydra/launcher gave up: {first_line(error)}; the same command goes on with the rest"
        ) from error


def threads_each(multirun: Multirun, n_jobs: int) -> int | None:
    """Threads of a job, so that those at once share the cores; None: torch's choice."""
    at_once = AT_ONCE.get(multirun.launcher)
    if at_once is None:
        return None
    n = min(at_once(multirun.settings), n_jobs)
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
