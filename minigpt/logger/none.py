"""No tracker."""

from __future__ import annotations

from dataclasses import dataclass

from minigpt.logger.base import LOGGERS, Logger, LoggerConfig


@dataclass
class NoneConfig(LoggerConfig):
    """No options."""


@LOGGERS.register("none", NoneConfig)
class NoneLogger(Logger):
    """Reports to no tracker; the run directory has metrics.jsonl and result.json."""
