"""TensorBoard event files."""

from __future__ import annotations

import json
import textwrap
from typing import Any

from minigpt.errors import UserError
from minigpt.extras import install
from minigpt.logger.base import LOGGERS, Logger, LoggerConfig, RunInfo


@LOGGERS.register("tensorboard", LoggerConfig)
class TensorboardLogger(Logger):
    """Writes scalars, samples, config and summary to <run>/tensorboard.

    A resumed run adds a second event file; TensorBoard draws steps that are in both files twice.
    """

    @classmethod
    def check(cls, options: LoggerConfig) -> None:
        try:
            import torch.utils.tensorboard.writer  # noqa: F401
        except ImportError as error:
            raise UserError(
                f"logger={options.name}: TensorBoard is not installed; "
                f"{install('tensorboard')}, or choose logger=none"
            ) from error

    def __init__(self, options: LoggerConfig, info: RunInfo) -> None:
        self.check(options)
        from torch.utils.tensorboard.writer import SummaryWriter

        directory = info.directory / "tensorboard"
        self._writer = SummaryWriter(str(directory))
        self._writer.add_text("config", _code(_json(info.config)))
        self.notice = f"TensorBoard: tensorboard --logdir {directory}"

    def log(self, metrics: dict[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def log_text(self, text: str, step: int) -> None:
        self._writer.add_text("samples", _code(text), step)
        self._writer.flush()  # shown at once: samples are rare

    def finish(self, summary: dict[str, Any], failed: bool) -> None:
        self._writer.add_text("summary", _code(_json(summary)))
        self._writer.add_text("state", "failed" if failed else "finished")
        self._writer.close()


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _code(text: str) -> str:
    """Return text as a Markdown code block, which TensorBoard does not reflow."""
    return textwrap.indent(text, "    ", lambda line: True)
