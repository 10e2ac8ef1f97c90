"""Text output."""

from __future__ import annotations

import dataclasses
import os
import sys
from typing import Any

from rich.console import Console


class PipeConsole(Console):
    """A console that ignores a closed pipe: output to `head` must not end a training run."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def described(options: Any) -> str:
    """Return the name of a variant with its options in brackets."""
    values = settings(options)
    return f"{options.name} ({values})" if values else options.name


def settings(options: Any) -> str:
    """Return the options of a variant and their values, but its name."""
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    return "; ".join(
        f"{key} {', '.join(value) if isinstance(value, list) else value}"
        for key, value in values.items()
        if key != "name"
    )
