"""Parts of pages that a program writes: between two marks, and tables without a heading."""

from __future__ import annotations

from minigpt.report.tables import Cell, Column, Table, to_markdown


def with_part(page: str, start: str, end: str, part: str) -> str:
    """Return a page with `part` between its two marks, which it must have."""
    before, _, rest = page.partition(start)
    _, found, after = rest.partition(end)
    assert found, f"the page has {start} and {end}"
    middle = f"\n\n{part}\n\n" if part else "\n\n"
    return f"{before}{start}{middle}{end}{after}"


def table_of(columns: list[Column], rows: list[list[Cell]]) -> str:
    """Return a Markdown table without a heading."""
    _, _, table = to_markdown(Table("", "", columns, rows)).partition("\n\n")
    return table.strip()
