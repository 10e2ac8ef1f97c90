"""Console output: plain lines, and a live view in a terminal."""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import Any, ClassVar, Self, TextIO, TypeVar

from rich import box
from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

SILENCE_SECONDS = 15.0  # the longest time without a line in a pipe while work goes on

T = TypeVar("T")
Advance = Callable[[float], object]  # called with an amount of work that is done


def ignore_progress(amount: float) -> None:
    """Ignore progress."""


def counted(items: Iterable[T], progress: Advance) -> Iterator[T]:
    """Yield the items; each one is a unit of work, done when the next is asked for."""
    for item in items:
        yield item
        progress(1)


class PipeConsole(Console):
    """A console that ignores a closed pipe, so that `| head` does not end a training run."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


def discard_output_to_closed_terminal() -> None:
    """Redirect stdout and stderr to nowhere if their terminal was closed: writing would fail."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


class LiveView:
    """Lines on stdout and, in a terminal, a live view below them that is redrawn in place.

    `draw` returns the view. `refresh` calls it, as does a thread `per_second` times if given. In a
    pipe, only lines are printed, and while the block runs also the line that `status` returns
    whenever SILENCE_SECONDS passed without one. `redirect`: print other writes to stdout and
    stderr above the view. `stream`: where to print instead of stdout.
    """

    def __init__(
        self,
        draw: Callable[[], RenderableType],
        per_second: float | None = None,
        redirect: bool = True,
        status: Callable[[], str] | None = None,
        stream: TextIO | None = None,
    ) -> None:
        self.draw, self.per_second, self.redirect = draw, per_second, redirect
        self.status = status
        # The current stdout: jobs of a sweep later redirect sys.stdout into their logs.
        self.console = PipeConsole(file=stream or sys.stdout, highlight=False, emoji=False)
        self._live: Live | None = None
        self._ended = threading.Event()
        self._last_line = time.monotonic()
        self._reporter: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live = Live(
                console=self.console,
                get_renderable=self.draw,
                auto_refresh=self.per_second is not None,
                refresh_per_second=self.per_second or 1,
                redirect_stdout=self.redirect and sys.stdout.isatty(),
                redirect_stderr=self.redirect and sys.stderr.isatty(),
                transient=True,
            )
            self._live.start()
        elif self.status is not None:
            self._ended.clear()
            self._last_line = time.monotonic()
            self._reporter = threading.Thread(target=self._report, args=[self.status], daemon=True)
            self._reporter.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._reporter is not None:
            self._ended.set()
            self._reporter.join()
            self._reporter = None

    def line(self, text: str) -> None:
        """Print one line, above the view if there is one."""
        self._last_line = time.monotonic()
        self.console.print(text, markup=False, soft_wrap=True)

    def rows(self, rows: Sequence[tuple[str, str]]) -> None:
        """Print names and texts, the heading first: a table in a terminal, lines in a pipe."""
        if not self.console.is_terminal:
            self.line("\n".join(f"{name:<10} {text}" for name, text in rows))
            return
        table = Table(box=box.HORIZONTALS)
        for heading in rows[0]:
            table.add_column(Text(heading), overflow="fold")
        for row in rows[1:]:
            table.add_row(*map(Text, row))
        self.console.print(table)

    def refresh(self) -> None:
        """Draw the view again, in a terminal."""
        if self._live is not None:
            self._live.refresh()

    def _report(self, status: Callable[[], str]) -> None:
        with suppress(OSError, ValueError):  # a full disk or a closed stream: the program sees it
            while not self._ended.wait(self._last_line + SILENCE_SECONDS - time.monotonic()):
                if time.monotonic() >= self._last_line + SILENCE_SECONDS:
                    self.line(status())


class Progress:
    """Shows on stderr, while its block runs, how much work is done, and the time left.

    In a terminal it is a bar, in a pipe a line whenever SILENCE_SECONDS passed. `total`: the work
    in any unit; None if unknown. The block may be entered again. Of nested blocks, only the
    innermost is shown: a terminal has room for one view.
    """

    _running: ClassVar[list[Progress]] = []  # the innermost is last
    _view: ClassVar[LiveView]  # of the running blocks

    def __init__(self, activity: str, total: float | None = None) -> None:
        self.begin(activity, total)

    def __enter__(self) -> Self:
        running = Progress._running
        running.append(self)
        if len(running) == 1:
            Progress._view = LiveView(
                lambda: running[-1]._draw(),
                per_second=2,
                status=lambda: f"minigpt: {running[-1]}",
                stream=sys.stderr,
            )
            Progress._view.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if Progress._running == [self]:
            Progress._view.__exit__()
        Progress._running.remove(self)

    def begin(self, activity: str, total: float | None = None) -> None:
        """Start to count again, for other work."""
        self.activity, self.total, self.done = activity, total, 0.0
        self._started = time.monotonic()

    def advance(self, amount: float = 1) -> None:
        """Add work that is done."""
        self.done += amount

    def counted(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items; each one is a unit of work, done when the next is asked for."""
        return counted(items, self.advance)

    def __str__(self) -> str:
        return f"{self.activity}: {self._done()}"

    def _done(self) -> str:
        """Return the part of the work that is done and the time left; if unknown, the time."""
        seconds = time.monotonic() - self._started
        if not self.total or not self.done:
            return duration(seconds)
        rest = max(0.0, seconds / self.done * (self.total - self.done))
        return f"{min(1.0, self.done / self.total):.0%}, {time_left(rest)}"

    def _draw(self) -> RenderableType:
        return bar(self.activity, self.done, self.total, self._done())


def interruptible(work: Callable[[], T], activity: str) -> T:
    """Return `work()`, computed in a thread, so that a signal ends it inside a library too.

    Shows on stderr that the activity goes on.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    with Progress(activity):
        while not wait([future], 1).done:  # Windows handles a signal only between waits
            pass
    return future.result()


def bar(name: str, done: float, total: float | None, text: str) -> RenderableType:
    """Return one line: a name, a bar as wide as there is room, and a text."""
    grid = Table.grid(padding=(0, 2), expand=True)
    for ratio in (None, 1, None):
        grid.add_column(ratio=ratio, no_wrap=True)
    grid.add_row(Text(name), ProgressBar(total=total, completed=done), Text(text))
    return grid


def time_left(seconds: float) -> str:
    """Return 'M:SS left', or 'H:MM:SS left'."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d} left" if hours else f"{minutes}:{rest:02d} left"


def duration(seconds: float) -> str:
    """Return a time such as '98.0 s', '17 min 31 s' or '2 h 5 min'."""
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 2:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def described(options: Any) -> str:
    """Return the name of a variant with its options in brackets."""
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    name = values.pop("name")
    texts = [f"{k} {', '.join(v) if isinstance(v, list) else v}" for k, v in values.items()]
    return f"{name} ({'; '.join(texts)})" if texts else name
