"""Stop a run by signals or requests from other threads, and measure its time."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from minigpt.console import discard_output_to_closed_terminal
from minigpt.errors import Failure
from minigpt.torchrun import is_started_as_rank


class Diverged(Failure):
    """The loss, the gradient or a weight is not finite, or the loss stays above guessing."""


class Interrupted(KeyboardInterrupt):
    """A signal stopped the run after a checkpoint was saved. `number`: the signal number."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class EarlyStop(Exception):
    """Raised by a callback to end training early. `status` is written to result.json."""

    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status


class Stopwatch:
    """Measures the seconds since construction, excluding pauses."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._paused_at: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        now = time.perf_counter() if self._paused_at is None else self._paused_at
        return now - self._started

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Pause the clock in this block. Nested pauses have no effect."""
        if self._paused_at is not None:
            yield
            return
        self._paused_at = time.perf_counter()
        try:
            yield
        finally:
            self._started += time.perf_counter() - self._paused_at
            self._paused_at = None


@dataclass
class StopRequest:
    """A request to stop. `number`: the signal number, or None if there is no request."""

    number: int | None = None


@contextmanager
def polling(check: Callable[[], bool], seconds: float) -> Iterator[None]:
    """Call `check` in a thread every few seconds while the block runs, until it returns True."""
    finished = threading.Event()

    def poll() -> None:
        while not finished.wait(seconds) and not check():
            pass

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


# Signals that ask to save and exit. SIGHUP: the terminal was closed. SIGUSR1: SLURM's warning that
# the time limit is near (`sbatch --signal`).
STOP_SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)  # Windows lacks the last two
]
URGENT_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_signals(
    stop: StopRequest, on_request: Callable[[int], object] = lambda number: None
) -> Iterator[StopRequest]:
    """Set `stop.number` at the first of STOP_SIGNALS.

    After SIGINT or SIGTERM, a second one of these raises KeyboardInterrupt, except in a process of
    torchrun, whose agent repeats the signal of a terminal, and kills those that do not end.
    `on_request` is called with the number of the first signal. Signals that are ignored, as by
    nohup, stay so. Outside of the main thread, where Python delivers no signals, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(number: int, frame: FrameType | None) -> None:
        if number not in URGENT_SIGNALS:
            discard_output_to_closed_terminal()
        if stop.number is None:
            stop.number = number
            on_request(number)
        elif {number, stop.number} <= {*URGENT_SIGNALS} and not is_started_as_rank():
            raise KeyboardInterrupt

    handled = [n for n in STOP_SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, request) for number in handled}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
