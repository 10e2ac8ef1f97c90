"""`minigpt runs` lists runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from minigpt.report.listing import list_runs
from minigpt.run.directory import RunDirectory
from tests.conftest import Cli
from tests.report.synthetic import config, make_run


@pytest.fixture
def runs(workdir: Path) -> Path:
    """Write five runs, oldest first: two of rope, two of learned with other widths, a dead one."""
    folder = workdir / "runs"
    make_run(folder / "a", config("rope", seed=1), loss=1.25)
    make_run(folder / "sweep" / "b", config("rope", seed=2), status="failed")
    make_run(folder / "c", config("learned", model__name="learned", seed=1), status=None)
    make_run(
        folder / "d",
        config("learned", model__name="learned", seed=3, model__n_layer=7),
        status="interrupted",
    )
    dead = make_run(folder / "e", config("learned", model__name="learned", seed=4), status=None)
    (dead / "metrics.jsonl").unlink()
    for age, name in enumerate(["e", "d", "c", "sweep/b", "a"]):
        os.utime(folder / name / "manifest.json", (10**9 - age, 10**9 - age))
    return Path("runs")


def names(*arguments: str, cli: Cli) -> list[str]:
    done = cli("runs", "--json", *arguments)
    assert done.code == 0, done.err
    return [row["name"].removeprefix("runs/") for row in json.loads(done.out)]


def test_runs_are_listed_newest_first(cli: Cli, runs: Path) -> None:
    done = cli("runs")
    assert done.code == 0, done.err
    head, *rows, summary = done.out.splitlines()
    assert " ".join(head.split()) == "name design seed status steps val loss when size"
    assert [row.split()[0].removeprefix("runs/") for row in rows] == ["e", "d", "c", "sweep/b", "a"]
    assert summary == "5 of 5 runs"
    assert "not started" in rows[0] and "interrupted  40 of 40" in rows[1]
    assert "killed" in rows[2] and "failed" in rows[3] and "finished" in rows[4]
    with RunDirectory(runs / "c").locked():
        assert names("--status", "running", cli=cli) == ["c"]
    (row,) = json.loads(cli("runs", "--json", "runs/a").out)
    size = sum(file.stat().st_size for file in Path("runs/a").rglob("*"))
    assert row == {
        **{"name": "runs/a", "design": "rope", "seed": 1, "status": "finished", "steps": 40},
        **{"max_steps": 40, "val_loss": 1.25, "when": "2026-11-25T10:01:00+00:00", "bytes": size},
        "problems": [],
    }
    (row,) = json.loads(cli("runs", "--json", "runs/c").out)  # its last logged step and loss
    assert row["steps"] == 40 and row["val_loss"] == 2.0


def test_filters_of_runs(cli: Cli, runs: Path) -> None:
    assert names("--status", "killed", "--status", "not-started", cli=cli) == ["e", "c"]
    assert names("--design", "rope", cli=cli) == ["sweep/b", "a"]
    assert names("--design", "positional=rope", "--status", "failed", cli=cli) == ["sweep/b"]
    assert names("--design", "learned n_layer=7", cli=cli) == ["d"]
    assert names("--design", "n_layer=7", "--design", "rope", cli=cli) == [
        "d",
        "sweep/b",
        "a",
    ]
    spellings = ("optimizer.lr=0.004", "optimizer.lr=4e-3", "optimizer.lr=.0040")
    assert len({tuple(names("--design", spelling, cli=cli)) for spelling in spellings}) == 1
    assert names("--design", "optimizer.lr=0.004", "runs/a", "runs/sweep", cli=cli) == [
        "sweep/b",
        "a",
    ]
    assert names("--limit", "2", cli=cli) == ["e", "d"]
    assert cli("runs", "--limit", "2").out.endswith("2 of 5 runs; --limit 0 shows 3 more\n")
    assert cli("runs", "--status", "paused").out == "0 of 5 runs\n"
    for arguments, why in (
        (["--design", "rop"], "--design=rop: no run has it. Did you mean rope?"),
        (["--status", "done"], "argument --status: invalid choice: 'done'"),
        (["--limit", "-1"], "--limit=-1: must be 0 or more"),
        (["nowhere"], "DIR=nowhere: no such folder."),
    ):
        refused = cli("runs", *arguments)
        assert refused.code == 2 and why in refused.err and refused.err.count("\n") == 1


def test_no_runs_and_broken_runs(cli: Cli, workdir: Path) -> None:
    assert cli("runs").out.startswith("no runs; ") and json.loads(cli("runs", "--json").out) == []
    run = make_run(workdir / "runs" / "a", config("rope"))
    (run / "config.yaml").write_text("a: [b\n")
    (run / "manifest.json").write_text("{")
    done = cli("runs")
    assert done.code == 0 and done.out.count("warning: runs/a/") == 2 and "1 of 1 runs" in done.out


def test_a_link_to_the_folder_above_lists_each_run_once(cli: Cli, runs: Path) -> None:
    (runs / "loop").symlink_to(Path.cwd(), target_is_directory=True)
    assert len(names(cli=cli)) == 5


def test_many_runs_are_listed_without_torch_and_without_all_configs(workdir: Path) -> None:
    for number in range(300):
        make_run(workdir / "runs" / f"{number:04}", config("rope", seed=number % 60))
        (workdir / "runs" / f"{number:04}" / "config.yaml").chmod(0o644)
    code = (
        "import sys, yaml; from minigpt.cli import main; calls = []; load = yaml.load\n"
        "yaml.load = lambda *a, **k: calls.append(1) or load(*a, **k)\n"
        "assert main(['runs', '--limit', '7']) == 0 and len(calls) == 7, calls\n"
        "assert not {'torch', 'hydra', 'wandb', 'scipy'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(list_runs([Path("runs")], [], [], 0).rows) == 300
