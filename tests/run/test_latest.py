"""`latest` is the newest run that has begun."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minigpt.errors import UserError
from minigpt.run.directory import RunDirectory, find_folder, find_run
from tests.conftest import TINY, Cli


def without_steps(run: Path) -> Path:
    """Make a run look as if it was killed before its first step."""
    for name in ("metrics.jsonl", "samples.txt", "result.json"):
        (run / name).unlink()
    shutil.rmtree(run / "checkpoints")
    (run / "manifest.json").touch()  # it is the newest
    return run


def test_latest_is_a_run_that_has_begun(
    cli: Cli, tiny_run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("runs").mkdir()
    good = shutil.copytree(tiny_run, Path("runs/good"))
    dead = without_steps(shutil.copytree(tiny_run, Path("runs/dead")))
    assert find_run("latest").path == find_folder("latest") == good
    said = "minigpt: latest is runs/good; the newest, runs/dead, has logged no step\n"
    assert capfd.readouterr().err == said * 2
    assert RunDirectory(dead).unrecorded_status == "not started"
    for command in (["sample", "latest"], ["eval", "latest"], ["report", "latest"]):
        assert cli(*command).code == 0
    shutil.rmtree(good)
    with pytest.raises(
        UserError, match=r"^latest: no run under runs/ has logged a step; start one"
    ):
        find_run("latest")


@pytest.mark.parametrize("what", ["metrics.jsonl", "checkpoints", "running"])
def test_a_step_a_checkpoint_or_a_process_is_a_beginning(tiny_run: Path, what: str) -> None:
    for name in ("good", "new"):
        shutil.copytree(tiny_run, f"runs/{name}")
    new = RunDirectory(Path("runs/new"))
    kept = Path("runs/good") / what
    without_steps(new.path)
    if what == "running":
        with new.locked():
            assert find_run("latest").path == new.path and new.unrecorded_status == "running"
        assert find_run("latest").path == Path("runs/good")
        return
    (shutil.copytree if kept.is_dir() else shutil.copy)(kept, new.path / what)
    assert find_run("latest").path == new.path and new.unrecorded_status == "killed"
    new.config.unlink()  # the last file of a new run: without it, it cannot be resumed
    assert find_run("latest").path == Path("runs/good")


@pytest.mark.medium
def test_latest_skips_a_run_killed_before_its_first_step(cli: Cli, tiny_run: Path) -> None:
    shutil.copytree(tiny_run, "runs/good")
    options = [
        *TINY,
        "trainer.max_steps=1000000",
        "trainer.log_every=900000",
        "hydra.run.dir=runs/x",
    ]
    options += ["trainer.eval_every=900000", "trainer.checkpoint_every=900000"]
    command = [sys.executable, "-m", "minigpt.cli", "train", *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while not Path("runs/x/config.yaml").exists():
            assert process.poll() is None
            time.sleep(0.05)
        assert find_run("latest").path == Path("runs/x")  # it is running
        refused = cli("rm", "--yes", "runs/x")
        assert refused.code == 2 and refused.err.count("\n") == 1
        assert "runs/x: another process is training this run" in refused.err
        process.send_signal(signal.SIGKILL)
    assert find_run("latest").path == Path("runs/good")
    assert cli("rm", "--yes", "runs/x").code == 0 and not Path("runs/x").exists()
