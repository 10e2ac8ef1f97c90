"""HTML pages without other files, rendered from `minigpt/templates`; figures also as PNG."""

from __future__ import annotations

import base64
import glob
import io
import math
import statistics
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from minigpt.files import write_bytes, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTS_OF_OCTAVE = 4  # points per octave in curves over positions


# Values are escaped in every template; only Markup is inserted as it is.
TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True)
class Stage:
    """A row of a computation: its name, formula, shape, a small figure, and a note."""

    name: str
    formula: str
    shape: str
    note: str = ""
    figure: Figure | None = None

    @property
    def image(self) -> str:
        """The figure as SVG in base64."""
        return "" if self.figure is None else encoded(self.figure)


@dataclass(frozen=True)
class Section:
    """A part of a page: heading, paragraph, figure, and a table whose first row has the headings.

    `name`: suffix of the figure's PNG file. `stages`: rows of a computation.
    """

    heading: str
    text: str = ""
    name: str = ""
    figure: Figure | None = None
    table: list[list[str]] | None = None
    stages: list[Stage] = field(default_factory=list)


def render(template: str, **values: Any) -> str:
    """Return a rendered template of `minigpt/templates`."""
    return TEMPLATES.get_template(template).render(**values)


def write_page(path: Path, title: str, sections: list[Section]) -> list[Path]:
    """Write the page to `path` and each figure beside it as STEM_NAME.png; return all paths.

    Deletes the figures of an earlier page at `path`.
    """
    for earlier in path.parent.glob(f"{glob.escape(path.stem)}_*.png"):
        earlier.unlink()
    written, images = [path], {}
    for section in sections:
        if section.figure is None:
            continue
        images[section.name] = encoded(section.figure)
        section.figure.suptitle(f"{title}\n{section.heading}", fontsize=9)  # in the PNG only
        png = path.with_name(f"{path.stem}_{section.name}.png")
        write_bytes(png, drawn(section.figure, "png"))
        written.append(png)
    write_text(path, render("sections.html.j2", title=title, sections=sections, images=images))
    return written


def by_octave(losses: list[float]) -> tuple[list[float], list[float]]:
    """Return positions from 1 and losses, averaged over 1 / PARTS_OF_OCTAVE of an octave."""
    parts: dict[int, list[int]] = {}
    for position in range(1, len(losses) + 1):
        parts.setdefault(int(PARTS_OF_OCTAVE * math.log2(position)), []).append(position)
    return (
        [statistics.fmean(part) for part in parts.values()],
        [statistics.fmean(losses[p - 1] for p in part) for part in parts.values()],
    )


def encoded(figure: Figure) -> str:
    """Return the figure as SVG in base64."""
    return base64.b64encode(drawn(figure, "svg")).decode()


def drawn(figure: Figure, kind: str) -> bytes:
    import matplotlib

    file = io.BytesIO()
    # SVG text stays text: a browser's fonts have more glyphs than matplotlib's. Without metadata
    # and with a fixed salt, equal figures are equal bytes.
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type")) if kind == "svg" else None
    with (
        matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "minigpt"}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(file, format=kind, dpi=120, bbox_inches="tight", metadata=no_metadata)
    return file.getvalue()
