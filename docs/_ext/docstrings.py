"""Docstrings on the site: plain text with code in single backticks, which autodoc reads as RST."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx


def as_rst(text: str) -> str:
    """Return a docstring as RST: code between single backticks, and nothing else is markup."""
    plain, *rest = text.split("`")
    parts = [_escaped(plain)]
    for code, after in zip(rest[::2], rest[1::2], strict=True):
        glue = "\\ " if after[:1].isalnum() else ""  # RST ends code only before a space or a sign
        parts.append(f"``{code}``{glue}{_escaped(after)}")
    return "".join(parts)


def _escaped(text: str) -> str:
    return re.sub(r"([\\*|_])", r"\\\1", text)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to autodoc."""

    def process(app: Sphinx, what: str, name: str, of: Any, options: Any, lines: list[str]) -> None:
        lines[:] = as_rst("\n".join(lines)).split("\n")

    app.connect("autodoc-process-docstring", process)
    return {"parallel_read_safe": True}
