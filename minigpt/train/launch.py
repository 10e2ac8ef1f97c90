"""Train a run in this process, or start its processes on this machine with torchrun's agent."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minigpt.config.schema import Config
from minigpt.errors import Failure, UserError, wants_traceback
from minigpt.ranks import LostRank
from minigpt.run.directory import RunDirectory
from minigpt.torchrun import RANK, is_started_as_rank
from minigpt.train.control import Interrupted, StopRequest
from minigpt.train.session import train_run

AT_ONCE = 5.0  # seconds in which the end of one rank ends the others
POLL_SECONDS = 0.2
FIRST_SECONDS = 0.5  # that other ranks give the first one to fail too, whose error is reported


def start_run(
    config: Config,
    run: RunDirectory,
    resumed: bool,
    command: list[str],
    *,
    threads: int | None = None,
    stop: StopRequest | None = None,
    output: Path | None = None,
    **options: Any,
) -> None:
    """Train a run here, or in as many processes as the config starts; see `train_run`.

    `threads` and `options` are those of `training_session`. `output`: the file that the processes
    append their output to; None: where this process writes. Raises UserError, Failure and
    Interrupted.
    """
    processes = config.trainer.processes
    if processes is None or is_started_as_rank():
        train_run(config, run, resumed, command, threads=threads, stop=stop, **options)
        return
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    each = max(1, (threads or os.cpu_count() or 1) // processes)
    arguments = (config, run, resumed, command, each, output, options.get("facts"))
    try:
        with _silent(), _spawning(), _forwarded(stop):
            elastic_launch(launch, _train_rank)(*arguments)
    except SignalException as stopped:
        raise Interrupted(stopped.sigval) from None
    except ChildFailedError as error:
        raise _error(error.failures, run.path) from None


def _train_rank(
    config: Config,
    run: RunDirectory,
    resumed: bool,
    command: list[str],
    threads: int,
    output: Path | None,
    facts: dict[str, Any] | None,
) -> None:
    """Train as one of several processes. Exits with the codes of the command line.

    Errors are recorded for the agent, which reports one of them.
    """
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    if output is not None:
        with output.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
    try:
        train_run(config, run, resumed, command, threads=threads, facts=facts)
    except KeyboardInterrupt as stopped:
        sys.exit(128 + getattr(stopped, "number", signal.SIGINT))
    except (UserError, Failure, OSError) as error:
        if wants_traceback():
            traceback.print_exc()
        get_error_handler().record_exception(error)
        if os.environ[RANK] != "0":
            time.sleep(FIRST_SECONDS)
        sys.exit(2 if isinstance(error, UserError) else 1)
    finally:
        # torch sends it when the agent is killed; here all is saved, and Python would print it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _silent() -> Iterator[None]:
    """Silence the agent, whose errors are raised."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def _spawning() -> Iterator[None]:
    """Start processes by spawning, also in a worker of joblib, whose own method they lack."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("spawn", force=True)
    try:
        yield
    finally:
        multiprocessing.set_start_method(before, force=True)


@contextmanager
def _forwarded(stop: StopRequest | None) -> Iterator[None]:
    """Send this process, whose agent stops the others, the signal of a request to stop."""
    finished = threading.Event()

    def watch(stop: StopRequest) -> None:
        while stop.number is None:
            if finished.wait(POLL_SECONDS):
                return
        os.kill(os.getpid(), stop.number)

    if stop is None:
        yield
        return
    thread = threading.Thread(target=watch, args=(stop,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


def _error(failures: dict[int, Any], directory: Path) -> BaseException:
    """Return the error of a run whose ranks failed, as its only process would have raised it."""
    first = min(failure.timestamp for failure in failures.values())
    # Later the agent ends those that hang.
    soon = {rank: f for rank, f in sorted(failures.items()) if f.timestamp - first < AT_ONCE}
    for rank, failure in soon.items():
        if failure.exitcode < 0 and -failure.exitcode != signal.SIGTERM:  # by the agent
            name = signal.Signals(-failure.exitcode).name
            return Failure(
                f"rank {rank} was killed by {name}, and the other ranks have stopped; continue "
                f"with minigpt train resume={directory}"
            )
    lost = f"{LostRank.__name__}: "
    recorded = [(r, f, str(f.message["message"])) for r, f in soon.items() if _is_recorded(f)]
    recorded.sort(key=lambda one: one[2].startswith(lost))  # such a rank saw another one end
    for rank, failure, message in recorded:
        text = message.partition(": ")[2]
        text = text if rank == 0 else f"rank {rank}: {text}"
        return UserError(text) if failure.exitcode == 2 else Failure(text)
    stopped = next((f.exitcode for f in soon.values() if f.exitcode > 128), None)
    if stopped is not None:
        return Interrupted(stopped - 128)
    rank, failure = next(iter(soon.items()))
    return Failure(f"rank {rank} ended with exit code {failure.exitcode}")


def _is_recorded(failure: Any) -> bool:
    return isinstance(failure.message, dict)
