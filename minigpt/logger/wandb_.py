"""Weights & Biases: online where it can be, else offline and ready to sync."""

from __future__ import annotations

import html
import http.client
import os
import shlex
import ssl
import sys
import threading
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Literal

from minigpt.errors import UserError, require
from minigpt.logger.base import LOGGERS, Logger, LoggerConfig, RunInfo

if TYPE_CHECKING:
    import wandb

# A start is a handful of requests and an end is an upload; each may take so many timeouts.
START_TIMEOUTS, FINISH_TIMEOUTS = 5, 10

MODES: dict[str, list[Literal["online", "offline"]]] = {
    "auto": ["online", "offline"],  # the first that works
    "online": ["online"],
    "offline": ["offline"],
}


@dataclass
class WandbConfig(LoggerConfig):
    """Where the run goes, and how long W&B's server may take to answer."""

    project: str
    entity: str | None
    mode: str
    timeout_seconds: float

    def __post_init__(self) -> None:
        require(self.mode in MODES, "logger.mode", self.mode, f"use one of {', '.join(MODES)}")
        seconds = self.timeout_seconds
        require(seconds > 0, "logger.timeout_seconds", seconds, "must be above 0")


class _Unavailable(Exception):
    """Why W&B cannot run in a mode."""


@LOGGERS.register("wandb", WandbConfig)
class WandbLogger(Logger):
    """Reports to W&B, which writes its files to <run>/wandb.

    `mode=auto` is online when an API key is configured and the server answers in time, else
    offline, or off where W&B does not start at all; WANDB_MODE and `wandb offline` are obeyed.
    Another mode raises UserError when it cannot be had.

    Steps are a field of what is logged, the x-axis of every chart. W&B's own step only grows, so
    what a resumed run reports again would be dropped.
    """

    @classmethod
    def check(cls, options: WandbConfig) -> None:
        if options.mode == "online" and (why := why_not_online(options)) is not None:
            raise UserError(f"logger.mode=online: {why}; mend that, or use logger.mode=auto")

    def __init__(self, options: WandbConfig, info: RunInfo) -> None:
        mode = options.mode
        self._options, self._info = options, info
        self._run: wandb.Run | None = None
        self._warned = False
        self.tracker_id = info.tracker_id

        # The terminal is the trainer's. W&B's telemetry goes out even from offline runs and,
        # where the network swallows packets, holds the process for 20 s at its exit.
        os.environ["WANDB_SILENT"] = "true"
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")

        obstacles = self._open()
        if self._run is None:
            self.notice = f"W&B is off: {'; '.join(obstacles)}"
            return
        self.tracker_id = self._run.id
        if self._run.offline:
            why = "; ".join(obstacles) or f"logger.mode={mode}"
            # The pattern also names what earlier parts of a resumed run left.
            runs = shlex.quote(f"{info.directory / 'wandb'}/offline-run-")
            self.notice = f"W&B is offline: {why}. Upload: wandb sync {runs}*-{self._run.id}*"
        else:
            self.notice = f"W&B: {self._run.url}"

    def log(self, metrics: dict[str, float], step: int) -> None:
        if (run := self._run) is None:
            return
        with self._warning_at_most(run):
            run.log({**metrics, "step": step})

    def log_text(self, text: str, step: int) -> None:
        if (run := self._run) is None:
            return
        import wandb

        with self._warning_at_most(run):
            # One small file, shown with a slider over steps. A Table would be an artifact each.
            page = f"<pre style='white-space: pre-wrap'>{html.escape(text)}</pre>"
            sample = wandb.Html(page, inject=False, data_is_not_path=True)
            run.log({"samples": sample, "step": step})

    def finish(self, summary: dict[str, Any], failed: bool) -> None:
        if (run := self._run) is None:
            return
        with self._warning_at_most(run):
            # Until here W&B's table shows the last value of each metric, from here the result.
            for key in run.summary.keys():  # noqa: SIM118 (W&B's summary is no mapping)
                if not key.startswith("_") and key not in summary:
                    del run.summary[key]
            run.summary.update(summary)
            run.finish(exit_code=int(failed))
            return
        # Only after a failure: W&B's process may have died, and the next run needs another.
        _end_service()

    def _open(self) -> list[str]:
        """Start the run in the first mode that works; returns why the others did not."""
        obstacles: list[str] = []
        for mode in MODES[self._options.mode]:
            try:
                with _exit_hooks_kept():
                    self._run = self._start(mode)
                break
            except Exception as error:  # a tracker that does not start must not stop a training
                why = " ".join(str(error).split()) or type(error).__name__
                if self._options.mode != "auto":
                    raise UserError(
                        f"logger.mode={mode}: {why}; mend that, or use logger.mode=auto"
                    ) from error
                if why not in obstacles:
                    obstacles.append(why)
        return obstacles

    def _start(self, mode: Literal["online", "offline"]) -> wandb.Run:
        """Start the run. Raises whatever W&B raises, or _Unavailable before W&B could block."""
        import wandb

        options, info = self._options, self._info
        settings = wandb.setup().settings
        if mode == "online":
            _require_online(settings, options.timeout_seconds)
        elif options.mode == "auto" and settings.mode == "disabled":
            raise _Unavailable(_said_by_user(settings))
        try:
            run = wandb.init(
                project=options.project,
                entity=options.entity,
                dir=info.directory.resolve(),  # its process may have another working directory
                mode=mode,
                id=info.tracker_id,
                resume=None if info.tracker_id is None else "allow",
                name=info.name,
                group=info.group,
                tags=info.tags,
                config=info.config,
                reinit="create_new",  # the default returns an unfinished run of this process
                settings=wandb.Settings(
                    console="off",
                    init_timeout=START_TIMEOUTS * options.timeout_seconds,
                    finish_timeout=FINISH_TIMEOUTS * options.timeout_seconds,
                    finish_timeout_raises=True,
                ),
            )
        except Exception:
            _end_service()  # where the failed run would keep its id taken
            raise
        run.define_metric("step", hidden=True)
        run.define_metric("*", step_metric="step")
        return run

    @contextmanager
    def _warning_at_most(self, run: wandb.Run) -> Iterator[None]:
        """Turn any failure into one warning for the life of the run."""
        try:
            yield
        except Exception as error:  # W&B's own, or the loss of its process: OSError and others
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"W&B lacks part of this run ({error}); metrics.jsonl has all of it. "
                    f"What W&B has: wandb sync {shlex.quote(run.settings.sync_dir)}",
                    RuntimeWarning,
                    stacklevel=4,
                )


