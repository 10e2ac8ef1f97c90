"""The logger without a tracker."""

from minigpt.logger.base import LOGGERS, Logger, LoggerConfig


@LOGGERS.register("none", LoggerConfig)
class NoneLogger(Logger):
    """Does nothing; the run directory has metrics.jsonl and result.json."""
