"""Progress of a search: a live table in a terminal, a line for each trial that ended."""

from __future__ import annotations

import math
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.tune import Callback
from rich.console import Group, RenderableType

from minigpt.config.pairs import Values, described_values
from minigpt.console import LiveView, time_left
from minigpt.errors import first_line
from minigpt.report.tables import Cell, Column, Table, print_table, to_rich
from minigpt.run.sweep_file import next_commands
from minigpt.tune.options import METRICS, TuneOptions
from minigpt.tune.records import Saving, TrialRecord

MAX_ROWS = 12  # rows of the live table: running trials, then the best
REFRESHES_PER_SECOND = 2


@dataclass
class TrialRow:
    """Progress of one trial. `ended_now`: whether it ended in this call."""

    values: Values
    status: str = "waiting"
    step: int = 0
    value: float | None = None
    error: str | None = None
    ended_now: bool = False


class SearchDisplay(Callback):
    """Shows the progress that Ray Tune reports. `view` is a live table."""

    def __init__(
        self, options: TuneOptions, total: int, max_steps: int, ended: list[TrialRecord]
    ) -> None:
        self.metric, self.total, self.max_steps = options.metric, total, max_steps
        self.rows = {
            record.name: TrialRow(record.values, record.status, record.step, record.value)
            for record in ended
        }
        self.errors: list[str] = []  # errors of trials that are not restarted
        self.ended_before = len(self.rows)
        self.start_time = time.perf_counter()
        self.view = LiveView(self._live_table, REFRESHES_PER_SECOND, status=self._status_line)
        self.line = self.view.line

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._row(trial).status = "running"

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        row = self._row(trial)
        row.status, row.values = result["status"], _values(trial)
        row.step = result.get("step", row.step)
        row.value = result.get(self.metric, row.value)
        row.error = result.get("error") or row.error

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        row = self._row(trial)
        if row.status == "running":
            row.status = "stopped"
        self._print_end(str(trial), row)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self.line(f"{trial}: worker lost; resumes from the last checkpoint")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        row = self._row(trial)
        row.status = "failed"
        if (error := trial.get_pickled_error()) is not None:
            row.error = first_line(getattr(error, "cause", error))
            self.errors.append(row.error)
        self._print_end(str(trial), row)

    def _row(self, trial: Any) -> TrialRow:
        return self.rows.setdefault(str(trial), TrialRow(_values(trial)))

    def _print_end(self, name: str, row: TrialRow) -> None:
        row.ended_now = True
        error = f" ({row.error})" if row.error else ""
        self.line(
            f"{name}: {row.status}{error} at step {row.step} of {self.max_steps}, "
            f"{self._described(row.value)}  [{self._progress()}]"
        )

    def _described(self, value: float | None) -> str:
        return f"{self.metric} {_number(value)} {METRICS[self.metric]}"

    def _status_line(self) -> str:
        running = [row for row in [*self.rows.values()] if row.status == "running"]
        steps = ", ".join(str(row.step) for row in running)
        at_step = f", at step {steps} of {self.max_steps}" if running else ""
        return f"{len(running)} running{at_step}  [{self._progress()}]"

    def _progress(self) -> str:
        rows = [*self.rows.values()]
        ended = sum(row.ended_now for row in rows)
        text = f"{self.ended_before + ended} of {self.total} trials"
        done = ended + sum(row.step / self.max_steps for row in rows if row.status == "running")
        if not done:
            return text
        remaining = self.total - self.ended_before - done
        seconds = (time.perf_counter() - self.start_time) / done * remaining
        return f"{text}, about {time_left(seconds)}"

    def _live_table(self) -> RenderableType:
        rows = sorted(self.rows.items(), key=lambda item: _by_value(item[1].value))
        rows.sort(key=lambda item: item[1].status != "running")
        cells = [
            _cells(name, row.status, f"{row.step}/{self.max_steps}", row.value, row.values)
            for name, row in rows[:MAX_ROWS]
        ]
        return Group(*to_rich(self._table(self._progress(), cells), self.view.console.width))

    def results(self, records: list[TrialRecord]) -> None:
        """Print the table of trials, the best first."""
        cells = [
            _cells(record.name, record.status, str(record.step), record.value, record.values)
            for record in sorted(records, key=lambda record: _by_value(record.value))
        ]
        print_table(self._table("Trials", cells), self.view.console)

    def _table(self, title: str, cells: list[list[Cell]]) -> Table:
        measured = Column(self.metric, f"{self.metric}, {METRICS[self.metric]}")
        columns = [*map(Column, ("trial", "status", "step")), measured, Column("values")]
        return Table("trials", title, columns, cells)

    def end(self, folder: Path, best: TrialRecord, saving: Saving) -> None:
        """Print the steps saved, the best trial, and the command that trains its config again."""
        if saving.steps_in_full > 0:
            self.line(saving.describe())
        self.line(f"best       {best.name}, {self._described(best.value)} ({best.status})")
        if best.adopted:
            self.line(
                "           its optimizer options changed during training: best.yaml has the last "
                "values and, as a comment, the schedule; training it again gives another loss"
            )
        directory = shlex.quote(str(folder))
        self.line(f"again      minigpt train --config-dir {directory} --config-name best")
        for line in next_commands(folder):
            self.line(line)


def _values(trial: Any) -> Values:
    return {key: v for key, v in trial.config.items() if key not in ("settings", "run")}


def _cells(name: str, status: str, step: str, value: float | None, values: Values) -> list[Cell]:
    return [name.partition("_")[0], status, step, value, described_values(values)]


def _by_value(value: float | None) -> float:
    return math.inf if value is None else value


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
