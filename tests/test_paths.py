"""Names that are not UTF-8, and ~ in paths: they work, or are refused with one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import TINY, Cli

NOBODY = "~nosuchuser/x"
LATIN = os.fsdecode(b"caf\xe9")  # Python's form of a name that is not UTF-8

COMMANDS = [
    "train data=text data.path={}",
    "train data=shards data.path={}",
    "train data.dir={}",
    "train hydra.run.dir={}",
    "train -m seed=1,2 hydra.sweep.dir={}",
    "train resume={}",
    "data --shards {} data=text data.path=text.txt",
    "data data=text data.path={}",
    "sample {}",
    "sample run --prompts {}",
    "sample run --draft {}",
    "eval {}",
    "inspect {}",
    "inspect run --out {}",
    "report {}",
    "report run --out {}",
    "tune optimizer.lr=1e-3,1e-4 --dir {}",
    "bench train --json {}",
]


@pytest.mark.medium
@pytest.mark.parametrize("name", [NOBODY, LATIN], ids=["nobody", "latin"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_path_that_cannot_be_used_is_one_line(
    cli: Cli, tiny_run: Path, command: str, name: str
) -> None:
    before = {*Path().iterdir()}
    refused = cli(*command.format(name).split())
    assert refused.code == 2, refused.err
    assert refused.err.count("\n") == 1 and refused.err.startswith("minigpt")
    why = "there is no such user here" if name == NOBODY else "a name that is not UTF-8; rename it"
    assert why in refused.err
    assert {*Path().iterdir()} == before


def test_home_is_expanded(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    done = cli("train", *TINY, "trainer.max_steps=1", "hydra.run.dir=~/run")
    assert done.code == 0 and (home / "run" / "result.json").exists(), done.err
    for options in (
        ["hydra.sweep.dir=~/sweep"],
        ["hydra.sweep.dir=~/sweep", "hydra/launcher=basic"],
    ):
        done = cli("train", "-m", *TINY, "trainer.max_steps=1", *options)
        assert done.code == 0 and (home / "sweep" / "sweep.json").exists(), done.err
    assert not Path("~").exists()


def test_files_of_a_folder_may_have_any_names(cli: Cli) -> None:
    folder = Path("books")
    folder.mkdir()
    (folder / LATIN).write_text("a text\n" * 30)
    (folder / f"{LATIN}.png").write_bytes(b"\x89PNG\0")
    done = cli("train", *TINY, "data.path=books", "trainer.max_steps=1", "hydra.run.dir=run")
    line = r"left out: 1 not UTF-8 text (books/caf\xe9.png)"
    assert done.code == 0 and line in done.out, done.err
    assert json.loads(Path("run/manifest.json").read_text())["left_out"] == line


@pytest.mark.medium
def test_values_and_working_directories_that_are_not_utf8(workdir: Path) -> None:
    """In programs of their own: this one's working directory has to stay a valid one."""
    here = workdir / LATIN
    here.mkdir()
    (here / "text.txt").write_text("a text\n" * 30)
    for folder, options, message in (
        (workdir, [f"name={LATIN}"], r"name=caf\udce9: not UTF-8"),
        (workdir, [f"group={LATIN}"], r"group=caf\udce9: not UTF-8"),
        (here, [], "a name that is not UTF-8; rename it"),
    ):
        command = [sys.executable, "-m", "minigpt.cli", "train", *TINY, *options]
        refused = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
        assert refused.returncode == 2, refused.stderr
        assert refused.stderr.count("\n") == 1 and message in refused.stderr, refused.stderr
        assert not (folder / "runs").exists()
