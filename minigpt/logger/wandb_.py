"""Weights & Biases: online if available, else offline and ready to upload."""

from __future__ import annotations

import html
import math
import os
import re
import secrets
import shlex
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from minigpt.errors import UserError, require, require_one_of
from minigpt.files import readable_directory
from minigpt.logger.base import LOGGERS, Logger, LoggerConfig, RunInfo
from minigpt.logger.wandb_checks import (
    MAX_LABEL,
    Unavailable,
    mode_setting,
    require_label,
    require_online,
    require_settings,
    require_tag,
    settings,
    why_not_online,
)

if TYPE_CHECKING:
    import wandb

# Limits for starting a run (requests) and finishing it (upload), as multiples of the timeout.
START_TIMEOUTS, FINISH_TIMEOUTS = 5, 10
UPLOAD_RATE = 1e6  # bytes/s; the limit for uploading a checkpoint is that for a slower network

# Metrics whose summary is {"min": ..., "last": ...} from their first value on, so that a killed run
# has it too. The others have their last value.
WITH_MINIMUM = ("val_loss", "val_perplexity", "val_bits_per_byte")

MODES: dict[str, list[Literal["online", "offline"]]] = {
    "auto": ["online", "offline"],  # tried in this order
    "online": ["online"],
    "offline": ["offline"],
}
LOGGED_CHECKPOINTS = {"none": [], "best": ["best"], "last": ["last"], "both": ["best", "last"]}


@dataclass
class WandbConfig(LoggerConfig):
    """Project, entity (user or team) and mode. `timeout_seconds`: limit for a server response.

    `log_model`: the checkpoints that become artifacts, a key of LOGGED_CHECKPOINTS.
    """

    project: str
    entity: str | None
    mode: str
    timeout_seconds: float
    log_model: str = "none"

    def __post_init__(self) -> None:
        require_one_of("logger.mode", self.mode, MODES)
        seconds = self.timeout_seconds
        require(seconds > 0, "logger.timeout_seconds", seconds, "must be above 0")
        require_one_of("logger.log_model", self.log_model, LOGGED_CHECKPOINTS)


