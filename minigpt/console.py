"""Console output: plain lines, and a live view in a terminal."""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, Self, TypeVar

from rich.console import Console, RenderableType
from rich.live import Live

REPORT_SECONDS = 5.0

T = TypeVar("T")


class PipeConsole(Console):
    """A console that ignores a closed pipe, so that `| head` does not end a training run."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def interruptible(work: Callable[[], T], activity: str) -> T:
    """Return `work()`, computed in a thread, so that a signal ends it inside a library too.

    Every REPORT_SECONDS a line on stderr says that the activity goes on.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    start = time.monotonic()
    threading.Thread(target=run, daemon=True).start()
    while not wait([future], REPORT_SECONDS).done:
        print(f"minigpt: {activity}: {time.monotonic() - start:.0f} s", file=sys.stderr)
    return future.result()


def discard_output_to_closed_terminal() -> None:
    """Redirect stdout and stderr to nowhere if their terminal was closed: writing would fail."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


class LiveView:
    """Lines on stdout and, in a terminal, a live view below them that is redrawn in place.

    In a pipe, only the lines are printed. `draw` returns the view. `refresh` calls it, as does a
    thread `per_second` times if given. `redirect`: print other writes to stdout and stderr above
    the view.
    """

    def __init__(
        self,
        draw: Callable[[], RenderableType],
        per_second: float | None = None,
        redirect: bool = True,
    ) -> None:
        self.draw, self.per_second, self.redirect = draw, per_second, redirect
        # The current stdout: jobs of a sweep later redirect sys.stdout into their logs.
        self.console = PipeConsole(file=sys.stdout, highlight=False)
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live = Live(
                console=self.console,
                get_renderable=self.draw,
                auto_refresh=self.per_second is not None,
                refresh_per_second=self.per_second or 1,
                redirect_stdout=self.redirect,
                redirect_stderr=self.redirect,
                transient=True,
            )
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def line(self, text: str) -> None:
        """Print one line, above the view if there is one."""
        self.console.print(text, markup=False, soft_wrap=True)

    def refresh(self) -> None:
        """Draw the view again, in a terminal."""
        if self._live is not None:
            self._live.refresh()


def time_left(seconds: float) -> str:
    """Return 'M:SS left'."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} left"


def described(options: Any) -> str:
    """Return the name of a variant with its options in brackets."""
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    name = values.pop("name")
    texts = [f"{k} {', '.join(v) if isinstance(v, list) else v}" for k, v in values.items()]
    return f"{name} ({'; '.join(texts)})" if texts else name
