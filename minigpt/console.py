"""Printing for people."""

from __future__ import annotations

import dataclasses
import os
import sys
from typing import Any

from rich.console import Console


class PipeConsole(Console):
    """A console whose reader may leave, as `head` does: the rest is dropped, the work goes on."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def described(options: Any) -> str:
    """The name of a variant and what its options are."""
    values = settings(options)
    return f"{options.name} ({values})" if values else options.name


def settings(options: Any) -> str:
    """The options of a variant and their values."""
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    return "; ".join(
        f"{key} {', '.join(value) if isinstance(value, list) else value}"
        for key, value in values.items()
        if key != "name"
    )
