"""Files of a training session after errors, callbacks and stop requests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minigpt.config.compose import composed_config
from minigpt.config.saved import read_config
from minigpt.files import read_json
from minigpt.logger import Logger, LoggerConfig, RunInfo
from minigpt.logger.none import NoneLogger
from minigpt.run.directory import RunDirectory
from minigpt.run.load import as_trained
from minigpt.train.control import EarlyStop, StopRequest
from minigpt.train.session import train_run, training_session
from minigpt.train.trainer import Trainer
from tests.conftest import TINY, Cli


def result() -> dict[str, object]:
    """Return the result.json of the run."""
    return read_json(Path("run/result.json"))


def test_a_tracker_that_fails_to_open_is_recorded(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Logger, options: LoggerConfig, info: RunInfo) -> None:
        raise RuntimeError("no tracker\nat all")

    with monkeypatch.context() as patch:
        patch.setattr(NoneLogger, "__init__", fail)
        with pytest.raises(RuntimeError):
            cli("train", *TINY, "hydra.run.dir=run")
    assert result() == {"status": "failed", "error": "no tracker"}
    assert cli("train", "resume=run").code == 0
    assert result()["status"] == "finished"


def test_an_error_of_the_caller_is_recorded(workdir: Path) -> None:
    config, run = composed_config(TINY), RunDirectory(Path("run"))
    with pytest.raises(ZeroDivisionError), training_session(config, run, False, []) as trainer:
        trainer.begin()
        raise ZeroDivisionError("raised by the caller")
    assert result()["status"] == "failed" and result()["error"] == "raised by the caller"


@pytest.mark.parametrize("status", ["stopped", "paused"])
def test_a_callback_can_stop_the_run(workdir: Path, status: str) -> None:
    steps: list[int] = []

    def stop_at_second_evaluation(trainer: Trainer) -> None:
        steps.append(trainer.progress.step)
        if len(steps) == 2:
            raise EarlyStop(status)

    config, run = composed_config(TINY), RunDirectory(Path("run"))
    train_run(config, run, False, [], on_evaluation=stop_at_second_evaluation)
    assert steps == [4, 8]
    assert result()["status"] == status and result()["steps"] == 8


def test_a_stop_request_saves_and_raises_keyboard_interrupt(workdir: Path) -> None:
    stop = StopRequest()

    def request(trainer: Trainer) -> None:
        stop.number = 15

    config, run = composed_config(TINY), RunDirectory(Path("run"))
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        train_run(config, run, False, [], on_evaluation=request, stop=stop)
    assert result()["status"] == "interrupted" and result()["steps"] == 5
    assert run.last.exists()


def test_trainer_has_the_resolved_config(workdir: Path) -> None:
    config = composed_config([*TINY, "trainer.device=auto", "attention=sliding_window"])
    run = RunDirectory(Path("run"))
    with training_session(config, run, False, ["minigpt"], {"extra": 1}, backend="own") as trainer:
        assert trainer.options is trainer.config.trainer
        assert trainer.options.device == trainer.runtime.device != "auto"
        assert trainer.options.precision == trainer.runtime.precision
        assert read_config(run.config) == config
        assert as_trained(run, config) == trainer.config != config
        trainer.train()
    assert result()["backend"] == "own"
    manifest = json.loads(run.manifest.read_text())
    assert manifest["extra"] == 1 and manifest["backend"] == "own"
