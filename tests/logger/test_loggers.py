"""Trackers; files of W&B and TensorBoard are read back with their own readers."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from minigpt.errors import UserError
from minigpt.extras import install
from minigpt.logger import LOGGERS, Logger, RunInfo
from tests.conftest import TINY, Cli

SUMMARY = {"loss": 1.25, "best": {"step": 20, "loss": 1.5, "note": None}}
KEY = "0" * 40
SECONDS = 2.0

Open = Callable[..., Logger]


@pytest.fixture(autouse=True)
def isolated_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Provide an empty home directory, no network, and a terminal that must not be read."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)  # W&B also reads ./wandb/settings
    monkeypatch.setattr(
        sys, "stdin", mock.Mock(isatty=lambda: True, readline=_fail_on_prompt, read=_fail_on_prompt)
    )
    with mock.patch.dict(os.environ):
        for name in list(os.environ):
            if name.startswith(("WANDB_", "XDG_")) or name.lower().endswith("_proxy"):
                del os.environ[name]
        os.environ.update(HOME=str(home), NETRC=str(home / "netrc"))
        os.environ["WANDB_BASE_URL"] = f"http://127.0.0.1:{_closed_port()}"
        yield
        if "wandb" in sys.modules:
            import wandb

            wandb.teardown()  # W&B reads its settings once per process


@pytest.fixture
def info(tmp_path: Path) -> RunInfo:
    """Return the description of a run."""
    directory = tmp_path / "a run"
    directory.mkdir()
    config = {"seed": 1, "model": {"d": 64, "rope": None, "layers": ["a", "b"]}}
    checkpoints = {name: directory / "checkpoints" / name for name in ("best", "last")}
    return RunInfo(
        directory, "a run", "a group", ["tag1", "tag2"], config, None, False, "sweep", checkpoints
    )


@pytest.fixture
def open_wandb(info: RunInfo) -> Open:
    """Return a function that opens a W&B logger."""

    def open_(
        mode: str = "auto",
        info: RunInfo = info,
        timeout_seconds: float = SECONDS,
        log_model: str = "none",
    ) -> Logger:
        values = ("wandb", "a project", None, mode, timeout_seconds, log_model)
        return LOGGERS.build(LOGGERS.options("wandb")(*values), info)

    return open_


def build(name: str, info: RunInfo) -> Logger:
    """Return a logger by name."""
    values: dict[str, dict[str, Any]] = {
        "wandb": {"project": "p", "entity": None, "mode": "auto", "timeout_seconds": SECONDS}
    }
    return LOGGERS.build(LOGGERS.options(name)(name=name, **values.get(name, {})), info)


@pytest.mark.parametrize("name", LOGGERS.names())
@pytest.mark.parametrize("failed", [False, True])
def test_loggers_print_nothing(
    name: str, failed: bool, info: RunInfo, capfd: pytest.CaptureFixture[str]
) -> None:
    if name == "tensorboard":
        pytest.importorskip("tensorboard")
    with warnings.catch_warnings(action="error"):
        logger = build(name, info)
        for step in (1, 2, 2):
            logger.log({"train/loss": 1.0, "val/loss": float("nan")}, step)
            logger.log_text("To be, <or>\nnot", step)
        logger.finish(SUMMARY, failed)
    assert "\n" not in (logger.notice or "")
    assert capfd.readouterr() == ("", "")


# W&B


def test_wandb_records_config_metrics_samples_and_summary(open_wandb: Open, info: RunInfo) -> None:
    logger = open_wandb("offline")
    logger.log({"train/loss": 2.0, "lr": 0.1}, 10)
    logger.log({"train/loss": 1.0}, 20)
    logger.log_text("To be, <or>\nnot", 20)
    logger.finish(SUMMARY, failed=False)

    (run,) = offline_runs(info)
    summary = inspect(run)
    assert summary["run_id"] == logger.tracker_id
    assert (summary["project"], summary["name"], summary["tags"]) == (
        "a project",
        "a run",
        info.tags,
    )
    assert summary["config"] == info.config
    assert public(summary["summary"]) == SUMMARY
    assert (summary["state"], summary["exit_code"]) == ("finished", 0)

    records = all_records(run)
    (description,) = of_type("run", records)
    assert (description["run_group"], description["job_type"]) == ("a group", "sweep")
    # Every metric is plotted over the logged step.
    assert any(r["metric"].get("step_metric") == "step" for r in records if r["type"] == "metric")
    first, second, sample = history(run)
    assert first == {"train/loss": 2.0, "lr": 0.1, "step": 10}
    assert second == {"train/loss": 1.0, "step": 20}
    assert sample["step"] == 20
    page = (run / "files" / sample["samples.path"]).read_text()
    assert "To be, &lt;or&gt;\nnot" in page


def test_wandb_prefers_the_job_type_of_the_environment(open_wandb: Open, info: RunInfo) -> None:
    os.environ["WANDB_JOB_TYPE"] = "mine"
    open_wandb("offline").finish({}, failed=False)
    (description,) = of_type("run", all_records(offline_runs(info)[0]))
    assert description["job_type"] == "mine"


def test_wandb_summarizes_a_finished_run_by_minimum_and_last_value(
    open_wandb: Open, info: RunInfo
) -> None:
    logger = open_wandb("offline")
    for step, loss in enumerate((3.0, 1.0, 2.0)):
        logger.log({"val_loss": loss, "val_bits_per_byte": loss / 2, "lr": 0.1}, step)
    logger.finish({"val_loss": 2.0, "best_val_loss": 1.0, "val_bits_per_byte": 1.0}, failed=False)
    assert public(inspect(offline_runs(info)[0])["summary"]) == {
        "val_loss": {"min": 1, "last": 2},
        "val_bits_per_byte": {"min": 0.5, "last": 1},
        "best_val_loss": 1,
    }


def test_wandb_summarizes_a_killed_run_by_its_minimum(info: RunInfo) -> None:
    program = f"""
