"""`minigpt doctor`: what this machine supports, and how to install missing parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minigpt.commands.options import Parser

if TYPE_CHECKING:
    from rich.table import Table


def main(arguments: list[str]) -> None:
    """Print what this machine supports, remedies, and tables of supported combinations."""
    Parser(
        "doctor",
        "Show versions, device, precision, W&B's mode, the data and tokenizers that are available\n"
        "offline, and which attention backend supports which positional scheme on each device.",
        ["minigpt doctor"],
    ).parse(arguments)

    from rich.table import Table
    from rich.text import Text

    from minigpt.config.capabilities import Footnotes, attention_table, backend_table
    from minigpt.console import PipeConsole
    from minigpt.run.environment import findings

    console = PipeConsole(highlight=False)
    backends, combinations = Footnotes(), Footnotes()
    with console.status("checking ..."):
        lines = findings()
        title = "backends by positional scheme (t: training, i: inference, a number: see below)"
        by_positional = _table(title, backend_table("positional", backends))
        by_attention = _table("backends by attention", backend_table("attention", backends))
        title = "choices that can be combined with each attention"
        combined = _table(title, attention_table(combinations))
    table = Table("subject", "status", show_edge=False)
    for finding in lines:
        table.add_row(finding.subject, Text(finding.status))
    console.print(table)
    remedies = [f"- {finding.subject}: {finding.remedy}" for finding in lines if finding.remedy]
    for remedy in remedies or ["nothing is missing"]:
        console.print(remedy, markup=False)
    for part in ("", by_positional, "", by_attention, *_lines(backends)):
        console.print(part, markup=False)
    for part in ("", combined, *_lines(combinations)):
        console.print(part, markup=False)


def _lines(footnotes: dict[str, int]) -> list[str]:
    return [f"{number} {reason}" for reason, number in footnotes.items()]


def _table(title: str, rows: list[list[str]]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Column, Table

    (first, *columns), *body = rows
    head = (Column(first, no_wrap=True), *columns)
    table = Table(*head, title=title, box=SIMPLE_HEAD, show_edge=False, padding=(0, 0, 0, 1))
    for row in body:
        table.add_row(*row)
    return table
