"""Show the progress of a sweep, read from the run directories of its jobs."""

from __future__ import annotations

import shlex
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table as Grid

from minigpt.config.hydra_main import DRY_RUN
from minigpt.config.schema import Config
from minigpt.console import LiveView, PipeConsole, time_left
from minigpt.errors import UserError
from minigpt.files import file_state, read_json_lines, try_read_json
from minigpt.loss_of import EVERY_TOKEN, NOT_COMPARED, grouped, tokens_note
from minigpt.report.comparison import BITS, LOSS
from minigpt.report.tables import Cell, Column, Table, print_table
from minigpt.sweep.job import LOG
from minigpt.sweep.plan import PlannedJob

POLL_SECONDS = 0.5
NOTE_LENGTH = 60
TAIL_BYTES = 4096  # end of metrics.jsonl, longer than a line
STATES = ("finished", "failed", "interrupted")  # status in result.json
SKIPPED = "skipped"


@dataclass(frozen=True)
class Status:
    """Progress of a job. `state`: waiting, running, finished, failed, interrupted or skipped."""

    state: str
    step: int
    result: dict[str, Any]

    @property
    def ended(self) -> bool:
        """Whether the job has ended."""
        return self.state not in ("waiting", "running")


class Watch:
    """Shows a sweep while the block runs: a table in a terminal, a line for each job in a pipe.

    `later_steps`: training steps that follow the sweep, for the time left.
    """

    def __init__(self, jobs: list[PlannedJob], directory: str, later_steps: int = 0) -> None:
        self.jobs, self.directory, self.later_steps = jobs, directory, later_steps
        self.clock = time.perf_counter()
        files = (file for job in jobs for file in (job.path / LOG, job.run.result))
        self.before = {file: file_state(file) for file in files}
        self.statuses = [self._status(job) for job in jobs]
        self.first_step = self._steps()
        # Jobs in this process redirect stdout into their logs.
        self.view = LiveView(self._progress, redirect=False, status=self._status_line)
        self._line = self.view.line
        self.finished = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watch:
        skipped = self.count(SKIPPED)
        before = f", {skipped} of them finished before" if skipped else ""
        self._line(f"sweep of {len(self.jobs)} jobs{before}, in {self.directory}")
        self.view.__enter__()
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.finished.set()
        self.thread.join()
        self._update()
        self.view.__exit__()

    def count(self, state: str) -> int:
        """Return the number of jobs in a state."""
        return sum(status.state == state for status in self.statuses)

    def summary(self) -> None:
        """Print a table of all jobs with their results, one for each objective."""
        groups = grouped([*zip(self.jobs, self.statuses, strict=True)], _task)
        for name, group in groups.items():
            named = f", objective={name}" if len(groups) > 1 else ""
            print_table(_results(f"Jobs{named}", group), self.view.console)
        if len(groups) > 1:
            self._line(NOT_COMPARED)
        seconds = time.perf_counter() - self.clock
        self._line(f"{self._counts()}; {seconds:.1f} s; in {self.directory}")

    def _watch(self) -> None:
        while not self.finished.wait(POLL_SECONDS):
            self._update()

    def _update(self) -> None:
        """Read the run directories, print a line for each job that ended, and redraw."""
        for number, (job, before) in enumerate(zip(self.jobs, self.statuses, strict=True)):
            if before.ended:
                continue
            self.statuses[number] = now = self._status(job)
            if now.ended:
                ended = sum(status.ended for status in self.statuses)
                end = _end_line(job, now, self.directory)
                self._line(f"{ended}/{len(self.jobs)}  {end}  {self._time_left()}")
        self.view.refresh()

    def _status(self, job: PlannedJob) -> Status:
        """Return a job's status, from files written since the sweep started."""
        if job.finished_before:
            result = try_read_json(job.run.result)
            return Status(SKIPPED, result.get("steps", 0), result)
        if not self._is_newer(job.path / LOG):
            return Status("waiting", 0, {})
        if isinstance(job.config, UserError):
            return Status("failed", 0, {"error": str(job.config)})
        if self._is_newer(job.run.result):
            result = try_read_json(job.run.result)
            if result.get("status") in STATES:
                return Status(result["status"], result.get("steps", 0), result)
        return Status("running", last_step(job.run.metrics), {})

    def _is_newer(self, file: Path) -> bool:
        return file_state(file) not in (None, self.before[file])

    def _steps(self) -> int:
        """Return the sum of steps over all jobs. A job that has ended counts with all its steps."""
        return sum(
            job.max_steps if status.ended else status.step
            for job, status in zip(self.jobs, self.statuses, strict=True)
        )

    def _time_left(self) -> str:
        steps = self._steps()
        trained = steps - self.first_step
        if trained <= 0:
            return ""
        remaining = sum(job.max_steps for job in self.jobs) - steps + self.later_steps
        return time_left((time.perf_counter() - self.clock) / trained * remaining)

    def _counts(self) -> str:
        counts = Counter(status.state for status in self.statuses)
        notes = {SKIPPED: " (finished before)"}
        return ", ".join(f"{n} {state}{notes.get(state, '')}" for state, n in counts.items())

    def _progress(self) -> Group:
        """Return a bar for each running job, and the counts."""
        rows = Grid.grid(padding=(0, 2))
        for job, status in zip(self.jobs, self.statuses, strict=True):
            if status.state == "running":
                steps = job.max_steps
                bar = ProgressBar(total=steps, completed=status.step, width=30)
                rows.add_row(escape(job.label), bar, f"{status.step:,}/{steps:,}")
        return Group(rows, self._status_line())

    def _status_line(self) -> str:
        return f"{self._counts()}  {self._time_left()}".rstrip()