import os, signal, time
from pathlib import Path
from minigpt.logger import LOGGERS, RunInfo
options = LOGGERS.options("wandb")("wandb", "p", None, "offline", {SECONDS})
logger = LOGGERS.build(options, RunInfo(Path({str(info.directory)!r}), "n", None, [], {{}}, None))
for step, loss in enumerate([3.0, 1.0, *[2.0] * 500]):
    logger.log({{"val_loss": loss, "val_perplexity": 2 * loss}}, step)
time.sleep(1)
os.kill(os.getpid(), signal.SIGKILL)
"""
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    assert subprocess.run([sys.executable, "-c", program]).returncode == -signal.SIGKILL
    read = inspect(offline_runs(info)[0])
    assert read["state"] == "running"  # W&B writes every 15 s, and each 32 KiB of the 500 steps
    assert read["summary"]["val_loss"] == {"min": 1, "last": 2}
    assert read["summary"]["val_perplexity"] == {"min": 2, "last": 4}


@pytest.mark.parametrize(
    ("log_model", "saved", "logged"),
    [
        ("none", ["best", "last"], []),
        ("best", ["best", "last"], ["best"]),
        ("last", ["best", "last"], ["last"]),
        ("both", ["best", "last"], ["best", "last"]),
        ("both", ["last"], ["last"]),
    ],
)
def test_wandb_logs_the_chosen_checkpoints_once_as_artifacts(
    log_model: str, saved: list[str], logged: list[str], open_wandb: Open, info: RunInfo
) -> None:
    for name in saved:
        info.checkpoints[name].mkdir(parents=True)
        (info.checkpoints[name] / "model.safetensors").write_text(f"weights of {name}")
    logger = open_wandb("offline", log_model=log_model)
    logger.log({"val_loss": 1.0}, 1)
    logger.finish(SUMMARY, failed=False)
    artifacts = of_type("artifact", all_records(offline_runs(info)[0]))
    assert [{*artifact["aliases"]} - {"latest"} for artifact in artifacts] == [{n} for n in logged]
    for name, artifact in zip(logged, artifacts, strict=True):
        assert (artifact["type"], artifact["name"]) == ("model", f"model-{logger.tracker_id}")
        (file,) = artifact["manifest"]["contents"]
        assert file["path"] == "model.safetensors"
        assert Path(file["local_path"]).read_text() == f"weights of {name}"


def test_a_checkpoint_that_wandb_does_not_take_ends_in_one_warning(
    open_wandb: Open, info: RunInfo, capfd: pytest.CaptureFixture[str]
) -> None:
    os.environ["WANDB_API_KEY"] = KEY
    info.checkpoints["best"].mkdir(parents=True)
    (info.checkpoints["best"] / "model.safetensors").write_text("weights")
    sent: list[str] = []
    with server(lambda path: 200, sent) as url:  # which answers nothing of artifacts
        os.environ["WANDB_BASE_URL"] = url
        logger = open_wandb("online", timeout_seconds=0.3, log_model="best")
        start = time.monotonic()
        with pytest.warns(RuntimeWarning, match=r"metrics\.jsonl is complete") as caught:
            logger.finish(SUMMARY, failed=False)
        assert time.monotonic() - start < 10
    assert len(caught) == 1
    assert any("best_val" in request or '"loss' in request for request in sent)
    assert capfd.readouterr() == ("", "")


def test_wandb_marks_a_failed_run(open_wandb: Open, info: RunInfo) -> None:
    open_wandb("offline").finish({"error": "UserError"}, failed=True)
    summary = inspect(offline_runs(info)[0])
    assert (summary["state"], summary["exit_code"]) == ("failed", 1)
    assert public(summary["summary"]) == {"error": "UserError"}


def test_wandb_separates_two_runs_of_one_process(open_wandb: Open, info: RunInfo) -> None:
    other = replace(info, directory=info.directory.with_name("other"))
    other.directory.mkdir()
    first, second = (
        open_wandb("offline"),
        open_wandb("offline", other),
    )  # before the first one is finished
    first.log({"a": 1.0}, 1)
    second.log({"b": 2.0}, 1)
    first.finish({}, failed=False)
    second.finish({}, failed=False)
    assert first.tracker_id != second.tracker_id
    assert history(offline_runs(info)[0]) == [{"a": 1.0, "step": 1}]
    assert history(offline_runs(other)[0]) == [{"b": 2.0, "step": 1}]


def test_wandb_resumed_run_keeps_its_id_and_may_repeat_a_step(
    open_wandb: Open, info: RunInfo
) -> None:
    first = open_wandb("offline")
    for step in (1, 2, 3):
        first.log({"loss": float(step)}, step)
    first.finish({}, failed=True)
    second = open_wandb("offline", replace(info, tracker_id=first.tracker_id))
    for step in (2, 3, 4):
        second.log({"loss": float(step)}, step)
    second.finish(SUMMARY, failed=False)

    assert second.tracker_id == first.tracker_id
    assert [inspect(run)["run_id"] for run in offline_runs(info)] == [first.tracker_id] * 2
    steps = [[row["step"] for row in history(run)] for run in offline_runs(info)]
    assert steps == [[1, 2, 3], [2, 3, 4]]


def test_wandb_without_a_key_is_offline_and_prints_the_sync_command(
    open_wandb: Open, info: RunInfo
) -> None:
    logger = open_wandb()
    logger.finish({}, failed=False)
    assert logger.notice is not None and "no API key" in logger.notice
    command = logger.notice.partition("Upload: ")[2]
    assert command.startswith(f"wandb sync '{info.directory}/wandb/offline-run-'")
    expanded = subprocess.check_output(f"printf '%s\\n' {command}", shell=True, text=True)
    assert expanded.split("\n")[2:-1] == [str(run) for run in offline_runs(info)]
    with pytest.raises(UserError, match=r"logger\.mode=online: no API key"):
        open_wandb("online")


@pytest.mark.parametrize("where", ["environment", "netrc", "settings"])
def test_wandb_without_a_server_is_offline_within_the_timeout(
    where: str, open_wandb: Open, capfd: pytest.CaptureFixture[str]
) -> None:
    if where == "environment":
        os.environ["WANDB_API_KEY"] = KEY
    elif where == "netrc":
        host = os.environ["WANDB_BASE_URL"].removeprefix("http://")
        Path(os.environ["NETRC"]).write_text(f"machine {host} login user password {KEY}\n")
    else:
        _write_settings(f"api_key = {KEY}")
    start = time.monotonic()
    logger = open_wandb()
    logger.finish({}, failed=False)
    assert time.monotonic() - start < SECONDS + 3
    assert logger.notice is not None
    assert "offline" in logger.notice and "Connection refused" in logger.notice
    with pytest.raises(UserError, match=r"logger.mode=online: http://127.*Connection refused"):
        open_wandb("online")
    assert capfd.readouterr() == ("", "")


def test_wandb_reports_a_malformed_key(open_wandb: Open) -> None:
    os.environ["WANDB_API_KEY"] = "too short"
    logger = open_wandb()
    logger.finish({}, failed=False)
    assert logger.notice is not None and "WANDB_API_KEY" in logger.notice
    with pytest.raises(UserError, match="WANDB_API_KEY"):
        open_wandb("online")


def test_a_malformed_key_is_one_line_before_the_run(cli: Cli) -> None:
    os.environ["WANDB_API_KEY"] = "abc"
    del os.environ["WANDB_MODE"]
    why = "WANDB_API_KEY invalid: API key must have 40+ characters, has 3"
    outcome = cli("train", *TINY, "logger=wandb", "logger.mode=online")
    assert outcome.code == 2 and not Path("runs").exists()
    assert outcome.err == f"minigpt: logger.mode=online: {why}; fix that, or use logger.mode=auto\n"
    outcome = cli("doctor")
    assert outcome.code == 0 and "offline: WANDB_API_KEY invalid" in outcome.out


@pytest.mark.parametrize("command", [("train",), ("train", "-m", "seed=1,2"), ("tune", "seed=1,2")])
@pytest.mark.parametrize(
    ("override", "message"),
    [
        (f"tags=[{'x' * 80}]", "a tag has 80 characters, W&B takes 1 to 64"),
        ("tags=['']", "a tag has 0 characters, W&B takes 1 to 64"),
        ("logger.project=my/proj", "logger.project=my/proj: W&B does not take the characters /"),
        ("logger.project=' '", "logger.project= : empty"),
        ("logger.entity=a#b?", "logger.entity=a#b?: W&B does not take the characters # ?"),
        (f"group={'g' * 129}", "has 129 characters, W&B takes at most 128"),
    ],
)
def test_what_wandb_never_takes_is_refused_before_the_run(
    command: tuple[str, ...], override: str, message: str, cli: Cli
) -> None:
    tiny = [value for value in TINY if value != "logger=none"]
    outcome = cli(*command, *tiny, "logger=wandb", override)
    assert outcome.code == 2 and message in outcome.err and outcome.err.count("\n") == 1
    assert {path.name for path in Path().iterdir()} == {"text.txt", "home"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "-m", f"sweep.name={'s' * 80}"), "a tag has 80 characters"),
        (("train", "-m", f"hydra.sweep.dir={'d' * 129}"), "has 129 characters"),
        (("tune", f"--dir={'d' * 129}"), "has 129 characters"),
    ],
)
def test_labels_that_a_sweep_adds_are_checked(
    arguments: tuple[str, ...], message: str, cli: Cli
) -> None:
    tiny = [value for value in TINY if value != "logger=none"]
    outcome = cli(*arguments, *tiny, "logger=wandb", "seed=1,2")
    assert outcome.code == 2 and message in outcome.err and outcome.err.count("\n") == 1
    assert not list(Path().rglob("config.yaml"))


def test_limits_of_wandb_bind_no_other_logger(cli: Cli) -> None:
    labels = (f"tags=[{'x' * 80}]", f"group={'g' * 129}")
    assert cli("train", *TINY, "trainer.max_steps=1", "logger=none", *labels).code == 0


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("WANDB_MODE", "sideways", "mode=sideways: "),
        ("WANDB_BASE_URL", "junk", "base_url=junk: "),
        ("WANDB_CONSOLE", "loud", "console=loud: "),
        ("WANDB_TAGS", "x" * 80, "is 80 characters"),
        ("WANDB_PROJECT", "a/b", "Invalid project name 'a/b'"),
        ("WANDB_RUN_ID", "a/b", "Run ID cannot contain"),
    ],
)
def test_settings_that_wandb_rejects_are_one_line_before_the_run(
    name: str, value: str, why: str, cli: Cli
) -> None:
    os.environ[name] = value
    outcome = cli("train", *TINY, "logger=wandb")
    assert outcome.code == 2 and not Path("runs").exists()
    assert outcome.err.startswith("minigpt: logger=wandb: W&B rejects its environment (WANDB_*)")
    assert outcome.err.count("\n") == 1 and why in outcome.err


def test_wandb_takes_the_longest_values_that_are_allowed(open_wandb: Open, info: RunInfo) -> None:
    name, group, tag = "n" * 200, "g" * 128, "t" * 64
    logger = open_wandb("offline", replace(info, name=name, group=group, tags=[tag]))
    logger.finish({}, failed=False)
    run = next(record["run"] for record in all_records(offline_runs(info)[0]) if "run" in record)
    assert (run["run_group"], run["tags"]) == (group, [tag])
    assert run["display_name"] == name[:128]


def test_wandb_times_out_if_the_server_does_not_answer(open_wandb: Open) -> None:
    os.environ["WANDB_API_KEY"] = KEY
    start = time.monotonic()
    with server(lambda path: None) as url:
        os.environ["WANDB_BASE_URL"] = url
        with pytest.raises(UserError, match=r"no answer|timed out"):
            open_wandb("online", timeout_seconds=0.5)
    assert time.monotonic() - start < 3


def test_wandb_prints_nothing_and_exits_quickly_in_a_terminal(info: RunInfo) -> None:
    """Run a whole process with its exit hooks; its telemetry would wait for the server."""
    pty = pytest.importorskip("pty")
    _write_settings("project = of another program")
    program = f"""
