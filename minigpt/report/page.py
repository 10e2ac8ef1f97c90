"""The report as one HTML page: tables, plots that a reader switches, samples; nothing beside it."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from minigpt.files import write_text
from minigpt.html import document, html_table
from minigpt.report.comparison import Comparison
from minigpt.report.evaluations import Evaluations
from minigpt.report.plots import Plot, Style, plots, styles
from minigpt.report.results import summary, tables
from minigpt.report.tables import Table

SAMPLE_CHARACTERS = 600
ASSETS = Path(__file__).parent  # page.css and page.js lie here
# Stretches of a dash in a legend's line, as plots draw them.
STROKES = {"solid": "none", "dash": "7 4", "dot": "2 4", "dashdot": "7 3 2 3"}
# What the page may load: nothing but itself.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)


def write_report_page(
    path: Path, comparison: Comparison, evaluations: Evaluations | None, refresh: float | None
) -> None:
    """Write the page; with `refresh` it loads itself again every so many seconds."""
    drawn = styles(comparison.designs)
    by_name = {table.name: table for table in tables(comparison, evaluations)}
    figures = plots(comparison, evaluations)
    body = [
        f"<h1>{html.escape(title(comparison))}</h1>",
        f"<p>{html.escape(summary(comparison))}</p>",
        _warnings(comparison),
        *(_table(by_name.pop(name)) for name in ("leaderboard", "differences") if name in by_name),
        *(_plot(plot, drawn) for plot in figures),
        *(_table(by_name.pop(name)) for name in ("lengths", "configs") if name in by_name),
        _samples(comparison),
        *(_table(table) for table in by_name.values()),
    ]
    data = {plot.name: _data(plot) for plot in figures}
    script = (
        f'<script type="application/json" id="plots">{_json(data)}</script>\n'
        f"<script>{get_plotlyjs()}</script>\n"
        f"<script>{(ASSETS / 'page.js').read_text(encoding='utf-8')}</script>"
    )
    head = (
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<style>{(ASSETS / 'page.css').read_text(encoding='utf-8')}</style>\n"
    )
    if refresh is not None:
        head += f'<meta http-equiv="refresh" content="{refresh:g}">\n'
    write_text(path, document(title(comparison), "\n".join([*body, script]), head))


def title(comparison: Comparison) -> str:
    """What the page is called."""
    names = [sweep.name for sweep in comparison.found.sweeps]
    designs = len(comparison.designs)
    what = "1 design" if designs == 1 else f"{designs} designs"
    return f"minigpt report: {', '.join(names) or what}"


def _warnings(comparison: Comparison) -> str:
    if not comparison.warnings and not comparison.notes:
        return ""
    lines = [
        *(f'<li class="warning">{html.escape(line)}</li>' for line in comparison.warnings),
        *(f"<li>{html.escape(line)}</li>" for line in comparison.notes),
    ]
    return f'<ul class="notes">{"".join(lines)}</ul>'


def _table(table: Table) -> str:
    note = f'<p class="note">{html.escape(table.note)}</p>' if table.note else ""
    rows = html_table([table.head, *table.texts()], left=table.text_columns)
    return f'<section id="{table.name}"><h2>{html.escape(table.title)}</h2>{rows}{note}</section>'


def _plot(plot: Plot, drawn: dict[str, Style]) -> str:
    shown = {*plot.labels}
    legend = "".join(_chip(label, style) for label, style in drawn.items() if label in shown)
    buttons = "".join(
        f'<button type="button" data-plot="{plot.name}" data-choice="{number}" '
        f'aria-pressed="{str(number == 0).lower()}">{html.escape(choice.name)}</button>'
        for number, choice in enumerate(plot.choices)
    )
    switch = f'<div class="switch">{buttons}</div>' if len(plot.choices) > 1 else ""
    return (
        f'<section><h2>{html.escape(plot.heading)}</h2><p class="note">{html.escape(plot.text)}</p>'
        f'<div class="legend">{legend}</div>{switch}'
        f'<div class="plot" id="plot-{plot.name}"></div></section>'
    )


def _chip(label: str, style: Style) -> str:
    name = html.escape(label, quote=True)
    return (
        f'<button type="button" data-design="{name}" aria-pressed="true">'
        f'<svg width="28" height="10" aria-hidden="true"><line x1="0" y1="5" x2="28" y2="5" '
        f'stroke="{style.colour}" stroke-width="3" stroke-dasharray="{STROKES[style.dash]}"/></svg>'
        f"{name}</button>"
    )


def _samples(comparison: Comparison) -> str:
    cards = []
    for design in comparison.designs:
        run = next((run for run in design.all_runs if run.sample is not None), None)
        if run is None or run.sample is None:
            continue
        step, text = run.sample
        cut = text[:SAMPLE_CHARACTERS] + "…" * (len(text) > SAMPLE_CHARACTERS)
        about = f"seed {run.seed}, step {step:,}"
        cards.append(
            f'<figure><figcaption>{html.escape(design.label)} <span class="note">{about}</span>'
            f"</figcaption><pre>{html.escape(cut)}</pre></figure>"
        )
    if not cards:
        return ""
    return f'<section><h2>Samples</h2><div class="samples">{"".join(cards)}</div></section>'


def _data(plot: Plot) -> dict[str, Any]:
    return {
        "figure": plot.figure.to_plotly_json(),
        "choices": [{"x": c.x, "y": c.y, "title": c.title} for c in plot.choices],
    }


def _json(data: dict[str, Any]) -> str:
    """JSON that ends no script element."""
    from plotly.utils import PlotlyJSONEncoder

    return json.dumps(data, cls=PlotlyJSONEncoder, separators=(",", ":")).replace("<", "\\u003c")
