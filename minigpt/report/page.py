"""Write a report: one HTML page with interactive plots, and its tables as CSV, Markdown, LaTeX."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from markupsafe import Markup
from plotly.offline import get_plotlyjs

from minigpt.files import write_text
from minigpt.html import render
from minigpt.report.comparison import Comparison, count
from minigpt.report.continuing import continuing, shared_lines
from minigpt.report.evaluations import choose_checkpoint
from minigpt.report.figures import SYMBOLS, Plot, styles
from minigpt.report.plots import plots
from minigpt.report.results import MEANING, commands, markdown, summary, tables, unended
from minigpt.report.tables import Table, markdown_text, to_csv, to_latex, to_markdown
from minigpt.report.verdict import verdict

SAMPLE_CHARACTERS = 600
# A label's line, and its marker in plots that have markers.
STROKES = {"solid": "none", "dash": "7 4", "dot": "2 4", "dashdot": "7 3 2 3"}  # SVG dash patterns
GLYPHS = dict(zip(SYMBOLS, "●■◆✚✕▲▼", strict=True))
MOST_BESIDE = 16  # labels beside the lines; more are above the plot
MOST_OPEN = 400  # characters of warnings and notes; more begin folded


@dataclass(frozen=True)
class Extra:
    """Tables and plots of a command besides those of every report."""

    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()


@dataclass(frozen=True)
class Served:
    """A page that asks every `seconds` for a newer one. `tag`: of what it shows, as in its ETag."""

    tag: str
    seconds: float


def write_report(
    comparison: Comparison, out: Path, refresh: float | None = None, extra: Extra | None = None
) -> list[Path]:
    """Write the page `out`, STEM.md, STEM.tex and STEM_TABLE.csv for each table; return paths.

    A browser reloads the page every `refresh` seconds.
    """
    groups, shared = _groups(comparison, extra or Extra()), _shared(comparison)
    lines = shared_lines(comparison)
    page = _html(title(comparison), lines, groups, shared, refresh=refresh)
    all_tables = [
        replace(table, name=f"{table.name}{group['suffix']}")
        for group in groups
        for table in group["tables"]
    ]
    all_tables += shared
    parts = [
        markdown(each, group["tables"])
        for each, group in zip(comparison.groups, groups, strict=True)
    ]
    head = [f"# {markdown_text(title(comparison))}", "", *(f"{line}\n" for line in lines)]
    texts = {
        out.suffix: page,
        ".md": "\n".join([*head, *parts, *map(to_markdown, shared)]),
        ".tex": "\n".join(["% needs \\usepackage{booktabs}", *map(to_latex, all_tables)]),
        **{f"_{table.name}.csv": to_csv(table) for table in all_tables},
    }
    paths = [out.with_name(out.stem + ending) for ending in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        write_text(path, text)
    return paths


def served_page(comparison: Comparison, served: Served) -> str:
    """Return the page of `write_report`, which updates itself."""
    groups, lines = _groups(comparison, Extra()), shared_lines(comparison)
    return _html(title(comparison), lines, groups, _shared(comparison), served=served)


def served_message(line: str, served: Served) -> str:
    """Return a page with one line, which updates itself."""
    return _html("minigpt report", [line], [], [], served=served)


def _html(
    title: str,
    lines: list[str],
    groups: list[dict[str, Any]],
    shared: list[Table],
    refresh: float | None = None,
    served: Served | None = None,
) -> str:
    return render(
        "report.html.j2",
        title=title,
        lines=lines,
        groups=groups,
        meaning=MEANING,
        shared_tables=shared,
        strokes=STROKES,
        glyphs=GLYPHS,
        most_beside=MOST_BESIDE,
        most_open=MOST_OPEN,
        refresh=None if refresh is None else f"{refresh:g}",
        served=served,
        plot_data=_plot_data([plot for group in groups for plot in group["plots"]]),
        plotly=Markup(get_plotlyjs()),
    )


def _groups(comparison: Comparison, extra: Extra) -> list[dict[str, Any]]:
    """Return what the page shows of each objective; `extra` is of the first."""
    extras = [extra, *(Extra() for _ in comparison.others)]
    return [_group(*pair) for pair in zip(comparison.groups, extras, strict=True)]


def _shared(comparison: Comparison) -> list[Table]:
    table = continuing(comparison)
    return [table] if table.rows else []


def _group(comparison: Comparison, extra: Extra) -> dict[str, Any]:
    """Return what the page shows of the runs of an objective."""
    checkpoint = choose_checkpoint(comparison)
    return {
        "suffix": comparison.suffix,
        "objective": comparison.objective,
        "heading": comparison.heading,
        "verdict": verdict(comparison),
        "summary": summary(comparison),
        "remarks": _remarks(comparison),
        "warnings": comparison.warnings,
        "notes": comparison.notes,
        "unended": unended(comparison),
        "tables": [*tables(comparison, checkpoint), *extra.tables],
        "plots": [_named(plot, comparison) for plot in plots(comparison, checkpoint, extra.plots)],
        "styles": styles(comparison.labels),
        "short": comparison.short | _short_paths(comparison),
        "commands": commands(comparison),
        "samples": _samples(comparison),
    }


def _remarks(comparison: Comparison) -> str:
    counts = (("warning", comparison.warnings), ("note", comparison.notes))
    return ", ".join(count(len(lines), what) for what, lines in counts if lines)


def _short_paths(comparison: Comparison) -> dict[str, str]:
    """Return the paths of runs without the folder that has all of them."""
    paths = [run.path for run in comparison.collection.runs]
    top = os.path.commonpath([path.parent for path in paths]) if paths else ""
    return {str(path): os.path.relpath(path, top) for path in paths}


def _named(plot: Plot, comparison: Comparison) -> Plot:
    of = "" if comparison.is_alone else f", {comparison.objective}"
    return replace(plot, name=f"{plot.name}{comparison.suffix}", heading=f"{plot.heading}{of}")


def title(comparison: Comparison) -> str:
    """Return the title of the report: the names of its sweeps, or the number of designs."""
    n_designs = sum(len(group.designs) for group in comparison.groups)
    names = ", ".join(sweep.name for sweep in comparison.collection.sweeps)
    return f"minigpt report: {names or count(n_designs, 'design')}"


def _samples(comparison: Comparison) -> list[dict[str, str]]:
    """Return the last sample of each design's first run that has one."""
    samples = []
    for design in comparison.designs:
        run = next((run for run in design.all_runs if run.sample is not None), None)
        if run is None or run.sample is None:
            continue
        step, text = run.sample
        origin = f"seed {run.seed}, step {step:,}"
        shortened = text[:SAMPLE_CHARACTERS] + "…" * (len(text) > SAMPLE_CHARACTERS)
        samples.append({"label": design.label, "origin": origin, "text": shortened})
    return samples


def _plot_data(plots: list[Plot]) -> Markup:
    """Return the plots as JSON that cannot close its script element."""
    from plotly.utils import PlotlyJSONEncoder

    data = {
        plot.name: {
            "figure": plot.figure.to_plotly_json(),
            "choices": [*map(vars, plot.choices)],
            "start": plot.start,
        }
        for plot in plots
    }
    text = json.dumps(data, cls=PlotlyJSONEncoder, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))
