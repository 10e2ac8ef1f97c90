"""Planning a sweep: its jobs, their directories, and errors before the first job."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from minigpt.config.groups import file_name
from minigpt.files import read_json
from minigpt.sweep.plan import labels
from tests.conftest import TINY, Cli
from tests.sweep.helpers import HERE, runs


def test_labels_contain_the_overrides_that_vary() -> None:
    assert labels([["a=1", "b.c=x/y"], ["a=2", "b.c=x/y"]]) == ["a=1", "a=2"]
    assert labels([["b.lr=1", "c.lr=1"], ["b.lr=2", "c.lr=2"]]) == [
        "b.lr=1_c.lr=1",
        "b.lr=2_c.lr=2",
    ]
    assert labels([["model=rope"]]) == ["model=rope"]
    assert labels([["experiment=x/a"], ["experiment=y/b"], ["experiment=x/a"]]) == ["a", "b", "a"]
    assert labels([["experiment=x/a"], ["experiment=y/a"]]) == ["x_a", "y_a"]
    assert labels([["experiment=x/a", "seed=1"], ["experiment=x/a", "seed=2"]]) == [
        "seed=1",
        "seed=2",
    ]
    assert labels([["data.path=x/a"], ["data.path=x?a"]]) == ["path=x_a", "path=x_a"]


def test_file_names_are_short_and_idempotent() -> None:
    assert len(file_name("\u4e16" * 300).encode()) <= 255
    assert file_name("a/b " * 50) == file_name(file_name("a/b " * 50))


def test_jobs_with_equal_labels_get_separate_runs(cli: Cli, workdir: Path) -> None:
    prompts = "trainer.sample_prompt='a?','a*'"
    text = (workdir / "text.txt").read_text() + "?*"
    (workdir / "text.txt").write_text(text * 2)
    outcome = cli("train", "-m", *TINY, prompts, "trainer.max_steps=1", HERE)
    assert outcome.code == 0, outcome.out
    assert set(runs()) == {"sample_prompt=a", "sample_prompt=a_2"}
    assert "2 skipped" in cli("train", "-m", *TINY, prompts, "trainer.max_steps=1", HERE).out


def test_a_changed_config_text_or_code_starts_new_runs(
    cli: Cli, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sweep(*changes: str) -> str:
        options = ["seed=1,2", "trainer.max_steps=2", HERE, *changes]
        outcome = cli("train", "-m", *TINY, *options)
        assert outcome.code == 0, outcome.err
        return outcome.out

    sweep()
    assert "2 skipped" in sweep("logger.name=none", "tags=[a]", "trainer.threads=1")
    assert "2 finished" in sweep("optimizer.lr=1e-3")
    assert set(runs()) == {"seed=1", "seed=2", "seed=1_2", "seed=2_2"}
    with (workdir / "text.txt").open("a", encoding="utf-8") as file:
        file.write("More of it.\n")
    assert "2 finished" in sweep()
    manifest = runs()["seed=1_3"] / "manifest.json"
    manifest.write_text(json.dumps(read_json(manifest) | {"code_sha256": "0"}))
    assert "1 finished, 1 skipped" in sweep() and "seed=1_4" in runs()


def test_sweep_directory_names_contain_the_swept_keys(cli: Cli) -> None:
    assert cli("train", "-m", *TINY, "trainer.max_steps=1", "norm=pre,post").code == 0
    assert cli("train", "-m", "sweep=norm", *TINY, "trainer.max_steps=1", "seed=1").code == 0
    names = sorted(path.name for path in Path("runs").iterdir())
    assert [re.sub(r"^\S{19}_|_\w{6}$", "", name) for name in names] == ["sweep_norm", "sweep_norm"]


def test_sweep_directory_depends_on_the_root_config(cli: Cli) -> None:
    first = cli("train", *TINY, "trainer.max_steps=1", "hydra.run.dir=first")
    assert first.code == 0, first.err
    for name in ("one", "two"):
        shutil.copy("first/config.yaml", f"{name}.yaml")
        again = cli("train", "-m", "--config-dir", ".", "--config-name", name, "seed=1,2")
        assert again.code == 0 and "2 finished" in again.out, again.err
    assert len([*Path("runs").iterdir()]) == 2


def test_an_invalid_job_stops_a_sweep_before_it_starts(cli: Cli, workdir: Path) -> None:
    before = sorted(workdir.rglob("*"))
    for options, message in (
        (["optimizer.lr=-1,-2"], "optimizer.lr=-1.0: must be 0 or more"),
        (["optimizer.lr=1,-2", "sweep.fail_fast=true"], "optimizer.lr=-2.0: must be 0 or more"),
        (["seed=1,2", "sweep.match=flop"], "sweep.match=flop: not one of steps"),
        (["seed=1,2", "sweep.fail_fast=perhaps"], "sweep.fail_fast=perhaps: "),
        (["trainer.max_steps=1,2", "sweep.match=flops"], "sweep.match=flops: sets trainer.max_st"),
        (["seed=1,2", "resume=latest"], "resume=latest: resumes one run; leave -m out"),
        (["seed=1,2", "hydra/launcher=slurm"], "hydra/launcher=slurm: no such hydra/launcher"),
        (["seed=1,2", "hydra/sweeper=basic"], "hydra/sweeper=basic: other sweepers cannot"),
    ):
        outcome = cli("train", "-m", *TINY, *options)
        assert outcome.code == 2 and message in outcome.err, outcome.err
        assert outcome.err.count("\n") == 1
    assert "sweep=norm: is an option of sweeps; add -m" in cli("train", *TINY, "sweep=norm").err
    assert sorted(workdir.rglob("*")) == before


@pytest.mark.parametrize("choices", ["sweep=norm,ffn", "experiment=claims/posts,claims/norm"])
def test_several_sweep_presets_are_rejected(cli: Cli, choices: str) -> None:
    refused = cli("train", "-m", choices, *TINY, "seed=1", "sweep.fail_fast=true")
    assert refused.code == 2 and "each sweep preset or experiment in its own command" in refused.err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("hydra.sweep.dir=text.txt", "hydra.sweep.dir=text.txt: is a file; name a folder"),
        ("hydra.launcher.n_jobs=0", "hydra.launcher.n_jobs=0: needs 1 or more"),
        ("hydra.launcher.at_once=0", "hydra.launcher.at_once=0: must be an integer of 1"),
        ("hydra.launcher.at_once=1.5", "hydra.launcher.at_once=1.5: must be an integer"),
        ("hydra.launcher.at_once=two", "hydra.launcher.at_once=two: must be an integer"),
        ("hydra.launcher.at_once=true", "hydra.launcher.at_once=True: must be an integer"),
        ("data.path=nowhere.txt", "nowhere.txt: no such file"),
    ],
)
def test_an_error_common_to_all_jobs_stops_a_sweep_before_it_starts(
    cli: Cli, option: str, message: str
) -> None:
    launcher = ["hydra/launcher=joblib"] if "n_jobs" in option else []
    refused = cli("train", "-m", *TINY, "seed=1,2", *launcher, option)
    assert refused.code == 2 and message in refused.err, refused.err
    assert refused.err.count("\n") == 1 and not Path("runs").exists()
