"""HTML pages that need nothing beside them: their frame, style and tables; figures also as PNG."""

from __future__ import annotations

import base64
import glob
import html
import io
import math
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from minigpt.files import write_bytes, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
img { max-width: 100%; height: auto; background: white; border-radius: 6px; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { padding: 0.2rem 0.8rem; text-align: right; border-bottom: 1px solid #8884; }
th:first-child, td:first-child, .text { text-align: left; }
"""
TEXT_CELL = ' class="text"'
PARTS_OF_OCTAVE = 4  # points an octave, where a curve over positions is averaged


@dataclass(frozen=True)
class Section:
    """A part of a page: a heading, a paragraph, a figure, a table whose first row is its head.

    `name` names the figure's PNG file.
    """

    heading: str
    text: str = ""
    name: str = ""
    figure: Figure | None = None
    table: list[list[str]] | None = None


def write_page(path: Path, title: str, sections: list[Section]) -> list[Path]:
    """Write the page to `path`, and each figure beside it as STEM_NAME.png; returns all paths.

    Takes the place of a page that was there, with its figures.
    """
    for old in path.parent.glob(f"{glob.escape(path.stem)}_*.png"):
        old.unlink()
    written = [path]
    body = [f"<h1>{html.escape(title)}</h1>"]
    for section in sections:
        body.append(f"<h2>{html.escape(section.heading)}</h2>")
        if section.text:
            body.append(f"<p>{html.escape(section.text)}</p>")
        if section.table is not None:
            body.append(html_table(section.table))
        if section.figure is not None:
            picture = base64.b64encode(_drawn(section.figure, "svg")).decode()
            alt = html.escape(section.heading, quote=True)
            body.append(f'<img alt="{alt}" src="data:image/svg+xml;base64,{picture}">')
            section.figure.suptitle(f"{title}\n{section.heading}", fontsize=9)  # it may go alone
            png = path.with_name(f"{path.stem}_{section.name}.png")
            write_bytes(png, _drawn(section.figure, "png"))
            written.append(png)
    write_text(path, document(title, "\n".join(body)))
    return written


def document(title: str, body: str, head: str = "") -> str:
    """A whole page: the body under the title in a browser's tab, more for its head as HTML."""
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n{head}{body}\n"
    )


def html_table(rows: list[list[str]], left: Sequence[int] = ()) -> str:
    """A table whose first row is its head; columns `left` are text, as the first always is."""

    def row(cells: list[str], tag: str) -> str:
        kinds = [TEXT_CELL if place in left else "" for place in range(len(cells))]
        shown = [
            f"<{tag}{kind}>{html.escape(cell)}</{tag}>"
            for kind, cell in zip(kinds, cells, strict=True)
        ]
        return f"<tr>{''.join(shown)}</tr>"

    return "<table>" + row(rows[0], "th") + "".join(row(r, "td") for r in rows[1:]) + "</table>"


def by_octave(losses: list[float]) -> tuple[list[float], list[float]]:
    """Positions from 1 and losses, averaged where positions are close on a logarithmic axis."""
    parts: dict[int, list[int]] = {}
    for position in range(1, len(losses) + 1):
        parts.setdefault(int(PARTS_OF_OCTAVE * math.log2(position)), []).append(position)
    return (
        [statistics.fmean(part) for part in parts.values()],
        [statistics.fmean(losses[p - 1] for p in part) for part in parts.values()],
    )


def _drawn(figure: Figure, kind: str) -> bytes:
    import matplotlib

    file = io.BytesIO()
    # Text stays text in an SVG: the reader's fonts have more letters than the drawing library's.
    # The same figure is the same bytes, and names no address.
    unsaid = dict.fromkeys(("Creator", "Date", "Format", "Type")) if kind == "svg" else None
    with (
        matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "minigpt"}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(file, format=kind, dpi=120, bbox_inches="tight", metadata=unsaid)
    return file.getvalue()
