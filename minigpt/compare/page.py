"""The report of a comparison: that of its final runs, and what the search found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from minigpt.compare.search import DesignSearch
from minigpt.config.pairs import parse_override
from minigpt.console import PipeConsole, duration
from minigpt.report.comparison import LOSS, compare
from minigpt.report.figures import Line, Plot, log_plot
from minigpt.report.page import Extra, write_report
from minigpt.report.show import show, show_tables
from minigpt.report.tables import Cell, Column, Table


def write_comparison(
    searches: Sequence[DesignSearch],
    runs: dict[str, list[Path]],
    folder: Path,
    console: PipeConsole,
) -> list[Path]:
    """Print the comparison, write report.html with its tables into `folder`; return the paths.

    `runs`: the final runs of each design, by the label of its search.
    """
    comparison = compare([str(path) for paths in runs.values() for path in paths])
    labels = {run.path: d.label for d in comparison.designs for run in d.all_runs}
    searches = [
        replace(s, label=labels[runs[s.label][0]] if s.label in runs else s.label) for s in searches
    ]
    table, plot = chosen(searches), sensitivity(searches)
    show(comparison, console)
    show_tables([table], console)
    extra = Extra([table], [] if plot is None else [plot])
    return write_report(comparison, folder / "report.html", extra=extra)


def chosen(searches: Sequence[DesignSearch]) -> Table:
    """Return the values that the search chose for each design, and what it cost."""
    keys = [axis.key for axis in searches[0].axes]
    columns = [
        Column("design"),
        *(Column(key, parse_override(key).short_key) for key in keys),
        Column("edges", "at the edge of the space"),
        Column("search_val_loss", "val loss in the search"),
        *map(Column, ("trials", "stopped", "diverged")),
        Column("seconds", "seconds of search", 0),
    ]
    rows: list[list[Cell]] = []
    for search in searches:
        best = search.best
        values = {} if best is None else best.point.values
        edges = ", ".join(f"{parse_override(k).short_key} {e}" for k, e in search.edges.items())
        rows.append(
            [
                search.label,
                *(_shown(values.get(key)) for key in keys),
                edges or "no",
                None if best is None else best.loss,
                len(search.trials),
                sum(trial.stopped for trial in search.trials),
                sum(trial.diverged for trial in search.trials),
                sum(trial.seconds for trial in search.trials),
            ]
        )
    total = duration(sum(trial.seconds for search in searches for trial in search.trials))
    note = (
        f"The same space and budget for every design. The values with the lowest validation loss "
        f"({LOSS.unit}) in the search are trained with fresh seeds, which are compared on the test "
        f"split: no loss that chose a design's values is part of its result. The search took "
        f"{total} of training."
    )
    return Table("chosen", "Chosen by the search", columns, rows, note)


def sensitivity(searches: Sequence[DesignSearch]) -> Plot | None:
    """Return the plot of the validation loss in the search against each searched number."""
    by_axis: dict[str, dict[str, Line]] = {}
    for axis in searches[0].axes:
        lines = {search.label: _lowest(search, axis.key) for search in searches}
        values = [x for line in lines.values() for x in line.x]
        if len(set(values)) > 1 and min(values) > 0:
            by_axis[axis.key] = lines
    if not by_axis:
        return None
    text = (
        "Validation loss in the search, the lowest over the other searched options. Values at "
        "which every run diverged or was stopped early are left out."
    )
    unit = f"{LOSS.name}, {LOSS.unit}"
    return log_plot("sensitivity", "Sensitivity", text, unit, by_axis)


def _lowest(search: DesignSearch, key: str) -> Line:
    """Return the lowest loss at each number of an axis."""
    lowest: dict[float, float] = {}
    for trial in search.trials:
        value = trial.point.values[key]
        if isinstance(value, int | float) and not (trial.stopped or trial.diverged):
            lowest[value] = min(trial.loss, lowest.get(value, math.inf))
    return Line(sorted(lowest), [lowest[x] for x in sorted(lowest)], None)


def _shown(value: object) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