@LOGGERS.register("wandb", WandbConfig)
class WandbLogger(Logger):
    """Reports to W&B, which writes its files to <run>/wandb.

    `mode=auto` is online if an API key is configured and the server answers in time, else offline,
    or off if W&B does not start. It respects WANDB_MODE and `wandb offline`. Any other mode raises
    UserError if it is not available. What W&B refuses in every mode is refused before the run.

    The step is logged as a metric and used as the x-axis. W&B's own step must increase, so that
    steps a resumed run reports twice would be dropped.

    The summary is the content of result.json, except that of WITH_MINIMUM.
    """

    @classmethod
    def check_labels(cls, options: WandbConfig, group: str | None, tags: list[str]) -> None:
        require_label("logger.project", options.project)
        require_label("logger.entity", options.entity)
        require_label("group", group, forbidden="")
        for tag in tags:
            require_tag(tag)

    @classmethod
    def check(cls, options: WandbConfig) -> None:
        require_settings()
        if options.mode != "online":
            return
        if (why := why_not_online(options.timeout_seconds)) is not None:
            raise UserError(f"logger.mode=online: {why}; fix that, or use logger.mode=auto")

    def __init__(self, options: WandbConfig, info: RunInfo) -> None:
        self._options, self._info, self._warned = options, info, False
        self._run: wandb.Run | None = None
        self.tracker_id = info.tracker_id

        # The trainer prints to the terminal, not W&B. W&B sends telemetry even from offline runs;
        # on a network that drops packets this delays the exit of the process by 20 s.
        os.environ["WANDB_SILENT"] = "true"
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")

        reasons = self._open()
        if self._run is None:
            self.notice = f"W&B is off: {'; '.join(reasons)}"
            return
        self.tracker_id = self._run.id
        if self._run.offline:
            why = "; ".join(reasons) or f"logger.mode={options.mode}"
            # The pattern includes the files of a resumed run from before its interruption.
            runs = shlex.quote(f"{info.directory / 'wandb'}/offline-run-")
            self.notice = f"W&B is offline: {why}. Upload: wandb sync {runs}*-{self._run.id}*"
        else:
            self.notice = f"W&B: {self._run.url}"

    def log(self, metrics: dict[str, float], step: int) -> None:
        if (run := self._run) is not None:
            with self._one_warning(run):
                run.log({**metrics, "step": step})

    def log_text(self, text: str, step: int) -> None:
        if (run := self._run) is None:
            return
        import wandb

        with self._one_warning(run):
            # One small file per sample, shown with a slider over steps. A Table adds an artifact.
            page = f"<pre style='white-space: pre-wrap'>{html.escape(text)}</pre>"
            sample = wandb.Html(page, inject=False, data_is_not_path=True)
            run.log({"samples": sample, "step": step})

    def finish(self, summary: dict[str, Any], failed: bool) -> None:
        if (run := self._run) is None:
            return
        with self._one_warning(run):
            self._summarize(run, summary)
            self._log_checkpoints(run)
        with self._one_warning(run):
            run.finish(exit_code=int(failed))
            return
        # Reached only after a failure: W&B's process may be dead, and the next run needs a new one.
        _end_service()

    def _summarize(self, run: wandb.Run, result: dict[str, Any]) -> None:
        """Replace the summary, by default the last value of each metric, by the result."""
        for key in run.summary.keys():  # noqa: SIM118 (it is not a Mapping)
            if not key.startswith("_") and key not in result:
                del run.summary[key]
        run.summary.update({k: v for k, v in result.items() if k not in WITH_MINIMUM})

    def _log_checkpoints(self, run: wandb.Run) -> None:
        """Log the chosen checkpoints as versions of an artifact; wait for their upload if online.

        W&B copies their files, which a resumed run replaces.
        """
        import wandb

        for name in LOGGED_CHECKPOINTS[self._options.log_model]:
            folder = readable_directory(self._info.checkpoints[name])
            if not folder.is_dir():  # the run ended before it saved one
                continue
            artifact = wandb.Artifact(f"model-{run.id}", type="model")
            artifact.add_dir(str(folder))
            run.log_artifact(artifact, aliases=[name])
            if not run.offline:
                seconds = FINISH_TIMEOUTS * self._options.timeout_seconds
                artifact.wait(timeout=math.ceil(seconds + artifact.size / UPLOAD_RATE))

    def _open(self) -> list[str]:
        """Start the run in the first available mode. Return why earlier modes are not available."""
        reasons: list[str] = []
        for mode in MODES[self._options.mode]:
            try:
                with _exit_hooks_restored():
                    self._run = self._start(mode)
                break
            except Exception as error:  # W&B raises many types; mode=auto must not end training
                why = " ".join(str(error).split()) or type(error).__name__
                if self._options.mode != "auto":
                    remedy = "fix that, or use logger.mode=auto"
                    raise UserError(f"logger.mode={mode}: {why}; {remedy}") from error
                if why not in reasons:
                    reasons.append(why)
        return reasons

    def _start(self, mode: Literal["online", "offline"]) -> wandb.Run:
        """Start the run. Raises what W&B raises, or Unavailable before W&B could block."""
        import wandb

        options, info = self._options, self._info
        _forget_ended_service()
        # WANDB_RUN_ID names a single run: the runs of a sweep would all get that id.
        own_id = secrets.token_hex(8) if info.in_group else None
        user_settings = settings()
        if mode == "online":
            require_online(user_settings, options.timeout_seconds)
        elif options.mode == "auto" and user_settings.mode == "disabled":
            raise Unavailable(mode_setting(user_settings))
        try:
            run = wandb.init(
                project=options.project,
                entity=options.entity,
                dir=info.directory.resolve(),  # W&B's process may have another working directory
                mode=mode,
                id=info.tracker_id or own_id,
                resume=None if info.tracker_id is None else "allow",
                name=info.name[:MAX_LABEL],  # the names that minigpt makes are shorter
                group=info.group,
                job_type=user_settings.run_job_type or info.job_type,  # WANDB_JOB_TYPE
                tags=info.tags,
                config=info.config,
                reinit="create_new",  # the default reuses an unfinished run of this process
                settings=wandb.Settings(
                    console="off",
                    init_timeout=START_TIMEOUTS * options.timeout_seconds,
                    finish_timeout=FINISH_TIMEOUTS * options.timeout_seconds,
                    finish_timeout_raises=True,
                ),
            )
        except Exception:
            _end_service()  # otherwise W&B rejects the id of the failed run
            raise
        run.define_metric("step", hidden=True)
        run.define_metric("*", step_metric="step")
        for name in WITH_MINIMUM:
            run.define_metric(name, step_metric="step", summary="min,last")
        return run

    @contextmanager
    def _one_warning(self, run: wandb.Run) -> Iterator[None]:
        """Turn exceptions into a warning, once per run."""
        try:
            yield
        except Exception as error:  # from W&B; OSError and others if its process died
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"W&B failed to record part of this run ({error}); metrics.jsonl is complete. "
                    f"Upload what W&B recorded: wandb sync {shlex.quote(run.settings.sync_dir)}",
                    RuntimeWarning,
                    stacklevel=4,
                )


def _end_service() -> None:
    """End W&B's background process, whether or not it still runs."""
    import wandb

    with suppress(Exception, SystemExit):  # it may exit with the code of that process
        wandb.teardown()


def _forget_ended_service() -> None:
    """Drop the address of a W&B process that has ended, so that W&B starts another.

    Processes inherit it in their environment, those of Ray for as long as they live.
    """
    address = re.fullmatch(r"\d+-\d+-unix-(.+)", os.environ.get("WANDB_SERVICE", ""))
    if address is None:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(address[1])
        except OSError:
            del os.environ["WANDB_SERVICE"]


@contextmanager
def _exit_hooks_restored() -> Iterator[None]:
    """Undo W&B's replacement of sys.exit and sys.excepthook.

    W&B uses them to detect how unfinished runs end. `finish` is always called here, and W&B's
    hooks would change tracebacks.
    """
    hooks = sys.exit, sys.excepthook
    try:
        yield
    finally:
        sys.exit, sys.excepthook = hooks
