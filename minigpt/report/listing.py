"""List runs, newest first: their design, seed, status, steps, loss, time and size."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from minigpt.errors import UserError, did_you_mean
from minigpt.files import directory_bytes, read_json_lines, try_read_json
from minigpt.loss_of import CAUSAL, EVERY_TOKEN, NOT_COMPARED, grouped, heading
from minigpt.report.designs import GROUP_KEYS, model_labels, sections, shown, word
from minigpt.report.runs import Run, read_run
from minigpt.report.tables import Cell, Column, Table
from minigpt.run.directory import RunDirectory, newest_first, run_directories

TAIL_BYTES = 65536  # of metrics.jsonl: the last step and validation loss of a running run


@dataclass(frozen=True)
class Listing:
    """The first `rows` of the runs that `match`, newest first, out of `total` runs."""

    rows: list[dict[str, Any]]
    match: int
    total: int

    def tables(self) -> list[Table]:
        """Return the rows as tables for people, one for each objective."""
        groups = grouped(self.rows, _task)
        tables = [self._table(rows) for rows in groups.values()]
        if {*groups} <= {CAUSAL}:
            return tables
        heads = [heading(name, _loss_of(name, rows)) for name, rows in groups.items()]
        return [replace(t, title=head) for t, head in zip(tables, heads, strict=True)]

    @property
    def notes(self) -> list[str]:
        """What to know about the losses of several tables."""
        return [NOT_COMPARED] if len(grouped(self.rows, _task)) > 1 else []

    def _table(self, rows: Sequence[dict[str, Any]]) -> Table:
        columns = [Column(key, key.replace("_", " ")) for key in ("name", "design", "seed")]
        columns += [*map(Column, ("status", "steps")), Column("val_loss", "val loss")]
        columns += [*map(Column, ("when", "size"))]
        return Table("runs", "", columns, [_cells(row) for row in rows])

    def summary(self) -> str:
        """Return how many runs are shown, in one line."""
        if not self.total:
            return "no runs; `minigpt train` starts one"
        line = f"{len(self.rows):,} of {self.total:,} runs"
        rest = self.match - len(self.rows)
        return f"{line}; --limit 0 shows {rest:,} more" if rest else line


def list_runs(
    folders: Sequence[Path], designs: Sequence[str], statuses: Sequence[str], limit: int
) -> Listing:
    """Return the newest `limit` runs below the folders (0: all) with these designs and statuses.

    A run has one of the `statuses` and one of the `designs`, if given. Reads the configs of the
    returned runs only, unless there are `designs`. Raises UserError for a design of no run.
    """
    found = {run.path.resolve(): run for top in folders for run in run_directories(top)}
    everything = newest_first(found.values())
    chosen = [run for run in everything if not statuses or _status(run) in statuses]
    # The order of directories is known without their configs, which take a millisecond each.
    known = chosen if designs or limit == 0 else chosen[:limit]
    runs = [read_run(run.path) for run in known]
    labels = _labels(runs)
    matching = range(len(runs))
    if designs:
        names = [_names(run, label) for run, label in zip(runs, labels, strict=True)]
        _require_known(designs, names)
        wanted = {*designs, *map(_normal, designs)}
        matching = [i for i in matching if names[i] & wanted]
    rows = [_row(runs[i], labels[i]) for i in (matching[:limit] if limit else matching)]
    return Listing(rows, len(matching) if designs else len(chosen), len(everything))


def _task(row: dict[str, Any]) -> dict[str, Any] | None:
    return row.get("objective", {"name": CAUSAL})


def _loss_of(name: str, rows: Sequence[dict[str, Any]]) -> str | None:
    known = (row["loss_of"] for row in rows if row.get("loss_of") is not None)
    return EVERY_TOKEN if name == CAUSAL else next(known, None)


def _status(run: RunDirectory) -> str:
    return try_read_json(run.result).get("status") or run.unrecorded_status


def _labels(runs: Sequence[Run]) -> list[str]:
    known = [run for run in runs if run.config]
    labels = dict(
        zip([r.path for r in known], model_labels([r.config for r in known]), strict=True)
    )
    return [labels.get(run.path, "") for run in runs]


def _names(run: Run, label: str) -> set[str]:
    """Return what --design may call a run: its label, a choice of a group, or KEY=VALUE."""
    variants = {*sections([run.config]).values(), *GROUP_KEYS.values()}
    values = {key: shown(value) for key, value in run.config.items()}
    pairs = {_normal(f"{name}={values[key]}") for key in values for name in (key, word(key))}
    return {label, *label.split(), *pairs, *(values[key] for key in variants if key in values)}


def _normal(design: str) -> str:
    """Return KEY=VALUE with numbers, booleans and null in one spelling: 4e-3 is 0.004."""
    key, equals, value = design.partition("=")
    with suppress(ValueError):
        value = f"{float(value):g}"
    spelling = {"True": "true", "False": "false", "None": "null"}
    return f"{key}{equals}{spelling.get(value, value)}"


def _require_known(designs: Sequence[str], names: Sequence[set[str]]) -> None:
    every = set[str]().union(*names)
    for design in designs:
        if every and not {design, _normal(design)} & every:
            hint = did_you_mean(design, every)
            remedy = "Use a name in the column `design`, a choice such as rope, or KEY=VALUE"
            raise UserError(f"--design={design}: no run has it.{hint} {remedy}")


def _row(run: Run, label: str) -> dict[str, Any]:
    lines = read_json_lines(RunDirectory(run.path).metrics, TAIL_BYTES)
    logged = {key: value for line in lines for key, value in line.items()}
    resumed = run.manifest.get("resumed") or [run.manifest]
    is_causal = run.task in (None, {"name": CAUSAL})
    return {
        "name": str(run.path),
        "design": label,
        "seed": run.seed,
        "status": run.status,
        "steps": run.result.get("steps", logged.get("step")),
        "max_steps": run.config.get("trainer.max_steps"),
        "val_loss": run.number("val_loss") if run.has_ended else logged.get("val_loss"),
        "when": resumed[-1].get("started"),
        "bytes": directory_bytes(run.path),
        "problems": run.problems,
        **({} if is_causal else {"objective": run.task, "loss_of": run.loss_of}),
    }


def _cells(row: dict[str, Any]) -> list[Cell]:
    steps = "" if row["steps"] is None else f"{row['steps']:,} of {row['max_steps'] or 0:,}"
    when = "" if row["when"] is None else _local(row["when"])
    seed = None if row["seed"] is None else str(row["seed"])
    texts = [row["name"], row["design"], seed, row["status"], steps]
    return [*texts, row["val_loss"], when, decimal(row["bytes"])]


def _local(time: str) -> str:
    """Return a time in ISO format in the local time zone, to the minute."""
    try:
        moment = datetime.datetime.fromisoformat(time).astimezone()
    except ValueError:
        return time
    return f"{moment:%Y-%m-%d %H:%M}"
