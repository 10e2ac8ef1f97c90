"""Trackers a run reports to. One file a variant; metrics.jsonl is written whatever is chosen."""

from minigpt.logger.base import LOGGERS, Logger, LoggerConfig, RunInfo

__all__ = ["LOGGERS", "Logger", "LoggerConfig", "RunInfo"]
