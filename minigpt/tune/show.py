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

from minigpt.console import LiveView, time_left
from minigpt.errors import first_line
from minigpt.report.tables import Cell, Column, Table, print_table, to_rich
from minigpt.tune.options import TuneOptions
from minigpt.tune.records import Saving, TrialRecord, described_values
from minigpt.tune.space import Values

MAX_ROWS = 12  # of the live table: running trials, then the best
REFRESHES_PER_SECOND = 2


@dataclass
class TrialRow:
    """Progress of one trial. `ended_now`: in this call."""

    values: Values
    status: str = "waiting"
    step: int = 0
    value: float | None = None
    error: str | None = None
    ended_now: bool = False


class SearchDisplay(Callback):
    """Shows what Ray Tune reports. `view` draws the table while it is entered."""

    def __init__(
        self, options: TuneOptions, total: int, max_steps: int, ended: list[TrialRecord]
    ) -> None:
        self.metric, self.total, self.max_steps = options.metric, total, max_steps
        self.rows = {
            record.name: TrialRow(record.values, record.status, record.step, record.value)
            for record in ended
        }
        self.errors: list[str] = []  # of trials that Ray Tune does not restart
        self.ended_before = len(self.rows)
        self.start_time = time.perf_counter()
        self.view = LiveView(self._live_table, REFRESHES_PER_SECOND)

    def line(self, text: str) -> None:
        """Print one line, above the table if it is drawn."""
        self.view.line(text)

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
            f"{self.metric} {_number(row.value)}  [{self._progress()}]"
        )

    def _progress(self) -> str:
        ended = sum(row.ended_now for row in self.rows.values())
        text = f"{self.ended_before + ended} of {self.total} trials"
        if not ended:
            return text
        remaining = self.total - self.ended_before - ended
        seconds = (time.perf_counter() - self.start_time) / ended * remaining
        return f"{text}, about {time_left(seconds)}"

    def _live_table(self) -> RenderableType:
        def order(item: tuple[str, TrialRow]) -> tuple[bool, float]:
            row = item[1]
            return row.status != "running", math.inf if row.value is None else row.value

        cells: list[list[Cell]] = [
            _cells(name, row.status, f"{row.step}/{self.max_steps}", row.value, row.values)
            for name, row in sorted(self.rows.items(), key=order)[:MAX_ROWS]
        ]
        table = Table("trials", self._progress(), self._columns(), cells)
        return Group(*to_rich(table, self.view.console.width))

    def results(self, records: list[TrialRecord]) -> None:
        """Print the table of trials, the best first."""

        def order(record: TrialRecord) -> float:
            return math.inf if record.value is None else record.value

        cells: list[list[Cell]] = [
            _cells(record.name, record.status, str(record.step), record.value, record.values)
            for record in sorted(records, key=order)
        ]
        print_table(Table("trials", "Trials", self._columns(), cells), self.view.console)

    def _columns(self) -> list[Column]:
        keys = ("trial", "status", "step", self.metric, "values")
        return [Column(key, key) for key in keys]

    def end(self, folder: Path, best: TrialRecord, saving: Saving) -> None:
        """Print the steps saved, the best trial, and the command that trains its config again."""
        self.line(saving.describe())
        self.line(f"best       {best.name}, {self.metric} {_number(best.value)} ({best.status})")
        if best.adopted:
            self.line(
                "           its optimizer options changed during training: best.yaml has the last "
                "ones, tune.json all"
            )
        directory = shlex.quote(str(folder))
        self.line(f"again      minigpt train --config-dir {directory} --config-name best")


def _values(trial: Any) -> Values:
    return {key: v for key, v in trial.config.items() if key not in ("settings", "run")}


def _cells(name: str, status: str, step: str, value: float | None, values: Values) -> list[Cell]:
    return [name.partition("_")[0], status, step, value, described_values(values)]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
