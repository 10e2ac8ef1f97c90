"""Overrides of the form --KEY=VALUE, as W&B's agent writes them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from minigpt.config.pairs import without_dashes
from minigpt.config.saved import read_config
from tests.conftest import TINY, Cli, the_run

FLAGS = ("--help", "--cfg", "--config-dir", "--config-name", "--trials", "--dir", "--multirun")


def test_only_overrides_lose_their_dashes() -> None:
    arguments = ["--model=rope", "--cfg=job", "-m", "--config-dir=x", "--name=a=b", "seed=1"]
    expected = ["model=rope", "--cfg=job", "-m", "--config-dir=x", "name=a=b", "seed=1"]
    assert without_dashes(arguments, FLAGS) == expected
    mistyped = ["--trails=3", "--config_dir=x", "--seed", "--"]
    assert without_dashes(mistyped, FLAGS) == mistyped


@pytest.mark.medium
@pytest.mark.parametrize(
    "form",
    ["args", "args_no_hyphens", "args_override_hydra"],
)
def test_the_arguments_of_wandb_agent_train_a_run(workdir: Path, form: str) -> None:
    """`program: ...` of a W&B sweep; the agent's own code writes the arguments."""
    values = {
        "optimizer.lr": 0.003,
        "model.positional.scaling": "none",
        "model.n_kv_head": None,
        "model.bias": True,
        "name": "of the agent",
    }
    arguments = create_sweep_command_args({"args": {k: {"value": v} for k, v in values.items()}})
    command = [sys.executable, "-m", "minigpt.cli", "train", *arguments[form], *TINY]
    result = subprocess.run([*command, "trainer.max_steps=2"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    config = read_config(the_run(workdir / "runs") / "config.yaml")
    assert (config.optimizer.lr, config.name) == (0.003, "of the agent")
    assert config.model.n_kv_head is None and config.model.bias is True


def test_a_sweep_with_dashes_lists_its_jobs(cli: Cli, workdir: Path) -> None:
    outcome = cli("train", "--model=rope,alibi", "-m", "--cfg", "job", "--logger=none")
    assert outcome.code == 0 and "model=alibi" in outcome.out
    assert cli("train", "-m", "--cfg=job", "model=rope,alibi", "logger=none").code == 0
    assert not Path("runs").exists()


def test_flags_are_still_flags(cli: Cli, workdir: Path) -> None:
    outcome = cli("train", "--cfg=job", "--package=optimizer", "--optimizer.lr=0.003")
    assert outcome.code == 0 and "lr: 0.003" in outcome.out
    outcome = cli("train", "--config-name=nope", "--seed=1")
    assert "--config-name=nope: no such config" in outcome.err
    outcome = cli("data", "--data=text", "--data.path=text.txt", "--tokenizer=char")
    assert outcome.code == 0 and "char" in outcome.out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train --optimizer.lr 0.003", "--optimizer.lr. An override is optimizer.lr=VALUE."),
        ("train --config_dir=x", "--config_dir=x. Did you mean --config-dir? See minigpt train"),
        ("tune --trails=3", "--trails=3. Did you mean --trials? See minigpt tune --help"),
        ("data --foo", "--foo. An override is foo=VALUE. See minigpt data --help"),
        ("doctor --foo", "unrecognized arguments: --foo; see minigpt doctor --help"),
        ("train --hel", "--hel. Did you mean --help? See minigpt train --help"),
        ("train --multi seed=1,2", "--multi. Did you mean --multirun? See minigpt train --help"),
        ("data --foo --bar 1", "--foo: An override is foo=VALUE. --bar: An override is bar=VALUE."),
        ("train --modle=rope", "modle: no such option or config group. Did you mean model?"),
    ],
)
def test_unknown_flags_say_what_to_type(cli: Cli, line: str, message: str) -> None:
    outcome = cli(*line.split())
    assert outcome.code == 2 and message in outcome.err and outcome.err.count("\n") == 1
