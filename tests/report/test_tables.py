"""A table in the terminal, as lines, CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io

import pytest

from minigpt.report.statistics import Interval, spread
from minigpt.report.tables import Column, Table, to_csv, to_latex, to_markdown, to_plain, to_rich

HARD = Table(
    "hard",
    "A & B",
    [Column("design", "design"), Column("loss", "loss_%"), Column("n", "n")],
    [["a|b_c & 50% <x> #1 ~{}\\^", Interval(1234.56789, 0.0123, 3), 12345], ["b", None, None]],
    "Note_1.",
)


def test_markdown_latex_csv_and_lines() -> None:
    markdown = to_markdown(HARD).splitlines()
    assert markdown[0] == "## A &amp; B" and markdown[3] == "| --- | ---: | ---: |"
    assert markdown[4].startswith(
        "| a\\|b\\_c &amp; 50% \\<x\\> \\#1 \\~{}\\\\^ | 1,234.568 ± 0.012 |"
    )
    latex = to_latex(HARD)
    for text in (
        r"a\textbar{}b\_c \& 50\% \textless{}x\textgreater{} \#1 \textasciitilde{}\{\}",
        r"\textbackslash{}\textasciicircum{} & 1,234.568 $\pm$ 0.012 & 12,345 \\",
        r"\begin{tabular}{lrr}",
        r"loss\_\%",
        r"\caption{A \& B. Note\_1.}",
    ):
        assert text in latex
    rows = list(csv.reader(to_csv(HARD).splitlines()))
    assert rows[0] == ["design", "loss", "loss_half_interval", "loss_n", "n"]
    assert rows[1] == ["a|b_c & 50% <x> #1 ~{}\\^", "1234.56789", "0.0123", "3", "12345"]
    assert rows[2] == ["b", "", "", "", ""]
    assert to_plain(HARD)[2].endswith("1,234.568 ± 0.012  12,345")


@pytest.mark.parametrize(
    ("half", "text"),
    [(0.00123, "1.5000 ± 0.0012"), (0.0213, "1.500 ± 0.021"), (None, "1.5000"), (50.0, "2 ± 50")],
)
def test_digits_follow_the_interval(half: float | None, text: str) -> None:
    table = Table("t", "t", [Column("a", "a"), Column("b", "b")], [["x", Interval(1.5, half, 2)]])
    assert table.texts()[0][1] == text


def test_what_rounds_to_zero_has_no_minus_sign() -> None:
    columns = [Column("a"), Column("b", digits=2, sign="+"), Column("c", digits=2)]
    table = Table("t", "t", columns, [[Interval(-1e-6, None, 1), -1e-3, -0.006]])
    assert table.texts() == [["0.0000", "+0.00", "-0.01"]]


def test_a_spread_is_a_median_with_its_range() -> None:
    cells = [spread([30000.0, 100.4, 21407.0]), spread([7.0]), None]
    columns = [Column("a"), Column("speed", "tokens/s", 0)]
    table = Table("t", "t", columns, [["x", cell] for cell in cells])
    assert [row[1] for row in table.texts()] == ["21,407 (100 to 30,000)", "7", ""]
    rows = list(csv.reader(to_csv(table).splitlines()))
    assert rows == [
        ["a", "speed", "speed_low", "speed_high", "speed_n"],
        ["x", "21407.0", "100.4", "30000.0", "3"],
        ["x", "7.0", "7.0", "7.0", "1"],
        ["x", "", "", "", ""],
    ]


def test_terminal_tables_fit_their_width() -> None:
    from rich.console import Console

    columns = [Column("design", "design"), *(Column(f"c{n}", f"column {n}") for n in range(9))]
    table = Table("t", "t", columns, [["[bold]x", *map(float, range(9))]])
    console = Console(width=60, record=True, file=io.StringIO())
    tables = to_rich(table, 60)
    for rich in tables:
        console.print(rich)
    text = console.export_text()
    assert len(tables) > 1 and text.count("[bold]x") == len(tables) and "column 8" in text
    assert max(map(len, text.splitlines())) <= 60
