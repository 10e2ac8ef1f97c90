"""Settings of the site, which `make docs` builds."""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS / "_ext"), str(DOCS.parent)]

from minigpt import __version__  # noqa: E402

project = "minigpt"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "shown_pages", "docstrings"]
exclude_patterns = ["_ext"]

html_theme = "furo"
html_title = f"minigpt {__version__}"
html_show_copyright = False
html_copy_source = False
html_show_sourcelink = False

highlight_language = "text"  # of blocks without a language: commands and what they print
myst_heading_anchors = 3
smartquotes = False  # would make dashes of the two of an option
autodoc_member_order = "bysource"
