"""The digest of the code that computes: wording does not change it, an operator does."""

from __future__ import annotations

import pytest

from minigpt.run.provenance import executable_source

SOURCE = '''
"""A module."""

LIMIT = 2  # of something


def double(x: int) -> int:
    """Return twice x."""
    return LIMIT * x


class Empty(Exception):
    """Nothing but a docstring."""
'''


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"""A module."""', '"""Another docstring,\n\nof several lines."""'),
        ("# of something", "# of something else"),
        ('    """Return twice x."""\n', ""),
        ('"""Nothing but a docstring."""', "pass"),
        ("LIMIT * x", "(LIMIT\n            * x)"),
    ],
)
def test_wording_and_formatting_keep_the_digest(before: str, after: str) -> None:
    assert before in SOURCE
    assert executable_source(SOURCE.replace(before, after)) == executable_source(SOURCE)


@pytest.mark.parametrize(
    ("before", "after"),
    [("LIMIT * x", "LIMIT + x"), ("LIMIT = 2", "LIMIT = 3"), ("(x: int)", "(x: int = 1)")],
)
def test_code_changes_the_digest(before: str, after: str) -> None:
    assert before in SOURCE
    assert executable_source(SOURCE.replace(before, after)) != executable_source(SOURCE)
