"""Print a report, once or again whenever a file of its runs changes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.text import Text

from minigpt.console import LiveView
from minigpt.report.comparison import Comparison
from minigpt.report.continuing import continuing, shared_lines
from minigpt.report.evaluations import choose_checkpoint
from minigpt.report.page import write_report
from minigpt.report.results import differences, leaderboard, plan, summary, tables, unended
from minigpt.report.runs import file_states
from minigpt.report.tables import Table, print_table, to_rich
from minigpt.report.verdict import verdict

PRINTED = (
    "leaderboard",
    "differences",
    "mixed",
    "plan",
    "lengths",
    "contexts",
    "configs",
)  # the page has all tables


def show(comparison: Comparison, console: Console) -> None:
    """Print the comparison: tables in a terminal, plain lines in a pipe."""

    def line(text: str, style: str = "") -> None:
        styled = Text(text, style) if style and console.is_terminal else text
        console.print(styled, soft_wrap=isinstance(styled, str), markup=False)

    for text in shared_lines(comparison):
        line(text)
    for group in comparison.groups:
        if not group.is_alone:
            line("")
        if group.heading:
            line(group.heading, "bold")
        line(verdict(group), "bold")
        line(summary(group))
        for warning in group.warnings:
            line(f"warning: {warning}", "yellow")
        for note in group.notes:
            line(note)
        every = tables(group, choose_checkpoint(group))
        show_tables([table for table in every if table.name in PRINTED], console)
    between = continuing(comparison)
    show_tables([between] if between.rows else [], console)


def show_tables(tables: Sequence[Table], console: Console) -> None:
    """Print tables with their notes."""
    for table in tables:
        if not console.is_terminal:
            console.print("")
        print_table(table, console)
        if table.note:
            note = Text(table.note, "dim") if console.is_terminal else table.note
            console.print(note, soft_wrap=not console.is_terminal, markup=False)


def follow(
    folders: Sequence[str], read: Callable[[], Comparison], out: Path, seconds: float
) -> Comparison:
    """Update the report whenever a file in the folders changes; return the last comparison.

    Checks the files every `seconds`. Returns when all runs, sweeps and searches have ended, or at
    Ctrl-C.
    """
    comparison: Comparison | None = None

    def draw() -> RenderableType:
        if comparison is None:
            return ""
        parts: list[RenderableType] = []
        for group in comparison.groups:
            shown = [table(group) for table in (unended, leaderboard, differences, plan)]
            rich = (to_rich(table, view.console.width) for table in shown if table.rows)
            heading = [Text(group.heading, "bold")] if group.heading else []
            lines = [Text(verdict(group), "bold"), Text(summary(group))]
            parts += [*heading, *lines, *itertools.chain(*rich)]
        return Group(*parts)

    view = LiveView(draw)
    states = None
    with view:
        try:
            while True:
                now = file_states([Path(folder) for folder in folders])
                if now != states:
                    states, comparison = now, read()
                    write_report(comparison, out, refresh=seconds)
                    view.refresh()
                    if not view.console.is_terminal:
                        for group in comparison.groups:
                            view.line(
                                f"{group.objective}: " * (not group.is_alone) + summary(group)
                            )
                    if comparison.has_ended:
                        return comparison
                time.sleep(seconds)
        except KeyboardInterrupt:
            if comparison is None:
                raise
    return comparison
