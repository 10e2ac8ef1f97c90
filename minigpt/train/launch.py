"""Start the processes of one run on this machine, with the elastic agent of torchrun."""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from pathlib import Path
from typing import Any

from minigpt.errors import Failure, UserError
from minigpt.ranks import NAMES_LOST_RANKS
from minigpt.train.control import Interrupted

AT_ONCE = 5.0  # seconds in which the end of one rank ends the others


def launch(processes: int, command: list[str], directory: Path) -> None:
    """Run a `minigpt train` command in several processes, and wait for them.

    `directory`: of the run. Raises UserError or Failure if a process failed, and Interrupted if it
    was stopped; the process itself has printed why.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.CRITICAL)  # of the agent, whose errors are reported below
    cores = os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))
    os.environ[NAMES_LOST_RANKS] = "1"
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    arguments = [word for word in command[1:] if not word.startswith("hydra.run.dir=")]
    if not any(word.startswith("resume=") for word in arguments):
        arguments.append(f"hydra.run.dir={directory}")
    try:
        elastic_launch(config, sys.executable)("-m", "minigpt", *arguments)
    except SignalException as stop:
        raise Interrupted(stop.sigval) from None
    except ChildFailedError as error:
        raise _failure(error.failures, directory) from None


def _failure(failures: dict[int, Any], directory: Path) -> BaseException:
    """Return the error of a run whose ranks failed, as its only process would have raised it."""
    first = min(failure.timestamp for failure in failures.values())
    codes = {
        rank: failure.exitcode
        for rank, failure in failures.items()
        if failure.timestamp - first < AT_ONCE  # later the agent ends those that hang
    }
    for rank, code in codes.items():
        if code < 0 and -code != signal.SIGTERM:  # by which the agent ends the others
            name = signal.Signals(-code).name
            return Failure(
                f"rank {rank} was killed by {name}, and the other ranks have stopped; continue "
                f"with minigpt train resume={directory} trainer.processes={len(failures)}"
            )
    code = next((code for code in codes.values() if code > 0), 1)
    if code > 128:
        return Interrupted(code - 128)
    error = UserError("see above") if code == 2 else Failure("see above")
    error.reported = True
    return error
