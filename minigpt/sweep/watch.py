"""What people see of a sweep: how its jobs come on, read from their run directories."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table as Grid

from minigpt.config.schema import Config
from minigpt.console import PipeConsole
from minigpt.errors import UserError
from minigpt.report.comparison import BITS, LOSS
from minigpt.report.tables import Cell, Column, Table, to_plain, to_rich
from minigpt.sweep.job import LOG
from minigpt.sweep.plan import Job

POLL_SECONDS = 0.5
LINE_SECONDS = 60.0  # between lines where the output is no terminal and no job ends
NOTE_LENGTH = 60
TAIL_BYTES = 4096  # of metrics.jsonl: more than its last line
ENDS = {"finished": "done", "failed": "failed", "interrupted": "interrupted"}


@dataclass(frozen=True)
class Status:
    """How far a job is. `state`: waiting, running, done, failed, interrupted or skipped."""

    state: str
    step: int
    result: dict[str, Any]

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state not in ("waiting", "running")


class Watch:
    """Shows a sweep while the block runs. A terminal shows a table, a pipe a line for each end."""

    def __init__(self, jobs: list[Job], where: str) -> None:
        self.jobs, self.where = jobs, where
        self.began, self.clock = time.time(), time.perf_counter()
        self.statuses = [self._status(job) for job in jobs]
        self.steps_before = self._steps()
        # Of this process's own output, which jobs in it send to their logs.
        self.console = PipeConsole(file=sys.stdout, highlight=False, soft_wrap=True)
        self.live = Live(
            console=self.console,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
            transient=True,
        )
        self.said_at = time.perf_counter()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watch:
        skipped = self.count("skipped")
        before = f", {skipped} of them done before" if skipped else ""
        self._say(f"sweep of {len(self.jobs)} jobs{before}, in {self.where}")
        if self.console.is_terminal:
            self.live.start()
        self.thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.over.set()
        self.thread.join()
        self._update()
        self.live.stop()

    def count(self, state: str) -> int:
        """How many jobs are in a state."""
        return Counter(status.state for status in self.statuses)[state]

    def summary(self) -> None:
        """Print a table of all jobs and how they ended."""
        names = {j.config.tokenizer.name for j in self.jobs if isinstance(j.config, Config)}
        measure = LOSS if len(names) < 2 else BITS  # tokens of different length do not compare
        columns = [
            Column("job", "job"),
            Column("status", "status"),
            Column("steps", "steps"),
            Column(measure.key, f"val loss, {measure.unit}"),
            Column("seconds", "seconds", digits=1),
            Column("note", "note"),
        ]
        rows: list[list[Cell]] = [
            [
                job.label,
                status.state,
                status.step,
                status.result.get(measure.key),
                status.result.get("seconds"),
                status.result.get("error", "")[:NOTE_LENGTH],  # in full in the job's log
            ]
            for job, status in zip(self.jobs, self.statuses, strict=True)
        ]
        table = Table("jobs", "Jobs", columns, rows)
        if self.console.is_terminal:
            self.console.print(*to_rich(table, self.console.width))
        else:
            self._say("\n".join(to_plain(table)))
        self._say(f"{self._counts()}; {time.perf_counter() - self.clock:.1f} s; in {self.where}")

    def _watch(self) -> None:
        while not self.over.wait(POLL_SECONDS):
            self._update()

    def _update(self) -> None:
        """Look at the run directories, say what has ended since, and draw the rest."""
        for number, (job, before) in enumerate(zip(self.jobs, self.statuses, strict=True)):
            if before.ended:
                continue
            self.statuses[number] = now = self._status(job)
            if now.ended:
                end = _end(job, now, self.where)
                self._say(f"{self._ended()}/{len(self.jobs)}  {end}  {self._left()}")
        if self.live.is_started:
            self.live.update(self._drawn(), refresh=True)
        elif time.perf_counter() - self.said_at > LINE_SECONDS:
            self._say(f"{self._counts()}  {self._left()}")

    def _status(self, job: Job) -> Status:
        """A job's status, from files written since the sweep began."""
        if job.done:
            result = _read_result(job.run.result)
            return Status("skipped", result.get("steps", 0), result)
        if not _newer(job.path / LOG, self.began):
            return Status("waiting", 0, {})
        if isinstance(job.config, UserError):
            return Status("failed", 0, {"error": str(job.config)})
        if _newer(job.run.result, self.began):
            result = _read_result(job.run.result)
            state = ENDS.get(result.get("status", ""))
            if state is not None:
                return Status(state, result.get("steps", 0), result)
        return Status("running", last_step(job.run.metrics), {})

    def _ended(self) -> int:
        return sum(status.ended for status in self.statuses)

    def _steps(self) -> int:
        """Steps done; what has ended counts in full."""
        return sum(
            job.max_steps if status.ended else status.step
            for job, status in zip(self.jobs, self.statuses, strict=True)
        )

    def _left(self) -> str:
        done = self._steps()
        now = done - self.steps_before
        if now <= 0:
            return ""
        total = sum(job.max_steps for job in self.jobs)
        seconds = int((time.perf_counter() - self.clock) / now * (total - done))
        return f"{seconds // 60}:{seconds % 60:02d} left"

    def _counts(self) -> str:
        counts = Counter(status.state for status in self.statuses)
        return ", ".join(f"{number} {state}" for state, number in counts.items())

    def _drawn(self) -> Group:
        rows = Grid.grid(padding=(0, 2))
        for job, status in zip(self.jobs, self.statuses, strict=True):
            if status.state == "running":
                steps = job.max_steps
                bar = ProgressBar(total=steps, completed=status.step, width=30)
                rows.add_row(escape(job.label), bar, f"{status.step:,}/{steps:,}")
        return Group(rows, f"{self._counts()}  {self._left()}")

    def _say(self, text: str) -> None:
        self.said_at = time.perf_counter()
        self.console.print(escape(text))


def _end(job: Job, status: Status, where: str) -> str:
    result = status.result
    if status.state == "failed":
        log = Path(where) / job.path.name / LOG
        return f"{job.label}  failed: {result.get('error')}  (log: {log})"
    loss = result.get("val_loss")
    found = "" if loss is None else f"  val loss {loss:.4f}"
    return f"{job.label}  {status.state}{found}  {result.get('seconds', 0):.1f} s"


def last_step(metrics: Path) -> int:
    """The step of the last whole line of metrics.jsonl, 0 if there is none."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, metrics.stat().st_size - TAIL_BYTES))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return 0
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):
            continue  # being written, or cut by the tail
    return 0


def _read_result(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def _newer(path: Path, moment: float) -> bool:
    try:
        return path.stat().st_mtime >= moment
    except FileNotFoundError:
        return False