from pathlib import Path
from minigpt.logger import LOGGERS, RunInfo
options = LOGGERS.options("wandb")("wandb", "p", None, "auto", {SECONDS})
logger = LOGGERS.build(options, RunInfo(Path({str(info.directory)!r}), "n", None, [], {{}}, None))
logger.log({{"loss": 1.0}}, 1)
logger.finish({{}}, failed=False)
"""
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    main, terminal = pty.openpty()
    start = time.monotonic()
    with server(lambda path: None) as url:
        os.environ["WANDB_BASE_URL"] = url
        command = [sys.executable, "-c", program]
        subprocess.run(
            command, stdin=terminal, stdout=terminal, stderr=terminal, check=True, timeout=30
        )
    assert time.monotonic() - start < 15  # telemetry would wait for 20 s; a busy machine takes 6 s
    assert len(offline_runs(info)) == 1
    os.close(terminal)
    printed = b""
    with suppress(OSError):  # Linux raises at the end of a pseudo-terminal
        printed = os.read(main, 10_000)
    os.close(main)
    assert printed == b""


def test_wandb_falls_back_to_offline_if_the_start_fails(open_wandb: Open, info: RunInfo) -> None:
    os.environ["WANDB_API_KEY"] = KEY
    info = replace(info, tracker_id="kept")
    sent: list[str] = []
    with server(lambda path: 200 if path == "/healthz" else None, sent) as url:
        os.environ["WANDB_BASE_URL"] = url
        start = time.monotonic()
        logger = open_wandb("auto", info, timeout_seconds=0.3)
        logger.log({"loss": 1.0}, 1)
        logger.finish({}, failed=False)
    assert time.monotonic() - start < 5
    assert any("RunResumeStatus" in request for request in sent)
    assert logger.tracker_id == "kept" and "offline" in (logger.notice or "")
    assert history(offline_runs(info)[0]) == [{"loss": 1.0, "step": 1}]


def test_wandb_sends_metrics_online(open_wandb: Open) -> None:
    os.environ["WANDB_API_KEY"] = KEY
    sent: list[str] = []
    with server(lambda path: 200, sent) as url:
        os.environ["WANDB_BASE_URL"] = url
        logger = open_wandb()
        logger.log({"train/loss": 1.0}, 7)
        logger.finish(SUMMARY, failed=False)
    assert (logger.notice or "").endswith(f"/me/a%20project/runs/{logger.tracker_id}")
    assert any("train/loss" in request and "step" in request for request in sent)


def test_wandb_does_not_wait_if_the_server_stops_answering(
    open_wandb: Open, info: RunInfo, capfd: pytest.CaptureFixture[str]
) -> None:
    os.environ["WANDB_API_KEY"] = KEY
    answering = True
    with server(lambda path: 200 if answering else None) as url:
        os.environ["WANDB_BASE_URL"] = url
        logger = open_wandb("online", timeout_seconds=0.2)
        answering = False
        start = time.monotonic()
        for step in range(100):
            logger.log({"loss": 1.0}, step)
        assert time.monotonic() - start < 1
        with pytest.warns(RuntimeWarning, match=f"wandb sync '{info.directory}/wandb/run-"):
            logger.finish(SUMMARY, failed=False)
        assert time.monotonic() - start < 4
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_wandb_obeys_wandb_mode(mode: str, open_wandb: Open, info: RunInfo) -> None:
    os.environ.update(WANDB_MODE=mode, WANDB_API_KEY=KEY)
    with server(lambda path: 200) as url:
        os.environ["WANDB_BASE_URL"] = url
        logger = open_wandb("auto", replace(info, tracker_id="kept"))
        logger.log({"loss": 1.0}, 1)
        logger.log_text("text", 1)
        logger.finish({}, failed=False)
        assert f"WANDB_MODE={mode}" in (logger.notice or "")
        assert logger.tracker_id == "kept"
        assert (info.directory / "wandb").exists() == (mode == "offline")
        with pytest.raises(UserError, match=f"logger.mode=online: WANDB_MODE={mode}"):
            open_wandb("online")
    open_wandb("offline").finish({}, failed=False)


def test_wandb_mode_online_is_auto_mode(open_wandb: Open) -> None:
    os.environ["WANDB_MODE"] = "online"
    logger = open_wandb()
    logger.finish({}, failed=False)
    assert "offline: no API key" in (logger.notice or "")


def test_wandb_obeys_wandb_offline(open_wandb: Open) -> None:
    """The command `wandb offline` writes W&B's settings file."""
    os.environ["WANDB_API_KEY"] = KEY
    _write_settings("mode = offline")
    logger = open_wandb()
    logger.finish({}, failed=False)
    assert "offline: W&B's settings file: mode=offline" in (logger.notice or "")


