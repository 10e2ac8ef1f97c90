"""The site builds without warnings, and its reference has every option and command."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest

from minigpt.cli import COMMANDS
from minigpt.config.explain import all_groups, all_options

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(autouse=True)
def _extensions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tests import the extensions of the site."""
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    site = tmp_path / "site"
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    doctrees = ["-d", str(tmp_path / "doctrees")]
    built = subprocess.run(
        [*command, *doctrees, str(DOCS), str(site)], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    pages = {page.relative_to(site).with_suffix("").as_posix() for page in site.rglob("*.html")}
    assert {
        page.relative_to(DOCS).with_suffix("").as_posix() for page in DOCS.rglob("*.md")
    } <= pages
    options = unescape((site / "reference/options.html").read_text(encoding="utf-8"))
    for group in all_groups():
        for option in all_options(group):
            assert f">{option.key}<" in options, option.key
    commands = (site / "reference/commands.html").read_text(encoding="utf-8")
    assert all(f"usage: minigpt {name}" in commands for name in COMMANDS)
    assert "<!-- site:" not in "".join(page.read_text() for page in site.rglob("*.html"))


def test_an_option_without_a_comment_fails_the_build() -> None:
    from reference import require_explained
    from sphinx.errors import ExtensionError

    groups = all_groups()
    require_explained(groups)
    (group,) = (group for group in groups if group.name == "tokenizer")
    (choice,) = (choice for choice in group.choices if choice.name == "bpe")
    silent = replace(choice, options=[replace(one, text="") for one in choice.options])
    with pytest.raises(ExtensionError, match=r"explains tokenizer\.vocab_size$"):
        require_explained([replace(group, choices=[silent])])
    with pytest.raises(ExtensionError, match=r"explains tokenizer=, tokenizer=bpe$"):
        require_explained([replace(group, text="", choices=[replace(choice, text="")])])


@pytest.mark.parametrize(
    ("link", "shown"),
    [
        ("[a](results.md#norm)", "[a](claims.md#norm)"),
        ("[a](../../docs/export.md)", "[a](../export.md)"),
        ("[a](README.md), [b](results/)", "a, b"),
        ("![a](plots/norm.svg)", "![a](../../studies/claims/plots/norm.svg)"),
        ("[a](#norm) [b](https://arxiv.org/x) `c[0](d)`", None),
    ],
)
def test_links_lead_to_the_pages_of_the_site(link: str, shown: str | None) -> None:
    from shown_pages import REPOSITORY, shown_files, with_links

    page, file = DOCS / "studies/claims.md", REPOSITORY / "studies/claims/results.md"
    assert with_links(link, file, page, shown_files()) == (shown or link)


@pytest.mark.parametrize(
    ("docstring", "rst"),
    [
        ("of `*_every`s |i - j|", "of ``*_every``\\ s \\|i - j\\|"),
        ("a * b_", "a \\* b\\_"),
        ("`top\nk`.", "``top\nk``."),
    ],
)
def test_docstrings_are_text_with_code(docstring: str, rst: str) -> None:
    from docstrings import as_rst

    assert as_rst(docstring) == rst
