"""Tables, and their formats: terminal, plain lines, CSV, Markdown, LaTeX (HTML: minigpt.html)."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from minigpt.report.statistics import Interval, Spread

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

Cell = str | int | float | Interval | Spread | None
SMALLEST_P = 1e-4


@dataclass(frozen=True)
class Column:
    """A column: `key` in CSV files, heading (default: the key), digits after the decimal point.

    A column of intervals shows two significant digits of the smallest one, at most `digits`.
    """

    key: str
    title: str = ""
    digits: int = 4
    sign: str = ""  # "+": show the sign of positive numbers too
    is_p: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells. `note` explains marks and numbers."""

    name: str
    title: str
    columns: list[Column]
    rows: list[list[Cell]]
    note: str = ""

    def texts(self) -> list[list[str]]:
        """Return the cells as formatted text, by rows."""
        digits = [_digits(c, [row[i] for row in self.rows]) for i, c in enumerate(self.columns)]
        return [[*map(_text, self.columns, row, digits)] for row in self.rows]

    @cached_property
    def text_columns(self) -> list[int]:
        """Indices of text columns, which are left-aligned."""
        indices = range(len(self.columns))
        return [i for i in indices if all(isinstance(row[i], str | None) for row in self.rows)]

    @property
    def head(self) -> list[str]:
        """The headings."""
        return [column.title or column.key for column in self.columns]


def _digits(column: Column, cells: Sequence[Cell]) -> int:
    halves = [c.half for c in cells if isinstance(c, Interval) and c.half]
    if not halves or not math.isfinite(min(halves)):
        return column.digits
    return max(0, min(column.digits, 1 - math.floor(math.log10(min(halves)))))


def _text(column: Column, cell: Cell, digits: int) -> str:
    if cell is None or isinstance(cell, str):
        return cell or ""
    style = f"{column.sign}z,.{digits}f"  # z: what rounds to zero has no minus sign
    if isinstance(cell, Interval):
        half = "" if cell.half is None else f" ± {cell.half:,.{digits}f}"
        return f"{cell.mean:{style}}{half}"
    if isinstance(cell, Spread):
        extremes = f" ({cell.low:,.{digits}f} to {cell.high:,.{digits}f})" if cell.n > 1 else ""
        return f"{cell.median:{style}}{extremes}"
    if isinstance(cell, int):
        return f"{cell:{column.sign},}"
    if column.is_p:
        return f"< {SMALLEST_P:g}" if cell < SMALLEST_P else f"{cell:.4f}"
    return f"{cell:{style}}"


# ---- formats ----


def to_rich(table: Table, width: int) -> list[RichTable]:
    """Return rich tables of at most `width`; a table that is too wide is split by columns."""
    from rich.markup import escape
    from rich.table import Table as RichTable

    texts = table.texts()
    widths = [max(map(len, column)) + 3 for column in zip(table.head, *texts, strict=True)]
    parts: list[list[int]] = [[0]]
    for index in range(1, len(widths)):
        if len(parts[-1]) > 1 and sum(widths[i] for i in [*parts[-1], index]) + 1 > width:
            parts.append([0])
        parts[-1].append(index)
    tables = []
    for number, indices in enumerate(parts):
        title = escape(table.title) if table.title and number == 0 else None
        rich = RichTable(title=title, title_justify="left")
        for index in indices:
            justify = "left" if index in table.text_columns else "right"
            rich.add_column(escape(table.head[index]), justify=justify, overflow="fold")
        for row in texts:
            rich.add_row(*(escape(row[index]) for index in indices))
        tables.append(rich)
    return tables


def print_table(table: Table, console: Console) -> None:
    """Print a table in a terminal, plain lines in a pipe."""
    if console.is_terminal:
        console.print(*to_rich(table, console.width))
    else:
        console.print("\n".join(to_plain(table)), soft_wrap=True, markup=False)


def to_plain(table: Table) -> list[str]:
    """Return lines with columns aligned by spaces; no cell is cut."""
    rows = [table.head, *table.texts()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [table.title] if table.title else []
    for row in rows:
        cells = [
            cell.ljust(width) if index in table.text_columns else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


# Of cells of several numbers: the field in the column itself, and fields in columns beside it.
CSV_FIELDS: dict[type, tuple[str, dict[str, str]]] = {
    Interval: ("mean", {"half_interval": "half", "n": "n"}),
    Spread: ("median", {"low": "low", "high": "high", "n": "n"}),
}


def to_csv(table: Table) -> str:
    """Return CSV with unrounded numbers; an interval has 3 columns, a median with its range 4."""
    columns: list[list[object]] = []
    for index, column in enumerate(table.columns):
        cells = [row[index] for row in table.rows]
        columns.append([column.key, *map(_csv_number, cells)])
        kinds = [kind for kind in CSV_FIELDS if any(isinstance(cell, kind) for cell in cells)]
        for name, field in ((n, f) for kind in kinds for n, f in CSV_FIELDS[kind][1].items()):
            columns.append([f"{column.key}_{name}", *(getattr(c, field, None) for c in cells)])
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(zip(*columns, strict=True))
    return file.getvalue()


def _csv_number(cell: Cell) -> object:
    kind = type(cell)
    return getattr(cell, CSV_FIELDS[kind][0]) if kind in CSV_FIELDS else cell


def to_markdown(table: Table) -> str:
    """Return a GitHub Markdown table under a heading."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"

    escaped = [[markdown_text(cell) for cell in row] for row in [table.head, *table.texts()]]
    rule = ["---" if p in table.text_columns else "---:" for p in range(len(table.columns))]
    lines = [f"## {markdown_text(table.title)}", ""]
    lines += [line(escaped[0]), line(rule), *(line(row) for row in escaped[1:])]
    return "\n".join([*lines, *(["", markdown_text(table.note)] if table.note else []), ""])


def to_latex(table: Table) -> str:
    """Return a LaTeX table float that needs `booktabs`."""

    def line(cells: Sequence[str]) -> str:
        return f"    {' & '.join(cell.translate(_LATEX) for cell in cells)} \\\\"

    columns = "".join("l" if p in table.text_columns else "r" for p in range(len(table.columns)))
    caption = f"{table.title}. {table.note}".rstrip().translate(_LATEX)
    lines = [r"\begin{table}", r"  \centering", f"  \\caption{{{caption}}}"]
    lines += [f"  \\label{{tab:{table.name}}}", f"  \\begin{{tabular}}{{{columns}}}"]
    lines += [r"    \toprule", line(table.head), r"    \midrule", *map(line, table.texts())]
    lines += [r"    \bottomrule", r"  \end{tabular}", r"\end{table}", ""]
    return "\n".join(lines)


_LATEX_NAMES = {"\\": "textbackslash", "~": "textasciitilde", "^": "textasciicircum"}
_LATEX_NAMES |= {"<": "textless", ">": "textgreater", "|": "textbar"}
_LATEX_SYMBOLS = {"±": r"$\pm$", "★": r"$\star$", "≈": r"$\approx$", "→": r"$\to$"}
_LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {character: f"\\{name}{{}}" for character, name in _LATEX_NAMES.items()}
    | _LATEX_SYMBOLS
)
_MARKDOWN = str.maketrans({c: f"\\{c}" for c in "\\`*_[]<>|#~"} | {"&": "&amp;", "\n": " "})


def markdown_text(text: str) -> str:
    """Escape text for Markdown."""
    return text.translate(_MARKDOWN)
