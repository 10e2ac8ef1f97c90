"""Stopping a run: signals, requests from other threads, and the clock of its steps."""

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
    """The loss, the gradient or a weight is not finite, or the loss stays above guessing."""


class Interrupted(KeyboardInterrupt):
    """A signal stopped the run after a checkpoint was saved. `number`: of the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class EarlyStop(Exception):
    """Raised by a callback to end training early. `status` is written to result.json."""

    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status


class Stopwatch:
    """Measures seconds since its construction, without pauses."""

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
        """Stop the clock in this block. Nested pauses have no further effect."""
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
    """A request to stop. `number`: of the signal, or None as long as nothing was requested."""

    number: int | None = None


@contextmanager
def stop_signals(
    stop: StopRequest, on_request: Callable[[int], object] = lambda number: None
) -> Iterator[StopRequest]:
    """Set `stop.number` at the first SIGINT or SIGTERM; a second one raises KeyboardInterrupt.

    `on_request` is called with the number of the first signal. Outside of the main thread, where
    Python delivers no signals, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield stop
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
