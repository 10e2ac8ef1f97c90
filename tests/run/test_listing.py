"""`minigpt runs` and `minigpt rm`, and which run is `latest`."""

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

from minigpt.report.listing import size_text
from minigpt.run.directory import RunDirectory, find_run
from minigpt.run.remove import REMOVED
from tests.conftest import TINY, Cli

STEPS = "trainer.max_steps=2"


@pytest.fixture
def runs(cli: Cli) -> dict[str, Path]:
    """Train a sweep of four runs and a single one; return their paths by a short name."""
    assert cli("train", "-m", *TINY, STEPS, "model=rope,alibi", "seed=1,2").code == 0
    assert cli("train", *TINY, STEPS, "optimizer.lr=0.1", "hydra.run.dir=runs/single").code == 0
    (sweep,) = Path("runs").glob("*sweep*")
    return {"sweep": sweep, "rope": sweep / "model=rope_seed=1", "single": Path("runs/single")}


def rows(cli: Cli, *arguments: str) -> list[dict[str, object]]:
    """Return what `minigpt runs --json` prints."""
    outcome = cli("runs", "--json", *arguments)
    assert outcome.code == 0 and outcome.err == ""
    return [json.loads(line) for line in outcome.out.splitlines()]


# ---- runs ----


def test_runs_lists_the_newest_first(cli: Cli, runs: dict[str, Path]) -> None:
    listed = rows(cli)
    assert [row["started"] for row in listed] == sorted(
        (str(row["started"]) for row in listed), reverse=True
    )
    assert len(listed) == 5 and {row["status"] for row in listed} == {"finished"}
    (single,) = (row for row in listed if row["run"] == "runs/single")
    result = json.loads((runs["single"] / "result.json").read_text())
    assert (single["step"], single["max_steps"], single["seed"]) == (2, 2, 1)
    assert single["val_loss"] == result["val_loss"] and "optimizer.lr=0.1" in str(single["design"])
    files = sum(path.stat().st_size for path in runs["single"].rglob("*") if path.is_file())
    assert single["bytes"] == files
    text = cli("runs").out
    assert text.startswith("5 of 5 runs, ") and f"{result['val_loss']:.4f}" in text
    assert all(str(row["run"]) in text for row in listed)  # names are never folded


def test_runs_filters_by_design_and_status(cli: Cli, runs: dict[str, Path]) -> None:
    assert len(rows(cli, "--design", "rope")) == 3
    assert len(rows(cli, "--design", "positional=alibi")) == 2
    assert len(rows(cli, "--design", "rope", "--design", "optimizer.lr=0.1")) == 1
    assert rows(cli, "--status", "failed") == []
    (runs["rope"] / "result.json").unlink()
    assert [row["run"] for row in rows(cli, "--status", "killed")] == [str(runs["rope"])]
    assert cli("runs", "--status", "killed").out.startswith("1 of 5 runs")
    with RunDirectory(runs["rope"]).locked():
        assert [row["run"] for row in rows(cli, "--status", "running")] == [str(runs["rope"])]
    for arguments, message in [
        (("--design", "alibbi"), "--design=alibbi: no run has it. Did you mean alibi?"),
        (("--design", "optimizer.lr=7"), "--design=optimizer.lr=7: no run has it."),
        (("--status", "finishd"), "Did you mean finished?"),
        (("nowhere",), "DIR=nowhere: no such folder."),
    ]:
        outcome = cli("runs", *arguments)
        assert outcome.code == 2 and message in outcome.err and outcome.err.count("\n") == 1


def test_runs_in_an_empty_folder(cli: Cli) -> None:
    assert cli("runs").out == "no runs below runs/ yet; start one with `minigpt train`\n"
    assert rows(cli) == []


def test_runs_shows_unfinished_and_damaged_runs(cli: Cli, tiny_run: Path) -> None:
    shutil.copytree(tiny_run, "runs/broken")
    Path("runs/broken/result.json").write_text("{")
    shutil.copytree(tiny_run, "runs/no config")
    Path("runs/no config/config.yaml").write_text("a: [")
    outcome = cli("runs")
    assert outcome.code == 0 and "runs/no config" in outcome.out
    assert outcome.out.count("warning: ") == 2


def test_runs_starts_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from minigpt.cli import main; assert main(['runs']) == 0\n"
        "import minigpt.report.listing; assert not {'torch', 'hydra'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True)


def test_sizes_are_short() -> None:
    sizes = (0, 999, 1000, 123_456, 1_234_567, 5_000_000_000_000)
    assert [*map(size_text, sizes)] == ["0 B", "999 B", "1.0 kB", "123 kB", "1.2 MB", "5000 GB"]


# ---- latest ----


def test_latest_is_a_run_that_began(cli: Cli, tiny_run: Path) -> None:
    Path("runs").mkdir()
    tiny_run.rename("runs/good")
    dead = Path("runs/dead")
    shutil.copytree("runs/good", dead)
    for name in ("metrics.jsonl", "samples.txt", "checkpoints"):
        path = dead / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (dead / "result.json").write_text(json.dumps({"status": "failed", "error": "W&B is down"}))
    later = time.time() + 10
    os.utime(dead / "manifest.json", (later, later))
    assert find_run("latest").path == Path("runs/good")
    (dead / "result.json").unlink()  # killed before its first step: can be resumed
    assert find_run("latest").path == dead
    (dead / "config.yaml").unlink()  # killed before it could be resumed
    assert find_run("latest").path == Path("runs/good")
    shutil.rmtree("runs/good")
    assert "no run under runs/ yet" in cli("sample", "latest").err