def test_wandb_reports_an_invalid_environment_variable(open_wandb: Open) -> None:
    os.environ["WANDB_MODE"] = "sideways"
    logger = open_wandb()
    logger.log({"loss": 1.0}, 1)
    logger.finish({}, failed=False)
    assert (logger.notice or "").startswith("W&B is off:") and "sideways" in (logger.notice or "")


@pytest.mark.skipif(sys.platform != "linux", reason="finds W&B's process in /proc")
def test_a_killed_wandb_process_warns_once_and_the_next_run_works(
    open_wandb: Open, info: RunInfo, capfd: pytest.CaptureFixture[str]
) -> None:
    logger = open_wandb("offline")
    logger.log({"loss": 1.0}, 1)
    _kill_service()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(20):
            logger.log({"loss": 1.0}, step)
            time.sleep(0.01)  # W&B may detect it late
        logger.log_text("text", 20)
        logger.finish(SUMMARY, failed=False)
    assert ["metrics.jsonl is complete" in str(w.message) for w in caught] == [True]
    other = replace(info, directory=info.directory.with_name("other"))
    other.directory.mkdir()
    next_logger = open_wandb("offline", other)
    next_logger.log({"loss": 3.0}, 1)
    next_logger.finish({}, failed=False)
    assert history(offline_runs(other)[0]) == [{"loss": 3.0, "step": 1}]
    assert capfd.readouterr() == ("", "")


