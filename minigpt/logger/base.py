"""The interface of experiment trackers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minigpt.registry import Registry


@dataclass
class LoggerConfig:
    """Options of every logger."""

    name: str


@dataclass(frozen=True)
class RunInfo:
    """What a tracker stores about a run besides its metrics."""

    directory: Path  # the run directory; exists and is writable
    name: str
    group: str | None
    tags: list[str]
    config: dict[str, Any]  # nested plain values of config.yaml
    tracker_id: str | None  # the run's id in the tracker, if resumed
    in_group: bool = False  # a run of a sweep or a search
    job_type: str = "train"
    checkpoints: Mapping[str, Path] = field(
        default_factory=dict
    )  # "best" and "last"; may not exist


class Logger:
    """Logs one run to a tracker. No method may block for long, prompt the user, or print.

    After construction, a logger warns instead of raising if the tracker fails, so that training
    continues.
    """

    tracker_id: str | None = None  # the run's id in the tracker, kept when resumed
    notice: str | None = None  # one line for the user after construction, e.g. how to upload

    @classmethod
    def check_labels(cls, options: Any, group: str | None, tags: list[str]) -> None:
        """Raise UserError for a value that the tracker never accepts; called for each config."""

    @classmethod
    def check(cls, options: Any) -> None:
        """Raise UserError if the tracker is not available; called before any file is written."""

    def __init__(self, options: LoggerConfig, info: RunInfo) -> None:
        """Open the run. Raises UserError if the requested tracker is not available."""

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Log the metrics of a step. A resumed run may log a step twice."""

    def log_text(self, text: str, step: int) -> None:
        """Log the text sampled at a step."""

    def finish(self, summary: dict[str, Any], failed: bool) -> None:
        """Close the run. `summary`: the content of result.json. Called once, also after errors."""


LOGGERS: Registry[Logger] = Registry("logger", "logger", "minigpt.logger")