def test_a_listing_does_not_disturb_a_run_that_starts(tmp_path: Path) -> None:
    """A probe holds the lock for an instant, for which a starting run waits."""
    run = RunDirectory(tmp_path / "run")
    code = (
        "import sys; from pathlib import Path; from minigpt.run.directory import RunDirectory\n"
        f"run = RunDirectory(Path({str(run.path)!r}))\n"
        "print('ready', flush=True)\n"
        "while True: run.is_training"
    )
    with run.locked():
        pass
    probe = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert probe.stdout is not None and probe.stdout.readline() == "ready\n"
    try:
        for _ in range(200):
            with run.locked():
                pass
    finally:
        probe.kill()
        probe.wait()


# ---- rm ----


def test_rm_deletes_runs_and_whole_sweeps(cli: Cli, runs: dict[str, Path]) -> None:
    outcome = cli("rm", str(runs["rope"]), "--yes")
    assert outcome.code == 0 and str(runs["rope"]) in outcome.out
    assert not runs["rope"].exists() and len(rows(cli)) == 4
    outcome = cli("rm", str(runs["sweep"]), f"{runs['sweep']}/model=rope_seed=2", "--yes")
    assert "(3 runs, " in outcome.out and outcome.out.endswith("deleted 1 folder\n")
    assert [path.name for path in Path("runs").iterdir()] == ["single"]
    assert cli("rm", "latest", "--yes").code == 0
    assert [*Path("runs").iterdir()] == []


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("yes", 0), ("", 2), ("n", 2)])
def test_rm_asks_in_a_terminal(answer: str, code: int, tiny_run: Path) -> None:
    pty = pytest.importorskip("pty")
    main, other = pty.openpty()
    command = [sys.executable, "-m", "minigpt.cli", "rm", "run"]
    done = subprocess.Popen(command, stdin=other, stdout=subprocess.PIPE, text=True)
    os.write(main, f"{answer}\n".encode())
    text, _ = done.communicate(timeout=60)
    assert done.returncode == code and "delete? [y/N]" in text
    assert tiny_run.exists() == (code == 2)


def test_rm_refuses_what_is_not_a_run(cli: Cli, tiny_run: Path) -> None:
    before = sorted(Path().rglob("*"))
    Path("link").symlink_to("run")
    Path("project").mkdir()
    Path("project/config.yaml").write_text("model: mine\n")
    for arguments, message in [
        (("run",), "add --yes"),  # no terminal
        (("link", "--yes"), "is a link to"),
        ((".", "--yes"), "contains the working directory"),
        (("..", "--yes"), "contains the working directory"),
        (("project", "--yes"), "not a run, a sweep or a search"),
        (("text.txt", "--yes"), "not a run, a sweep or a search"),
        (("nowhere", "--yes"), "no such run"),
        (("", "--yes"), "the run's name is empty"),
        (("run", "nowhere", "--yes"), "no such run"),
        (("latest", "--yes"), "no run under runs/"),
        (("~nosuchuser/x", "--yes"), "no such user"),
    ]:
        outcome = cli("rm", *arguments)
        assert outcome.code == 2 and message in outcome.err, (arguments, outcome)
        assert outcome.err.count("\n") == 1
    with RunDirectory(tiny_run).locked():
        assert "is training this run" in cli("rm", "run", "--yes").err
    assert {*before} <= {*Path().rglob("*")}


def test_rm_of_a_sweep_keeps_what_is_not_a_run(cli: Cli, runs: dict[str, Path]) -> None:
    notes = runs["sweep"] / "notes"
    notes.mkdir()
    (notes / "text.md").write_text("mine")
    outcome = cli("rm", str(runs["sweep"]), "--yes")
    assert outcome.code == 2 and "notes is in it and is not a run" in outcome.err
    assert (notes / "text.md").exists() and runs["rope"].exists()


@pytest.mark.slow
def test_a_killed_rm_leaves_nothing_that_a_command_finds(cli: Cli, tiny_run: Path) -> None:
    """SIGKILL after a random time: each run is whole, or gone for every command."""
    names = [f"runs/{index:03}" for index in range(40)]
    for name in names:
        shutil.copytree(tiny_run, name)
    files = {path.relative_to(tiny_run) for path in tiny_run.rglob("*")}
    command = [sys.executable, "-m", "minigpt.cli", "rm", "--yes", *names]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    while Path(names[1]).exists():
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = rows(cli, "runs")
    assert 0 < len(left) < len(names)
    for row in left:
        run = Path(str(row["run"]))
        assert {path.relative_to(run) for path in run.rglob("*")} == files
    assert cli("rm", "--yes", str(left[0]["run"])).code == 0
    assert not [*Path("runs").glob(f"{REMOVED}*")]