def why_not_online(options: WandbConfig) -> str | None:
    """What keeps W&B from running online here; None where it can."""
    import wandb

    os.environ["WANDB_SILENT"] = "true"
    try:
        _require_online(wandb.setup().settings, options.timeout_seconds)
    except _Unavailable as error:
        return str(error)
    return None


def _require_online(settings: wandb.Settings, seconds: float) -> None:
    """Raise _Unavailable unless W&B is switched on, has a key, and its server answers in time."""
    import wandb

    if settings.mode in ("offline", "dryrun", "disabled"):
        raise _Unavailable(_said_by_user(settings))
    if not wandb.login(prompt=False, verify=False):
        raise _Unavailable("no API key, run `wandb login` once")
    # A thread, because the look-up of a host name knows no timeout.
    answer: SimpleQueue[str | None] = SimpleQueue()
    ask = threading.Thread(target=lambda: answer.put(_probe(settings.base_url, seconds)))
    ask.daemon = True
    ask.start()
    try:
        why = answer.get(timeout=seconds)
    except Empty:
        why = f"no answer in {seconds:g} s"
    if why is not None:
        raise _Unavailable(f"{settings.base_url}: {why}")


def _probe(url: str, seconds: float) -> str | None:
    """Ask W&B's server for a sign of life; returns what is wrong with it."""
    try:
        urllib.request.urlopen(f"{url}/healthz", timeout=seconds).close()
    except urllib.error.HTTPError as error:
        return f"HTTP {error.code}" if error.code >= 500 else None
    except urllib.error.URLError as error:
        # Python may lack certificates that W&B's own client has.
        return None if isinstance(error.reason, ssl.SSLError) else str(error.reason)
    except (OSError, http.client.HTTPException) as error:
        return str(error)
    return None


def _said_by_user(settings: wandb.Settings) -> str:
    where = "WANDB_MODE" if os.environ.get("WANDB_MODE") else "W&B's settings file says mode"
    return f"{where}={settings.mode}"


def _end_service() -> None:
    """End the process that works for W&B in the background, dead or alive."""
    import wandb

    with suppress(Exception, SystemExit):  # it exits as that process did
        wandb.teardown()


@contextmanager
def _exit_hooks_kept() -> Iterator[None]:
    """Undo W&B's replacement of sys.exit and sys.excepthook.

    They tell W&B how unfinished runs ended. Ours are finished, and tracebacks stay as they were.
    """
    kept = sys.exit, sys.excepthook
    try:
        yield
    finally:
        sys.exit, sys.excepthook = kept
