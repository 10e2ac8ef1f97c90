"""Programs that a benchmark starts: they end with it, and their errors become its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import NoReturn

from minigpt.errors import Failure, UserError
from minigpt.train.control import Interrupted, StopRequest, stop_signals

MINIGPT = [sys.executable, "-m", "minigpt.cli"]
# It ends when the benchmark does, also if that was killed and could not end it.
BUSY_LOOP = """
import os
while os.getppid() == {parent}:
    sum(range(1_000_000))
"""


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Raise Interrupted in this block at a signal that asks to stop, so that all is cleaned up."""

    def interrupt(number: int) -> NoReturn:
        raise Interrupted(number)

    with stop_signals(StopRequest(), interrupt):
        yield


@contextmanager
def running(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    stdout: int = subprocess.DEVNULL,
) -> Iterator[subprocess.Popen[str]]:
    """Run a program while the block runs; then kill it, and all that it started.

    If it has ended with an error, raises the last line that it wrote to stderr: UserError if it
    exited with code 2, otherwise Failure.
    """
    # A pipe that nobody reads would stop a program that writes much.
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            command,
            env=environment,
            stdout=stdout,
            stderr=errors,
            text=True,
            start_new_session=True,
        ) as process,
    ):
        try:
            yield process
            code = process.poll()
        finally:
            _kill(process)
        if code:
            errors.seek(0)
            lines = errors.read().decode("utf-8", "backslashreplace").strip().splitlines()
            reason = f"{' '.join(command)}: ended with code {code} and without a message"
            message = lines[-1].removeprefix("minigpt: ") if lines else reason
            raise UserError(message) if code == 2 else Failure(message)


def _kill(process: subprocess.Popen[str]) -> None:
    """Kill a program and, except on Windows, all that it started."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):  # all have ended
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


@contextmanager
def busy_loops(n: int) -> Iterator[None]:
    """Run n processes that compute without end."""
    command = [sys.executable, "-c", BUSY_LOOP.format(parent=os.getpid())]
    with ExitStack() as stack:
        for _ in range(n):
            stack.enter_context(running(command))
        yield
