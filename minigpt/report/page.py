"""The report as one HTML page without other files: tables, interactive plots, samples."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from plotly.offline import get_plotlyjs

from minigpt.files import write_text
from minigpt.html import render
from minigpt.report.comparison import Comparison
from minigpt.report.evaluations import Evaluations
from minigpt.report.plots import Plot, plots, styles
from minigpt.report.results import summary, tables

SAMPLE_CHARACTERS = 600
# SVG dash patterns of a legend's lines, as the plots draw them.
STROKES = {"solid": "none", "dash": "7 4", "dot": "2 4", "dashdot": "7 3 2 3"}


@dataclass(frozen=True)
class Sample:
    """The last sample of a design's first run."""

    label: str
    origin: str
    text: str


def write_report_page(
    path: Path, comparison: Comparison, evaluations: Evaluations | None, refresh: float | None
) -> None:
    """Write the page; a browser reloads it every `refresh` seconds."""
    figures = plots(comparison, evaluations)
    page = render(
        "report.html.j2",
        title=title(comparison),
        summary=summary(comparison),
        warnings=comparison.warnings,
        notes=comparison.notes,
        tables=tables(comparison, evaluations),
        plots=figures,
        styles=styles(comparison.designs),
        strokes=STROKES,
        samples=_samples(comparison),
        refresh=None if refresh is None else f"{refresh:g}",
        plot_data=_plot_data(figures),
        plotly=Markup(get_plotlyjs()),
    )
    write_text(path, page)


def title(comparison: Comparison) -> str:
    """Return the title of the report: the names of its sweeps, or the number of designs."""
    names = [sweep.name for sweep in comparison.collection.sweeps]
    designs = len(comparison.designs)
    count = "1 design" if designs == 1 else f"{designs} designs"
    return f"minigpt report: {', '.join(names) or count}"


def _samples(comparison: Comparison) -> list[Sample]:
    samples = []
    for design in comparison.designs:
        run = next((run for run in design.all_runs if run.sample is not None), None)
        if run is None or run.sample is None:
            continue
        step, text = run.sample
        shortened = text[:SAMPLE_CHARACTERS] + "…" * (len(text) > SAMPLE_CHARACTERS)
        samples.append(Sample(design.label, f"seed {run.seed}, step {step:,}", shortened))
    return samples


def _plot_data(plots: list[Plot]) -> Markup:
    """Return the plots as JSON that cannot close its script element."""
    from plotly.utils import PlotlyJSONEncoder

    data = {
        plot.name: {
            "figure": plot.figure.to_plotly_json(),
            "choices": [{"x": c.x, "y": c.y, "title": c.title} for c in plot.choices],
        }
        for plot in plots
    }
    text = json.dumps(data, cls=PlotlyJSONEncoder, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))
