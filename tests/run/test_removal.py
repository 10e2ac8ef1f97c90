"""`minigpt rm` deletes runs and sweeps, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minigpt.run.directory import RunDirectory, find_run
from tests.conftest import TINY, Cli
from tests.report.synthetic import config, make_run, make_sweep


def tree(top: Path) -> set[Path]:
    return {*top.rglob("*")}


@pytest.fixture
def runs(workdir: Path) -> Path:
    """Return a folder `runs` with two runs and a sweep of three."""
    for name in ("one", "two"):
        make_run(workdir / "runs" / name, config(seed=1))
    sweep = make_sweep(workdir / "runs" / "sweep", {"rope": {}})
    jobs = [{"path": path.name} for path in sorted(sweep.iterdir())] + [{"path": "never"}]
    (sweep / "sweep.json").write_text(json.dumps({"jobs": jobs}))
    return Path("runs")


def test_rm_deletes_runs_and_sweeps(cli: Cli, runs: Path) -> None:
    one, sweep = runs / "one", runs / "sweep"
    (sweep / "rope_seed=2" / "result.json").unlink()
    done = cli("rm", "--yes", str(one), str(sweep / "rope_seed=1"), f"{sweep}/")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].startswith("runs/one  run, finished, ")
    assert lines[1].startswith("runs/sweep  sweep with all its runs, 3 (2 finished, 1 killed), ")
    assert lines[2].startswith("deleted ") and len(lines) == 3
    assert [*runs.iterdir()] == [runs / "two"]
    assert find_run("latest").path == runs / "two"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("runs", "runs: neither a run with a manifest.json nor the folder of"),
        (".", ".: neither a run"),
        ("..", "..: neither a run"),
        ("", ": no such run directory"),
        ("text.txt", "text.txt: no such run directory"),
        ("runs/three", "runs/three: no such run directory; `minigpt runs` lists them"),
        ("latest", "latest: may be another run by now; name the directory, such as runs/"),
        ("runs/one/checkpoints", "runs/one/checkpoints: neither a run"),
        ("link", "link: is a link to "),
    ],
)
def test_rm_refuses_what_is_no_run(cli: Cli, runs: Path, name: str, why: str) -> None:
    (runs / "one" / "checkpoints").mkdir()
    Path("link").symlink_to(runs / "two")
    before = tree(Path.cwd())
    refused = cli("rm", "--yes", "runs/one", name)
    assert refused.code == 2 and refused.err.count("\n") == 1
    assert refused.err.startswith(f"minigpt: {why}"), refused.err
    assert tree(Path.cwd()) == before


@pytest.mark.parametrize("folder", ["runs/one", "runs/sweep", "runs/sweep/rope_seed=2"])
@pytest.mark.parametrize("kind", ["file", "folder", "link", "checkpoint"])
def test_rm_refuses_files_of_others(cli: Cli, runs: Path, folder: str, kind: str) -> None:
    foreign = Path(folder) / ("checkpoints/mine" if kind == "checkpoint" else "mine")
    foreign.parent.mkdir(exist_ok=True)
    if kind == "file":
        foreign.write_text("notes")
    elif kind == "link":
        foreign.symlink_to(Path("text.txt").absolute())
    else:
        foreign.mkdir()
    before = tree(Path.cwd())
    refused = cli("rm", "--yes", "runs/two", folder)
    assert refused.code == 2 and refused.err.count("\n") == 1, refused.err
    assert "mine" in refused.err or "checkpoints" in refused.err
    assert tree(Path.cwd()) == before


@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/last", "metrics.jsonl", "wandb"])
def test_rm_refuses_links_to_outside(cli: Cli, runs: Path, name: str) -> None:
    link = runs / "one" / name
    link.unlink(missing_ok=True)
    link.parent.mkdir(exist_ok=True)
    Path("outside").mkdir()
    link.symlink_to(Path("outside").absolute())
    refused = cli("rm", "--yes", "runs/one")
    assert refused.code == 2 and f"runs/one/{name}: is a link to {Path.cwd()}" in refused.err
    assert link.is_symlink() and (runs / "one" / "config.yaml").exists()


@pytest.mark.parametrize("locked", ["runs/one", "runs/sweep/rope_seed=3", "runs/sweep"])
def test_rm_refuses_runs_in_use(cli: Cli, runs: Path, locked: str) -> None:
    with RunDirectory(Path(locked)).locked():
        refused = cli("rm", "--yes", "runs/two", "runs/one", "runs/sweep")
    assert refused.code == 2 and refused.err.startswith(f"minigpt: {locked}: a")
    assert (runs / "two").exists()
    assert cli("rm", "--yes", "runs/one", "runs/sweep").code == 0


def test_rm_without_a_terminal_needs_yes(cli: Cli, runs: Path) -> None:
    before = tree(runs)
    command = [sys.executable, "-m", "minigpt.cli", "rm", "runs/one"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 2 and tree(runs) == before
    assert done.stdout.startswith("runs/one  run, finished, ")
    assert done.stderr == (
        "minigpt: --yes: needed where no terminal can ask; nothing was deleted\n"
    )


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo terminals")
@pytest.mark.parametrize(("answer", "gone"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_rm_asks_in_a_terminal(runs: Path, answer: str, gone: bool) -> None:
    import pty

    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "minigpt.cli", "rm", "runs/one"]
    with subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, text=True) as process:
        os.write(ours, answer.encode())
        said, _ = process.communicate(timeout=60)
    for end in (ours, theirs):
        os.close(end)
    assert process.returncode == 0 and "[y/n] (n)" in said
    assert (runs / "one").exists() is not gone and (("nothing deleted" in said) is not gone)


def test_a_killed_rm_leaves_nothing_that_is_found(cli: Cli, runs: Path) -> None:
    big = runs / "one" / "eval"
    big.mkdir()
    for number in range(30000):
        os.close(os.open(big / f"{number}", os.O_CREAT))
    command = [sys.executable, "-m", "minigpt.cli", "rm", "--yes", "runs/one"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while (runs / "one").exists():
            assert process.poll() is None
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    rest = runs / ".one.deleted"
    assert rest.is_dir(), "deleted before it was killed: use more files"
    shutil.copytree(
        runs / "two", rest, dirs_exist_ok=True
    )  # nothing is found, however much is left
    assert find_run("latest").path != rest
    assert ".one" not in cli("runs").out and ".one" not in cli("report", "runs").out
    again = cli("rm", "--yes", "runs/one")
    assert again.code == 0 and "rest of a run that was removed before" in again.out
    assert not rest.exists()


@pytest.mark.medium
def test_rm_knows_every_file_that_minigpt_writes(cli: Cli) -> None:
    tiny = [*(option for option in TINY if option != "logger=none"), "trainer.max_steps=4"]
    for logger in (["logger=wandb", "logger.mode=offline"], ["logger=tensorboard"]):
        assert cli("train", *tiny, *logger, f"hydra.run.dir=runs/{logger[0]}").code == 0
        assert cli("eval", "latest", "--lengths", "4,8", "--by-position").code == 0
        assert cli("inspect", "latest").code == 0 and cli("report", "latest").code == 0
    sweep = cli("train", "-m", *tiny, "logger=none", "seed=1,2", "hydra.sweep.dir=runs/sweep")
    assert sweep.code == 0 and cli("report", "runs/sweep").code == 0
    failed = cli("train", "-m", *tiny, "model.n_head=7,2", "logger=none", "hydra.sweep.dir=runs/f")
    assert failed.code == 1
    done = cli("rm", "--yes", *map(str, Path("runs").iterdir()))
    assert done.code == 0, done.err
    assert not [*Path("runs").iterdir()]