def test_an_inherited_address_of_an_ended_wandb_process_is_replaced(
    open_wandb: Open, info: RunInfo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WANDB_SERVICE", f"3-1-unix-{tmp_path / 'socket'}")
    logger = open_wandb("offline")
    logger.log({"loss": 1.0}, 1)
    logger.finish(SUMMARY, failed=False)
    assert history(offline_runs(info)[0]) == [{"loss": 1.0, "step": 1}]


def test_wandb_restores_signal_handlers_and_streams(open_wandb: Open) -> None:
    def state() -> list[Any]:
        handlers = [signal.getsignal(number) for number in signal.valid_signals()]
        return [sys.exit, sys.excepthook, sys.stdout.write, sys.stderr.write, *handlers]

    before = state()
    logger = open_wandb()
    assert state() == before
    logger.finish({}, failed=False)
    assert state() == before


@pytest.mark.parametrize(
    ("key", "value"),
    [("mode", "ofline"), ("mode", "disabled"), ("timeout_seconds", 0), ("log_model", "all")],
)
def test_wandb_rejects_invalid_options(key: str, value: Any, open_wandb: Open) -> None:
    with pytest.raises(UserError, match=f"^logger.{key}={value}: "):
        open_wandb(**{key: value})


def test_secrets_in_the_environment_reach_no_file_of_a_run(cli: Cli) -> None:
    names = ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY")
    secrets = {name: f"{number + 1}ec7e7" * 7 for number, name in enumerate(names)}
    os.environ.update(secrets, WANDB_MODE="offline")
    tiny = [value for value in TINY if value != "logger=none"]
    assert cli("train", *tiny, "logger=wandb", "hydra.run.dir=run").code == 0
    assert cli("eval", "run").code == cli("report", "run").code == 0
    files = [path for path in Path("run").rglob("*") if path.is_file()]
    assert {"manifest.json", "report.html"} <= {path.name for path in files}
    assert any(path.suffix == ".wandb" for path in files)
    for file in files:
        assert not any(secret.encode() in file.read_bytes() for secret in secrets.values()), file


# TensorBoard


def test_tensorboard_records_metrics_samples_and_config(info: RunInfo) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = build("tensorboard", info)
    logger.log({"train/loss": 2.0}, 10)
    logger.log({"train/loss": 1.0}, 20)
    logger.log_text("To be,\n\nor not", 20)
    logger.finish(SUMMARY, failed=True)

    events = EventAccumulator(str(info.directory / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(10, 2.0), (20, 1.0)]

    def text(tag: str) -> tuple[int, str]:
        (event,) = events.Tensors(f"{tag}/text_summary")
        return event.step, event.tensor_proto.string_val[0].decode()

    assert text("samples") == (20, "    To be,\n    \n    or not")
    assert json.loads(text("config")[1]) == info.config
    assert json.loads(text("summary")[1]) == SUMMARY
    assert text("state")[1] == "failed"


def test_missing_tensorboard_names_the_extra(info: RunInfo) -> None:
    missing = {"tensorboard": None, "torch.utils.tensorboard.writer": None}
    with (
        mock.patch.dict(sys.modules, missing),
        pytest.raises(UserError, match=re.escape(install("tensorboard"))),
    ):
        build("tensorboard", info)


# Helpers


def offline_runs(info: RunInfo) -> list[Path]:
    """Return the directories of a run's offline W&B runs."""
    return sorted((info.directory / "wandb").glob("offline-run-*"))


def _leet(run: Path, *options: str) -> str:
    """Return the output of `wandb leet inspect`."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *options, str(run)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


def inspect(run: Path) -> dict[str, Any]:
    """Return the summary of a W&B run."""
    return json.loads(_leet(run, "--summary"))


def all_records(run: Path) -> list[dict[str, Any]]:
    """Return the records of a W&B run."""
    return [json.loads(line) for line in _leet(run).splitlines()]


def of_type(kind: str, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the content of the records of a type."""
    return [record[kind] for record in records if record["type"] == kind]


def history(run: Path) -> list[dict[str, Any]]:
    """Return the logged metrics of a W&B run."""
    return [public(r["history"]["item"]) for r in all_records(run) if r["type"] == "history"]


def public(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row without the fields that W&B adds."""
    return {key: value for key, value in row.items() if not key.startswith("_")}


def _write_settings(line: str) -> None:
    """Write a line to W&B's settings file."""
    settings = Path.home() / ".config/wandb/settings"
    settings.parent.mkdir(parents=True)
    settings.write_text(f"[default]\n{line}\n")


def _fail_on_prompt(*args: Any) -> str:
    raise AssertionError("a logger must not prompt")


def _closed_port() -> int:
    """Return a port on which no server listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _kill_service() -> None:
    """Kill the W&B process of this process, which may have other children (Ray's)."""
    lists = [file.read_text() for file in Path("/proc/self/task").glob("*/children")]
    children = " ".join(lists).split()
    names = {child: Path(f"/proc/{child}/comm").read_text().strip() for child in children}
    (child,) = [child for child, name in names.items() if name == "wandb-core"]
    os.kill(int(child), signal.SIGKILL)


@contextmanager
def server(
    status: Callable[[str], int | None],
    requests: list[str] | None = None,
    answer: Callable[[str], dict[str, Any]] = lambda request: {},
) -> Iterator[str]:
    """Run a fake W&B server that answers with status(path), or not at all if it is None.

    `answer`: from a request to data that the answer has besides that of every run.
    """
    closing = threading.Event()
    project = {"name": "a project", "entity": {"name": "me"}}
    data = {
        "upsertBucket": {"bucket": {"id": "id", "name": "name", "project": project}},
        "createRunFiles": {"files": [], "uploadHeaders": []},
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            request = body.decode("utf-8", "replace")
            if requests is not None:
                requests.append(request)
            code = status(self.path)
            if code is None:
                closing.wait()
                return
            body = json.dumps({"data": data | answer(request)}).encode()
            with suppress(OSError):
                self.send_response(code)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.daemon_threads = True
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{httpd.server_port}"
        finally:
            closing.set()
            httpd.shutdown()


def test_wandb_run_id_names_single_runs_only(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In processes of their own: W&B reads the environment once."""
    monkeypatch.setenv("WANDB_RUN_ID", "mine")

    def train(*arguments: str) -> None:
        command = [sys.executable, "-m", "minigpt.cli", "train", *arguments]
        subprocess.run(command, check=True, capture_output=True)

    def tracker_id(run: str) -> str:
        return json.loads(Path(run, "manifest.json").read_text())["tracker_id"]

    short = [*TINY, "logger=wandb", "trainer.max_steps=2", "trainer.sample_every=null"]
    train(*short, "hydra.run.dir=single")
    assert tracker_id("single") == "mine"
    train("-m", *short, "seed=1,2", "hydra.sweep.dir=sweep")
    ids = [tracker_id(f"sweep/seed={seed}") for seed in (1, 2)]
    assert len({*ids, "mine"}) == 3
    train("resume=sweep/seed=1", "trainer.max_steps=4")
    assert tracker_id("sweep/seed=1") == ids[0]
    files = {path.name for path in Path("sweep").glob("*/wandb/offline-run-*/run-*.wandb")}
    assert files == {f"run-{name}.wandb" for name in ids}
