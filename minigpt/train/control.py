"""Ending a run from outside, and the clock of its steps."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from minigpt.errors import Failure


class Diverged(Failure):
    """The loss or the gradient is no longer a finite number."""


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to stop; the run is saved and can be resumed."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Stopped(Exception):
    """Whoever follows the evaluations wants no more steps. `status` is for result.json."""

    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status


class Stopwatch:
    """Seconds since it was made, but for pauses."""

    def __init__(self) -> None:
        self._since = time.perf_counter()
        self._pause: float | None = None

    @property
    def seconds(self) -> float:
        """So far."""
        now = time.perf_counter() if self._pause is None else self._pause
        return now - self._since

    @contextmanager
    def paused(self) -> Iterator[None]:
        """It stands still in here, and goes on where it is not paused already."""
        if self._pause is not None:
            yield
            return
        self._pause = time.perf_counter()
        try:
            yield
        finally:
            self._since += time.perf_counter() - self._pause
            self._pause = None


@dataclass
class Stop:
    """The signal that asked the run to stop, if one did."""

    number: int | None = None


@contextmanager
def stop_signals(
    stop: Stop, on_request: Callable[[int], object] = lambda number: None
) -> Iterator[Stop]:
    """Turn the first SIGINT or SIGTERM into a request; a second one interrupts at once.

    `on_request` is given the signal, to tell others of it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Python delivers signals to the main thread only
        return

    def request(number: int, frame: FrameType | None) -> None:
        if stop.number is not None:
            raise KeyboardInterrupt
        stop.number = number
        on_request(number)

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
