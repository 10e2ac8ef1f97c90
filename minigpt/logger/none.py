"""No tracker."""

from minigpt.logger.base import LOGGERS, Logger, LoggerConfig


@LOGGERS.register("none", LoggerConfig)
class NoneLogger(Logger):
    """Reports to no tracker; the run directory has metrics.jsonl and result.json."""
