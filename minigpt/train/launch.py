"""Train a run in this process, or start its processes on this machine with torchrun's agent."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import time
import traceback
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from minigpt.config.schema import Config
from minigpt.errors import Failure, UserError, text_of_os_error, wants_traceback
from minigpt.files import try_read_json
from minigpt.ranks import LostRank
from minigpt.run.directory import RunDirectory
from minigpt.torchrun import AGENT, RANK, is_started_as_rank, patched_environment
from minigpt.train.control import STOP_SIGNALS, Interrupted, StopRequest, polling
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

    handled = [n for n in STOP_SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]  # by nohup
    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        signals_to_handle=",".join(signal.Signals(number).name for number in handled),
        shutdown_timeout=max(1, int(config.trainer.timeout)),  # to save a checkpoint
    )
    each = max(1, (threads or os.cpu_count() or 1) // processes)
    arguments = (config, run, resumed, command, each, output, options.get("facts"))
    try:
        inherited = patched_environment(AGENT, str(os.getpid()))
        with _silent(), _spawning(), inherited, _forwarded(stop), _ranks_start_uninterrupted():
            elastic_launch(launch, _train_rank)(*arguments)
    except SignalException as stopped:
        result = try_read_json(run.result)
        if result.get("status") == "failed":  # to save a checkpoint, for one
            raise Failure(result["error"]) from None
        raise Interrupted(stopped.sigval) from None
    except ChildFailedError as failed:
        error = error_of(failed.failures, run)
        result = try_read_json(run.result)
        if result.get("status") == "failed":
            run.write(run.result, result | {"error": str(error)})
        raise error from None


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
        if sys.platform != "win32":
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        train_run(config, run, resumed, command, threads=threads, facts=facts)
    except KeyboardInterrupt as stopped:
        sys.exit(128 + getattr(stopped, "number", signal.SIGINT))
    except Exception as error:
        if wants_traceback() or not isinstance(error, UserError | Failure | OSError):
            traceback.print_exc()
        if isinstance(error, OSError):
            error = Failure(text_of_os_error(error, "train"))
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

    def forward() -> bool:
        if stop is None or stop.number is None:
            return False
        os.kill(os.getpid(), stop.number)
        return True

    with polling(forward, POLL_SECONDS):
        yield


@contextmanager
def _ranks_start_uninterrupted() -> Iterator[None]:
    """Start processes that Ctrl-C interrupts in `_train_rank`, not in their imports before.

    They inherit the signals that are blocked in this thread. Another thread of this process must
    run, which receives the signal for it.
    """
    if sys.platform == "win32":
        yield
        return
    resource_tracker.ensure_running()  # which would unblock them again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def error_of(failures: dict[int, Any], run: RunDirectory) -> BaseException:
    """Return the error of a run whose ranks failed, as its only process would have raised it.

    `failures`: torch's ProcessFailure by rank. In this order: a rank that was killed, an error that
    a rank recorded, a signal that stopped a rank.
    """
    first = min(failure.timestamp for failure in failures.values())
    # Later the agent ends those that hang.
    soon = {rank: f for rank, f in sorted(failures.items()) if f.timestamp - first < AT_ONCE}
    killed = {rank: -f.exitcode for rank, f in soon.items() if f.exitcode < 0}
    for rank, number in killed.items():
        if number != signal.SIGTERM:  # by which the agent ends the others
            text = f"rank {rank} was killed by {signal.Signals(number).name}, and the other ranks "
            remedy = f"continue with minigpt train resume={run.path}"
            remedy = remedy if run.config.exists() else "give the command again"
            return Failure(f"{text}have stopped; {remedy}")
    recorded = {rank: f for rank, f in soon.items() if isinstance(f.message, dict)}
    # A lost rank saw another one end, which has recorded why.
    is_lost = {r: f.message["message"].startswith(LostRank.__name__) for r, f in recorded.items()}
    for rank in sorted(recorded, key=lambda rank: is_lost[rank]):
        text = recorded[rank].message["message"].partition(": ")[2]
        text = text if rank == 0 else f"rank {rank}: {text}"
        return UserError(text) if recorded[rank].exitcode == 2 else Failure(text)
    for failure in soon.values():
        if failure.exitcode > 128:
            return Interrupted(failure.exitcode - 128)
    rank, failure = next(iter(soon.items()))
    return Failure(f"rank {rank} ended with exit code {failure.exitcode}")
