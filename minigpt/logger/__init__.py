"""Experiment trackers, one file each. Every run also writes metrics.jsonl."""

from minigpt.logger.base import LOGGERS, Logger, LoggerConfig, RunInfo

__all__ = ["LOGGERS", "Logger", "LoggerConfig", "RunInfo"]
