"""Renamed config keys: rejected in overrides, accepted in saved configs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from minigpt.config.groups import choices_with
from minigpt.config.renamed import RENAMED_KEYS
from minigpt.config.saved import read_config
from minigpt.report.runs import find_runs
from tests.conftest import TINY, Cli


@pytest.mark.parametrize("old", RENAMED_KEYS)
@pytest.mark.parametrize("form", ["{}=2", "+{}=2", "++{}=2", "~{}"])
@pytest.mark.parametrize("flags", [[], ["-m", "seed=1,2"]], ids=["run", "sweep"])
def test_renamed_keys_in_overrides_are_rejected(
    cli: Cli, workdir: Path, old: str, form: str, flags: list[str]
) -> None:
    override = form.format(old)
    outcome = cli("train", "logger=none", override, *flags)
    assert outcome.code == 2
    assert outcome.err == f"minigpt: {override}: renamed to {RENAMED_KEYS[old]}\n"
    assert not (workdir / "runs").exists()


def test_new_names_exist_and_old_ones_do_not() -> None:
    for old, new in RENAMED_KEYS.items():
        assert choices_with(new) and not choices_with(old)


@pytest.mark.parametrize("command", ["tune", "bench train"])
def test_renamed_keys_in_other_commands_are_rejected(cli: Cli, command: str) -> None:
    outcome = cli(*command.split(), "trainer.accumulate=1,2", "logger=none")
    assert outcome.code == 2
    assert outcome.err == "minigpt: trainer.accumulate=1: renamed to trainer.grad_accum_steps\n"


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        ("trainer: {accumulate: 2}", [], "trainer.accumulate=2: renamed to trainer.grad_acc"),
        ("trainer: {accumulate: 2}", ["-m", "seed=1,2"], "trainer.accumulate=2: renamed to trai"),
        ("optimizer: {clip: null}", [], "optimizer.clip=null: renamed to optimizer.grad_clip"),
        (
            "hydra: {sweeper: {params: {optimizer.clip: '1,2'}}}",
            ["-m"],
            "optimizer.clip=1,2: renamed to optimizer.grad_clip",
        ),
    ],
)
def test_renamed_keys_in_experiments_are_rejected(
    cli: Cli, workdir: Path, content: str, flags: list[str], message: str
) -> None:
    (workdir / "own/experiment").mkdir(parents=True)
    (workdir / "own/experiment/old.yaml").write_text(f"# @package _global_\n{content}\n")
    outcome = cli("train", "--config-dir", "own", "experiment=old", "logger=none", *flags)
    assert outcome.code == 2
    assert message in outcome.err and outcome.err.count("\n") == 1
    assert not (workdir / "runs").exists()


def rename_to_old_keys(file: Path) -> None:
    """Rewrite a saved config as an earlier version wrote it."""
    config = yaml.safe_load(file.read_text())
    for old, new in RENAMED_KEYS.items():
        section = config
        for part in old.split(".")[:-1]:
            section = section[part]
        name = new.rpartition(".")[2]
        if name in section:
            section[old.rpartition(".")[2]] = section.pop(name)
    config["model"]["value_residual"] = True
    file.write_text(yaml.safe_dump(config))


def test_runs_with_old_keys_load_and_resume(cli: Cli) -> None:
    options = ["trainer.grad_accum_steps=2", "optimizer=muon", "optimizer.grad_clip=0.5"]
    options += ["optimizer.adamw_lr_ratio=2", "positional=relative", "schedule=constant"]
    options += ["model.n_layer=2", "model.value_residual=first_layer"]
    assert cli("train", *TINY, *options, "hydra.run.dir=run").code == 0
    file = Path("run/config.yaml")
    before = read_config(file)
    rename_to_old_keys(file)
    text = file.read_text()
    assert "accumulate: 2" in text and "clip: 0.5" in text and "other_lr: 2" in text
    assert read_config(file) == before
    config = find_runs(["run"]).runs[0].config
    assert config["optimizer.grad_clip"] == 0.5
    assert config["model.value_residual"] == "first_layer"
    for command in (["eval", "run"], ["sample", "run", "--max-new-tokens", "5"]):
        outcome = cli(*command)
        assert outcome.code == 0, outcome.err
    resumed = cli("train", "resume=run", "trainer.max_steps=14")
    assert resumed.code == 0, resumed.err
    assert json.loads(Path("run/result.json").read_text())["steps"] == 14
    assert "grad_accum_steps: 2" in file.read_text() and "accumulate: " not in file.read_text()
