"""What people see of a search: a live table in a terminal, a line an ended trial elsewhere."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Any

from ray.tune import Callback
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from minigpt.console import PipeConsole
from minigpt.errors import first_line
from minigpt.tune.options import TuneOptions
from minigpt.tune.records import Saving, TrialRecord, described_values
from minigpt.tune.space import Values

ROWS = 12  # of the live table: those that train, then the best


class SearchDisplay(Callback):
    """Follows Ray Tune. Trials are known by their folders' names."""

    def __init__(
        self, options: TuneOptions, total: int, max_steps: int, ended: list[TrialRecord]
    ) -> None:
        self.console = PipeConsole(highlight=False)
        self.metric, self.total, self.max_steps = options.metric, total, max_steps
        self.rows: dict[str, dict[str, Any]] = {}
        for record in ended:
            self.rows[record.name] = {
                "status": record.status,
                "step": record.step,
                "value": record.value,
                "values": record.values,
            }
        self.errors: list[str] = []  # of trials that Ray gave up
        self.ended_before = len(self.rows)
        self.started = time.perf_counter()
        self.live = Live(
            console=self.console, get_renderable=self._table, refresh_per_second=2, transient=True
        )

    def start(self) -> None:
        """Begin to draw, in a terminal."""
        if self.console.is_terminal:
            self.live.start()

    def stop(self) -> None:
        """Leave the terminal as it was."""
        if self.live.is_started:
            self.live.stop()

    def line(self, text: str) -> None:
        """Print one line, above the table if there is one."""
        self.console.print(escape(text), soft_wrap=True)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._row(trial)["status"] = "running"

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        row = self._row(trial)
        row |= {"status": result["status"], "values": self._values(trial)}
        row |= {"step": result.get("step", row["step"])}
        row |= {"value": result.get(self.metric, row["value"])}
        if result.get("error"):
            row["error"] = result["error"]

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        row = self._row(trial)
        if row["status"] == "running":
            row["status"] = "stopped"
        self._ended(str(trial), row)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self.line(f"{trial}: its worker was lost; goes on from its last checkpoint")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        row = self._row(trial)
        row["status"] = "failed"
        if (error := trial.get_pickled_error()) is not None:
            row["error"] = first_line(getattr(error, "cause", error))
            self.errors.append(row["error"])
        self._ended(str(trial), row)

    def _row(self, trial: Any) -> dict[str, Any]:
        new = {"status": "waiting", "step": 0, "value": None, "values": self._values(trial)}
        return self.rows.setdefault(str(trial), new)

    @staticmethod
    def _values(trial: Any) -> Values:
        return {key: v for key, v in trial.config.items() if key not in ("job", "run")}

    def _ended(self, name: str, row: dict[str, Any]) -> None:
        row["ended"] = True
        why = f" ({row['error']})" if "error" in row else ""
        self.line(
            f"{name}: {row['status']}{why} at step {row['step']} of {self.max_steps}, "
            f"{self.metric} {_number(row['value'])}  [{self._progress()}]"
        )

    def _progress(self) -> str:
        ended = sum(1 for row in self.rows.values() if row.get("ended"))
        text = f"{self.ended_before + ended} of {self.total} trials"
        if not ended:
            return text
        left = self.total - self.ended_before - ended
        seconds = (time.perf_counter() - self.started) / ended * left
        return f"{text}, about {int(seconds) // 60}:{int(seconds) % 60:02d} left"

    def _table(self) -> Table:
        def order(item: tuple[str, dict[str, Any]]) -> tuple[bool, float]:
            value = item[1]["value"]
            return item[1]["status"] != "running", float("inf") if value is None else value

        table = Table(title=self._progress(), title_justify="left", show_edge=False)
        for column in ("trial", "status", "step", self.metric, "values"):
            table.add_column(column, no_wrap=True)
        for name, row in sorted(self.rows.items(), key=order)[:ROWS]:
            step, value = f"{row['step']}/{self.max_steps}", _number(row["value"])
            values = escape(described_values(row["values"]))
            table.add_row(name.partition("_")[0], row["status"], step, value, values)
        return table

    def results(self, records: list[TrialRecord]) -> None:
        """Print the table of trials, the best first."""
        table = Table("trial", "status", "step", self.metric, "values", show_edge=False)

        def order(record: TrialRecord) -> float:
            return float("inf") if record.value is None else record.value

        for record in sorted(records, key=order):
            values = escape(described_values(record.values))
            number = record.name.partition("_")[0]
            table.add_row(number, record.status, str(record.step), _number(record.value), values)
        self.console.print(table)

    def end(self, folder: Path, best: TrialRecord, saving: Saving) -> None:
        """Say what stopping early saved, what was best, and how to run it again."""
        self.line(saving.describe())
        self.line(f"best       {best.name}, {self.metric} {_number(best.value)} ({best.status})")
        if best.adopted:
            self.line(
                "           its optimizer changed as it trained: best.yaml has how it ended, "
                "tune.json how it went"
            )
        directory = shlex.quote(str(folder))
        self.line(f"again      minigpt train --config-dir {directory} --config-name best")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
