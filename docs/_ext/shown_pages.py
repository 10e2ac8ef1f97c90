"""Text of pages that is written elsewhere, and links between files of the repository.

A line `<!-- site: NAME -->` of a page stands for a part of the reference (`reference.PARTS`), or
for the Markdown file NAME of the repository. A link to such a file becomes a link to the page that
shows it. A link to another file outside of docs/ becomes plain text.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from reference import PARTS
from sphinx.application import Sphinx

DOCS = Path(__file__).parents[1]
REPOSITORY = DOCS.parent
MARK = re.compile(r"^<!-- site: (\S+) -->$", re.MULTILINE)
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def shown_files() -> dict[Path, Path]:
    """Return the page that shows each Markdown file of the repository outside of docs/."""
    pages = sorted(DOCS.rglob("*.md"))
    return {
        REPOSITORY / name: page
        for page in pages
        for name in MARK.findall(page.read_text(encoding="utf-8"))
        if name not in PARTS
    }


def with_links(text: str, file: Path, page: Path, shown: dict[Path, Path]) -> str:
    """Return the text of a file with links and pictures as they are on the page that shows it."""

    def link(match: re.Match[str]) -> str:
        is_picture, label, target, anchor = match.groups(default="")
        path = Path(os.path.normpath(file.parent / target))
        if "://" in target or not path.exists():
            return match[0]
        if not is_picture and not path.is_relative_to(DOCS) and path not in shown:
            return label
        relative = os.path.relpath(shown.get(path, path), page.parent)
        return f"{is_picture}[{label}]({Path(relative).as_posix()}{anchor})"

    return LINK.sub(link, text)


def page_text(text: str, page: Path, shown: dict[Path, Path]) -> str:
    """Return the text of a page with what its marks stand for."""

    def part(match: re.Match[str]) -> str:
        name = match[1]
        if name in PARTS:
            return PARTS[name]()
        file = REPOSITORY / name
        return with_links(file.read_text(encoding="utf-8"), file, page, shown)

    return MARK.sub(part, with_links(text, page, page, shown))


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to the reading of pages."""
    shown = shown_files()

    def read(app: Sphinx, docname: str, source: list[str]) -> None:
        source[0] = page_text(source[0], Path(app.env.doc2path(docname)), shown)

    app.connect("source-read", read)
    return {"parallel_read_safe": True}
