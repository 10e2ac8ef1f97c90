"""Behaviour of Hydra that minigpt relies on; an upgrade of Hydra must not change it."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from minigpt.config.compose import to_config
from minigpt.config.groups import config_directory
from minigpt.config.hydra_main import Multirun, flags_first, hydra_main, needs_hydra_main
from minigpt.config.overrides import Composed, combinations, compose_overrides
from minigpt.errors import UserError
from minigpt.sweep import run as sweep_run
from minigpt.sweep.directory import sweep_directory
from minigpt.train.trainer import Trainer
from tests.conftest import TINY, Cli

PACKAGE = config_directory().parent


def composed_by_hydra_main(*arguments: str) -> Composed:
    """Return the config that hydra_main composes."""
    received: list[Composed] = []
    hydra_main(["--config-name=train", *arguments], received.append, sweep_directory)
    (composed,) = received
    return composed


def capture_multirun(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Multirun:
    """Return the Multirun that the sweeper passes to minigpt.sweep."""
    received: list[Multirun] = []
    monkeypatch.setattr(sweep_run, "run_sweep", received.append)
    monkeypatch.setattr("sys.argv", ["minigpt"])
    hydra_main(["-m", *arguments], lambda composed: None, sweep_directory)
    (multirun,) = received
    return multirun


def test_flags_are_moved_before_overrides() -> None:
    expected = ["-m", "--config-dir", "x", "model=rope", "seed=1,2"]
    assert flags_first(["model=rope", "-m", "--config-dir", "x", "seed=1,2"]) == expected
    assert flags_first(["-m", "model=rope", "seed=1,2", "--config-dir", "x"]) == expected
    assert flags_first(["model=rope", "--cfg"]) == ["--cfg", "model=rope"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], False),
        (["model=rope", "hydra.run.dir=run", "resume=latest"], False),
        (["model=rope", "-m"], True),
        (["--help"], True),
        (["hydra.job.chdir=true"], True),
        (["+hydra.verbose=true"], True),
        (["hydra/launcher=joblib"], True),
    ],
)
def test_hydra_main_is_needed_for_flags_and_hydra_options(
    arguments: list[str], expected: bool
) -> None:
    assert needs_hydra_main(arguments) is expected


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["model=alibi", "norm=post", "seed=3"],
        ["experiment=nanogpt_cpu", "trainer.max_steps=5", "+trainer.patience=2"],
        ["name=it's", "trainer.sample_prompt=a b", "data=text", "data.path=text [1].txt"],
        ["resume=somewhere", "trainer.max_steps=9"],
        ["experiment=claims/norm"],
    ],
    ids=lambda overrides: overrides[0] if overrides else "default",
)
def test_compose_equals_hydra_main(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["minigpt"])
    composed, by_main = compose_overrides(overrides), composed_by_hydra_main(*overrides)
    assert OmegaConf.to_yaml(composed.values) == OmegaConf.to_yaml(by_main.values)
    assert composed.overrides == by_main.overrides
    assert (composed.resume, composed.swept) == (by_main.resume, by_main.swept)
    assert to_config(composed) == to_config(by_main)
    label = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_(.*)_[0-9a-f]{4}")
    names = [label.fullmatch(one.directory.name) for one in (composed, by_main)]
    assert names[0] is not None and names[1] is not None and names[0][1] == names[1][1]
    assert composed.directory.parent == by_main.directory.parent == Path("runs")


@pytest.mark.parametrize(
    "mistake",
    ["modle=rope", "model=ropee", "model.n_head=7", "seed=1,2", "name='${nope}'", "sweep.match=x"],
)
def test_error_messages_equal_those_of_hydra_main(cli: Cli, workdir: Path, mistake: str) -> None:
    before = sorted(workdir.rglob("*"))
    plain = cli("train", "logger=none", mistake)
    by_main = cli("train", "--config-name=train", "logger=none", mistake)
    assert plain.code == by_main.code == 2
    assert plain.err.replace("logger=none ", "") == by_main.err.replace("logger=none ", "")
    assert sorted(workdir.rglob("*")) == before


def test_call_stack_of_a_single_run(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    train = Trainer.train

    def record_and_train(self: Trainer) -> None:
        frames = traceback.extract_stack()
        calls.extend(f.name for f in frames if Path(f.filename).is_relative_to(PACKAGE / "minigpt"))
        train(self)

    monkeypatch.setattr(Trainer, "train", record_and_train)
    assert cli("train", *TINY).code == 0
    assert calls == ["main", "run_command", "main", "train", "start_run", "train_run"]


def test_sweeps_expand_to_the_product_of_lists() -> None:
    overrides = ["model=rope,alibi", "seed=range(1,3)", "optimizer.lr=choice(1e-3,0.1)", "name=x"]
    jobs = combinations(overrides)
    assert len(jobs) == 8
    assert jobs[0] == ["model=rope", "seed=1", "optimizer.lr=0.001", "name=x"]
    assert jobs[1] == ["model=rope", "seed=1", "optimizer.lr=0.1", "name=x"]
    assert jobs[-1] == ["model=alibi", "seed=2", "optimizer.lr=0.1", "name=x"]
    lists = combinations(["model.attention.layers=[full],[full,chunked]", "data.path='a b','c,d'"])
    assert lists[1] == ["model.attention.layers=[full]", "data.path='c,d'"]
    assert combinations(["seed=1,2", "seed=3"]) == [["seed=3"]]
    assert combinations([]) == [[]]
    with pytest.raises(UserError, match="a sweep takes lists, not intervals"):
        combinations(["optimizer.lr=interval(1,2)"])


def test_sweeps_expand_globs_and_experiments(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = capture_multirun(monkeypatch, "norm=glob(p*)", "seed=1,2").jobs
    assert {job[0] for job in jobs} == {"norm=peri", "norm=post", "norm=pre"}
    assert len(jobs) == 6
    jobs = capture_multirun(monkeypatch, "experiment=glob(claims/heads_*)").jobs
    assert jobs == [[f"experiment=claims/heads_{n}"] for n in (1, 2, 4)]
    preset_jobs = capture_multirun(monkeypatch, "sweep=norm", "seed=7").jobs
    assert {tuple(job) for job in preset_jobs} == {
        (f"norm={name}", "seed=7", "sweep=norm")
        for name in ("no_residual", "output", "peri", "post", "pre", "sandwich")
    }


def test_a_glob_without_a_match_is_an_error(cli: Cli, workdir: Path) -> None:
    for override in ("norm=glob(x*)", "experiment=glob(claim/*)"):
        refused = cli("train", "-m", override, "seed=1,2")
        key = override.partition("=")[0]
        assert refused.code == 2 and f"{override}: no choice of {key} matches" in refused.err
        assert refused.err.count("\n") == 1
    with pytest.raises(UserError, match="takes lists, not globs"):
        combinations(["norm=glob(p*)"])


@pytest.mark.parametrize(
    ("options", "launcher", "settings"),
    [
        ([], "ProcessesLauncher", {"at_once": None}),
        (["hydra/launcher=replicas"], "ReplicasLauncher", {"at_once": 8}),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=3"], "JoblibLauncher", {"n_jobs": 3}),
    ],
)
def test_multirun_contains_the_launcher_and_its_settings(
    workdir: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    launcher: str,
    settings: dict[str, Any],
) -> None:
    multirun = capture_multirun(monkeypatch, "seed=1,2", "hydra.sweep.dir=sweep", *options)
    assert multirun.launcher == launcher
    assert settings.items() <= multirun.settings.items()
    assert multirun.directory == "sweep"
    second = multirun.compose(multirun.jobs[1])
    assert to_config(second).seed == 2 and second.overrides[0] == "seed=2"


def test_default_sweep_directory(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = capture_multirun(monkeypatch, "seed=1,2").directory
    assert re.fullmatch(r"runs/\S+_sweep_seed_[0-9a-f]{6}", directory)


def test_private_modules_of_hydra_are_imported_in_one_file() -> None:
    files = [*PACKAGE.glob("minigpt/**/*.py"), *PACKAGE.glob("hydra_plugins/*.py")]
    private = [file.name for file in files if "hydra._internal" in file.read_text()]
    assert private == ["hydra_main.py"]
    users = {
        file.parent.name
        for file in files
        if re.search(r"^\s*(import|from) (hydra|omegaconf)\b", file.read_text(), re.MULTILINE)
    }
    assert users == {"config", "hydra_plugins"}


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--config-dir=."]], ids=["compose", "hydra"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_before_the_run_begins_leaves_no_folder(
    workdir: Path, flags: list[str], number: int
) -> None:
    Path("dna.txt").write_text("".join(random.Random(0).choices("ACGT", k=10_000_000)))
    options = ["data=text", "data.path=dna.txt", "tokenizer=bpe", "logger=none"]
    code = (
        "import sys; from minigpt import console, cli; console.SILENCE_SECONDS = 0.5; "
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "train", *flags, *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("minigpt: learning 1,024 tokens of tokenizer=bpe")
    process.send_signal(number)
    _, rest = process.communicate(timeout=20)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert "Traceback" not in rest and not Path("runs").exists()
