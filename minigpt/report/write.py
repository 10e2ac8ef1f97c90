"""Write a report: the page, and its tables as CSV, Markdown and LaTeX."""

from __future__ import annotations

from pathlib import Path

from minigpt.files import write_text
from minigpt.report.comparison import Comparison
from minigpt.report.evaluations import choose
from minigpt.report.page import title, write_report_page
from minigpt.report.results import markdown, tables
from minigpt.report.tables import to_csv, to_latex


def write_report(comparison: Comparison, out: Path, refresh: float | None = None) -> list[Path]:
    """Write the page `out`, STEM.md, STEM.tex and STEM_TABLE.csv for each table; return paths.

    A browser reloads the page every `refresh` seconds.
    """
    evaluations = choose(comparison)
    write_report_page(out, comparison, evaluations, refresh)
    all_tables = tables(comparison, evaluations)
    texts = {
        ".md": markdown(title(comparison), comparison, all_tables),
        ".tex": "\n".join(["% needs \\usepackage{booktabs}", *map(to_latex, all_tables)]),
        **{f"_{table.name}.csv": to_csv(table) for table in all_tables},
    }
    paths = [out]
    for ending, text in texts.items():
        paths.append(out.with_name(out.stem + ending))
        write_text(paths[-1], text)
    return paths
