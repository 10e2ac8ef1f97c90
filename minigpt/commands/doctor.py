"""`minigpt doctor`: what this machine offers, and what to do about what is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minigpt.commands.options import Parser

if TYPE_CHECKING:
    from rich.table import Table

    from minigpt.config.capabilities import Capabilities


def main(arguments: list[str]) -> None:
    """Print the state of this machine with remedies, and tables of what can be combined."""
    Parser(
        "doctor",
        "Show versions, device, precision, W&B's mode, the data and tokenizers that are available\n"
        "offline, and which attention backend trains and decodes which positional scheme on which\n"
        "device.",
        ["minigpt doctor"],
    ).parse_args(arguments)

    from rich.table import Table
    from rich.text import Text

    from minigpt.config.capabilities import Footnotes, attention_table, backend_tables
    from minigpt.console import PipeConsole
    from minigpt.run.environment import findings

    console = PipeConsole(highlight=False)
    with console.status("checking ..."):
        lines = findings()
        of_backends, of_attentions = Footnotes(), Footnotes()
        by_positional, by_attention = map(_table, backend_tables(of_backends))
        combinations = _table(attention_table(of_attentions))
    table = Table("subject", "status", show_edge=False)
    for finding in lines:
        table.add_row(finding.subject, Text(finding.status))
    console.print(table)
    remedies = [f"- {finding.subject}: {finding.remedy}" for finding in lines if finding.remedy]
    for remedy in remedies or ["nothing is missing"]:
        console.print(remedy, markup=False)
    for part in ("", by_positional, "", by_attention, *of_backends.lines()):
        console.print(part, markup=False)
    for part in ("", combinations, *of_attentions.lines()):
        console.print(part, markup=False)


def _table(capabilities: Capabilities) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Column, Table

    first, *columns = capabilities.head
    table = Table(
        *(Column(first, no_wrap=True), *columns),
        title=capabilities.title,
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 0, 0, 1),
    )
    for row in capabilities.rows:
        table.add_row(*row)
    return table
