"""No tracker."""

from __future__ import annotations

from dataclasses import dataclass

from minigpt.logger.base import LOGGERS, Logger, LoggerConfig


@dataclass
class NoneConfig(LoggerConfig):
    """Nothing to choose."""


@LOGGERS.register("none", NoneConfig)
class NoneLogger(Logger):
    """Reports to nobody; metrics.jsonl and result.json are all that is kept."""
