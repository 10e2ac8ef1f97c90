"""Experiment trackers, one file each. metrics.jsonl is written with every one of them."""

from minigpt.logger.base import LOGGERS, Logger, LoggerConfig, RunInfo

__all__ = ["LOGGERS", "Logger", "LoggerConfig", "RunInfo"]
