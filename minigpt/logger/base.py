"""What a tracker is told, and what it promises."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt.registry import Registry


@dataclass
class LoggerConfig:
    """Options every logger has."""

    name: str


@dataclass(frozen=True)
class RunInfo:
    """What a tracker shows about a run besides its metrics."""

    directory: Path  # the run directory, which exists and is writable
    name: str
    group: str | None
    tags: list[str]
    config: dict[str, Any]  # nested plain values, as in config.yaml
    tracker_id: str | None  # the id of the tracker's run that this one continues


class Logger:
    """Reports one run to a tracker. Every method must return soon, never prompt, print nothing.

    Once constructed, a logger warns where its tracker fails: a lost chart must not end a training.
    """

    tracker_id: str | None = None  # what a resumed run needs to continue the same tracker run
    notice: str | None = None  # one line for the user once constructed, e.g. how to sync

    @classmethod
    def check(cls, options: Any) -> None:
        """Raise UserError for what cannot be had, before a run directory is begun."""

    def __init__(self, options: LoggerConfig, info: RunInfo) -> None:
        """Open the run, or raise UserError when what the user asked for cannot be had."""

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Report numbers at a step. A resumed run may report a step again."""

    def log_text(self, text: str, step: int) -> None:
        """Report sampled text at a step."""

    def finish(self, summary: dict[str, Any], failed: bool) -> None:
        """Close the run; `summary` is result.json. Called once, however the run ends."""


LOGGERS: Registry[Logger] = Registry("logger", "logger", "minigpt.logger")
