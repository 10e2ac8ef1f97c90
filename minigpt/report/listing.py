"""The runs below some folders as one table: `minigpt runs`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from minigpt.config.pairs import parse_override
from minigpt.errors import UserError, did_you_mean, require_one_of
from minigpt.files import disk_bytes, readable_name
from minigpt.report.designs import by_key, design_labels, sections, shown
from minigpt.report.runs import Run
from minigpt.report.tables import Column, Table
from minigpt.run.directory import RunDirectory

# `stopped`: early, by a search. Without a result.json, a run is running or was killed.
STATUSES = ("finished", "running", "interrupted", "stopped", "failed", "killed")


@dataclass(frozen=True)
class Listed:
    """One run. `step` of `max_steps`; `val_loss` is the last one; `bytes` on disk."""

    run: str
    design: str
    seed: int | None
    status: str
    step: int
    max_steps: int | None
    val_loss: float | None
    started: str
    bytes: int


def listed(runs: Sequence[Run], designs: Sequence[str], statuses: Sequence[str]) -> list[Listed]:
    """Return the runs of all `designs` and of any of the `statuses`, newest first.

    A design is KEY=VALUE, such as positional=rope or optimizer.lr=0.003, or a choice alone, rope.
    An empty sequence selects all. Labels are those of a report of all runs. Raises UserError for a
    design that no run has, and for an unknown status.
    """
    for status in statuses:
        require_one_of("--status", status, STATUSES)
    for design in designs:
        if runs and not any(_has(run, design) for run in runs):
            raise UserError(_explain(design, runs))
    rows = [
        _listed(run, label)
        for run, label in zip(runs, design_labels(runs), strict=True)
        if all(_has(run, design) for design in designs)
    ]
    rows = [row for row in rows if not statuses or row.status in statuses]
    return sorted(rows, key=lambda row: row.started, reverse=True)


def table(rows: Sequence[Listed], title: str) -> Table:
    """Return the rows as a table for people, with local times."""
    columns = [
        *(Column("run"), Column("design"), Column("seed"), Column("status"), Column("steps")),
        *(Column("val_loss", "val loss"), Column("when"), Column("size")),
    ]
    cells: list[list[Any]] = [
        [
            *(row.run, row.design, row.seed, row.status),
            str(row.step) if row.max_steps is None else f"{row.step}/{row.max_steps}",
            *(row.val_loss, _local(row.started), size_text(row.bytes)),
        ]
        for row in rows
    ]
    return Table("runs", title, columns, cells)


def size_text(size: float) -> str:
    """Return a number of bytes with a decimal unit."""
    units = iter(("B", "kB", "MB", "GB"))
    unit = next(units)
    while size >= 1000 and (larger := next(units, None)) is not None:
        size, unit = size / 1000, larger
    return f"{size:.0f} {unit}" if size >= 100 or unit == "B" else f"{size:.1f} {unit}"


def _listed(run: Run, design: str) -> Listed:
    steps, losses = [line["step"] for line in run.metrics], run.logged("val_loss")
    max_steps = run.config.get("trainer.max_steps")
    return Listed(
        run=readable_name(run.path),
        design=design,
        seed=run.seed,
        status=_status(run),
        step=int(run.number("step") or max(steps, default=0)),
        max_steps=max_steps if isinstance(max_steps, int) else None,
        val_loss=run.number("val_loss") or (losses[max(losses)] if losses else None),
        started=run.started,
        bytes=disk_bytes(run.path),
    )


def _status(run: Run) -> str:
    if run.has_ended:
        return run.status
    return "running" if RunDirectory(run.path).is_training else "killed"


def _has(run: Run, design: str) -> bool:
    """Whether a run has KEY=VALUE, or VALUE as one of its choices."""
    key, value = parse_override(design)
    if "=" not in design:
        return key in _choices(run)
    with suppress(UserError):
        return shown(run.config.get(by_key(key, [run.config]))) == value
    return False


def _choices(run: Run) -> set[str]:
    keys = ["model.name", "model.norm.placement", *sections([run.config]).values()]
    return {str(run.config[key]) for key in keys if run.config.get(key) is not None}


def _explain(design: str, runs: Sequence[Run]) -> str:
    known = sorted({choice for run in runs for choice in _choices(run)})
    guess = did_you_mean(parse_override(design).value or design, known)
    return (
        f"--design={design}: no run has it.{guess} Use a choice ({', '.join(known)}), or "
        f"KEY=VALUE, such as optimizer.lr=0.004"
    )


def _local(started: str) -> str:
    """Return a time in ISO format as local time; as it is if it cannot be read."""
    with suppress(ValueError):
        return datetime.fromisoformat(started).astimezone().strftime("%Y-%m-%d %H:%M")
    return started
