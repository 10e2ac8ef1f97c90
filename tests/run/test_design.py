"""The name of a design, and what a run is part of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minigpt.config.compose import composed_config
from minigpt.config.pairs import flat
from minigpt.config.saved import read_config
from minigpt.report.designs import group
from minigpt.report.runs import read_run
from minigpt.run.design import design_name, with_text
from minigpt.run.directory import RunDirectory
from minigpt.train.session import job_type
from tests.conftest import TINY, Cli, inspect_wandb

TEXT = "a" * 64


@pytest.fixture(scope="module")
def default() -> dict[str, Any]:
    """Return the default config by full key."""
    return flat(composed_config([]).to_dict())


def test_a_design_is_named_by_its_main_choices(default: dict[str, Any]) -> None:
    name = design_name(with_text(default | {"optimizer.lr": 0.002}, TEXT))
    assert name.startswith("rope/full 4x128 lr=0.002 steps=2000 #")
    assert name == design_name(with_text(default | {"optimizer.lr": 0.002}, TEXT))
    other = design_name(with_text(default | {"model.positional.name": "alibi"}, TEXT))
    assert other.startswith("rope/alibi/full 4x128 ")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 7),
        ("name", "mine"),
        ("group", "g"),
        ("tags", ["a"]),
        ("data.dir", "/elsewhere"),
        ("logger.mode", "offline"),
        ("trainer.threads", 3),
    ],
)
def test_seed_names_tracker_and_paths_are_not_part_of_it(
    key: str, value: Any, default: dict[str, Any]
) -> None:
    assert default[key] != value
    assert design_name(with_text(default | {key: value}, TEXT)) == design_name(
        with_text(default, TEXT)
    )


def test_every_other_option_is(default: dict[str, Any]) -> None:
    ours = {"seed", "name", "group", "tags", "data.dir", "trainer.threads", "model.name"}
    others = [key for key in default if key not in ours and not key.startswith("logger.")]
    assert len(others) > 50
    changed = [default | {key: 3 if key.endswith("lr") else f"{default[key]}'"} for key in others]
    names = {design_name(with_text(values, TEXT)) for values in [default, *changed]}
    texts = {design_name(with_text(default, digest)) for digest in (TEXT, "b" * 64)}
    assert len(names) == len(others) + 1 and len(texts) == 2


@pytest.fixture
def tracked(cli: Cli) -> list[Path]:
    """Train two designs with two seeds each, tracked by W&B."""
    tiny = [value for value in TINY if value != "logger=none"]
    few = ("trainer.max_steps=2", "trainer.sample_every=null", "hydra.sweep.dir=sweep")
    done = cli("train", "-m", *tiny, *few, "seed=1,2", "optimizer.lr=0.001,0.002")
    assert done.code == 0, done.err
    return sorted(path.parent for path in Path("sweep").glob("*/manifest.json"))


@pytest.mark.medium
def test_wandb_groups_runs_by_the_designs_of_the_report(tracked: list[Path]) -> None:
    by_design: dict[str, set[int]] = {}
    for path in tracked:
        (file,) = path.glob("wandb/offline-run-*/run-*.wandb")
        records = [json.loads(line) for line in inspect_wandb(file).splitlines()]
        (run,) = (record["run"] for record in records if record["type"] == "run")
        config = run["config"]["update"]
        assert run["job_type"] == "sweep"
        requested = flat(read_config(path / "config.yaml").to_dict())
        sha256 = RunDirectory(path).data_sha256
        assert config["design"] == design_name(with_text(requested, sha256))
        by_design.setdefault(config["design"], set()).add(config["seed"])
    designs = group([read_run(path) for path in tracked], [])
    assert [*by_design.values()] == [{1, 2}] * 2 == [{*design.by_seed} for design in designs]


@pytest.mark.parametrize(
    ("files", "run", "expected"),
    [
        ([], "runs/a", "train"),
        (["sweep/sweep.json"], "sweep/a", "sweep"),
        (["folder/tune.json"], "folder/a", "search"),
        (["c/compare.json", "c/search/sweep.json"], "c/search/a", "search"),
        (["c/compare.json", "c/final/sweep.json"], "c/final/a", "compare"),
        (["c/compare.json"], "c/a", "train"),
    ],
)
def test_the_job_type_follows_from_the_folders(
    files: list[str], run: str, expected: str, tmp_path: Path
) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("{}")
    config = composed_config([])
    assert job_type(RunDirectory(tmp_path / run), config) == expected
    config.init = "/a/base"
    finetuned = "finetune" if expected == "train" else expected
    assert job_type(RunDirectory(tmp_path / run), config) == finetuned