def _task(item: tuple[PlannedJob, Status]) -> dict[str, Any] | None:
    config = item[0].config
    return config.task if isinstance(config, Config) else None


def _results(title: str, jobs: Sequence[tuple[PlannedJob, Status]]) -> Table:
    names = {job.config.tokenizer.name for job, _ in jobs if isinstance(job.config, Config)}
    measure = LOSS if len(names) < 2 else BITS  # nats/token depend on the tokenizer
    columns = [
        *map(Column, ("job", "status", "steps")),
        Column(measure.key, f"val loss, {measure.unit}"),
        Column("seconds", digits=1),
        Column("note"),
    ]
    rows: list[list[Cell]] = [
        [
            job.label,
            status.state,
            status.step,
            status.result.get(measure.key),
            status.result.get("seconds"),
            status.result.get("error", "")[:NOTE_LENGTH],  # the job's log has the full error
        ]
        for job, status in jobs
    ]
    return Table("jobs", title, columns, rows)


def list_jobs(jobs: list[PlannedJob], directory: Path) -> None:
    """Print a table of what a sweep would run. Raises UserError if a job has wrong overrides."""
    flags = (DRY_RUN, f"++{DRY_RUN}")
    overrides = [[o for o in job.overrides if not o.startswith(flags)] for job in jobs]
    common = [o for o in overrides[0] if all(o in others for others in overrides)]
    errors = {job.label: str(job.config) for job in jobs if isinstance(job.config, UserError)}
    rows: list[list[Cell]] = []
    for job, own in zip(jobs, overrides, strict=True):
        varied, error = shlex.join(o for o in own if o not in common), errors.get(job.label)
        rows.append([job.label, _plan(job), job.max_steps, varied, error])
    columns = [*map(Column, ("job", "status", "steps", "overrides", "note"))]
    console = PipeConsole(highlight=False)
    print_table(Table("jobs", "Jobs", columns, rows), console)
    waiting = sum(not job.finished_before for job in jobs)
    counts = f"{waiting} of {len(jobs)} jobs to run, in {shown(directory)}"
    remedy = f"the same command without --cfg job or {DRY_RUN} runs them"
    for line in (f"each with: {shlex.join(common)}", f"{counts}; {remedy}"):
        console.print(line, markup=False, soft_wrap=True)
    if errors:
        first = next(iter(errors.values()))
        raise UserError(f"{len(errors)} of {len(jobs)} jobs cannot run: {first}")


def _plan(job: PlannedJob) -> str:
    if isinstance(job.config, UserError):
        return "cannot run"
    if job.finished_before:
        return "finished before"
    return "resumes" if job.run.config.exists() else "new"


def shown(path: Path) -> str:
    """Return a path relative to the working directory, if it is below it."""
    cwd = Path.cwd()
    return str(path.relative_to(cwd) if path.is_relative_to(cwd) else path)


def _end_line(job: PlannedJob, status: Status, directory: str) -> str:
    result = status.result
    if status.state == "failed":
        log = Path(directory) / job.path.name / LOG
        return f"{job.label}  failed: {result.get('error')}  (log: {log})"
    loss = result.get("val_loss")
    of = tokens_note(result.get("loss_of", EVERY_TOKEN))
    measured = "" if loss is None else f"  val loss {loss:.4f} nats/token{of}"
    return f"{job.label}  {status.state}{measured}  {result.get('seconds', 0):.1f} s"


def last_step(metrics: Path) -> int:
    """Return the step of the last complete line of metrics.jsonl, or 0."""
    steps = [line["step"] for line in read_json_lines(metrics, TAIL_BYTES) if "step" in line]
    return steps[-1] if steps else 0
