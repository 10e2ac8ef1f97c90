"""`minigpt doctor`: what this machine supports, and how to install missing parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minigpt.commands.options import Parser

if TYPE_CHECKING:
    from rich.console import Console

OPTIONS = {
    "--table {positional,attention,objective}": "instead: which attention backends support each "
    "choice of that group, on each device, and which choices can be combined with each attention; "
    "or with each objective",
}
OBJECTIVE = "objective"


def main(arguments: list[str]) -> None:
    """Print a verdict, then every finding; or a table of supported combinations."""
    parser = Parser(
        "doctor",
        "Say in five lines what works here, what is missing and how to get it; then show\n"
        "versions, device, precision, W&B's mode, and which data and tokenizers are available.",
        ["minigpt doctor", "minigpt doctor --table positional"],
    )
    parser.add_options(OPTIONS)
    options = parser.parse(arguments)

    from minigpt.console import PipeConsole

    console = PipeConsole(highlight=False)
    if options.table is None:
        _print_findings(console)
    else:
        _print_tables(options.table, console)


def _print_findings(console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    from minigpt.console import Progress
    from minigpt.run.environment import findings, verdict

    for line in verdict():
        console.print(f"{line.subject:<9}{line.status}", soft_wrap=True, markup=False)
    with Progress("checking"):
        lines = findings()
    table = Table("subject", "status", show_edge=False)
    for finding in lines:
        table.add_row(finding.subject, Text(finding.status))
    console.print("", table)
    for finding in lines:
        if finding.remedy:
            line = f"- {finding.subject}: {finding.remedy}"
            console.print(line, soft_wrap=True, markup=False)


def _print_tables(group: str, console: Console) -> None:
    from minigpt.config.capabilities import (
        Footnotes,
        attention_table,
        backend_table,
        objective_table,
    )
    from minigpt.console import Progress

    if group == OBJECTIVE:
        with Progress("checking"):
            notes = Footnotes()
            rows = objective_table(notes)
        _print_table("choices that can be combined with each objective", rows, notes, console)
        return
    title = f"backends by {group}: t training, i inference, or a reason below"
    with Progress("checking"):
        notes = Footnotes()
        rows = backend_table(group, notes)
    _print_table(title, rows, notes, console)
    if group == "attention":
        title = "choices that can be combined with each attention"
        with Progress("checking"):
            notes = Footnotes()
            rows = attention_table(notes)
        _print_table(title, rows, notes, console)


def _print_table(
    title: str, rows: list[list[str]], notes: dict[str, int], console: Console
) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Column, Table

    (first, *columns), *body = rows
    head = (Column(first, no_wrap=True), *columns)
    table = Table(*head, title=title, box=SIMPLE_HEAD, show_edge=False, padding=(0, 0, 0, 1))
    for row in body:
        table.add_row(*row)
    console.print(table)
    for line in (*(f"{number} {reason}" for reason, number in notes.items()), ""):
        console.print(line, soft_wrap=True, markup=False)
