"""Tiers of tests, and fixtures for the command line and a trained run."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import settings

from minigpt.cli import main
from minigpt.cpu import prepare_process

# Tests run in one process per core. The variables must be set before torch is imported; programs
# that tests start inherit them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
prepare_process()

settings.register_profile("minigpt", deadline=None)  # the machine may be busy
settings.load_profile("minigpt")

# A run of less than a second: one small block, a few thousand characters.
TINY = [
    "logger=none",
    "data=text",
    "data.path=text.txt",
    "model.n_layer=1",
    "model.n_head=2",
    "model.n_embd=16",
    "model.block_size=8",
    "trainer.batch_size=4",
    "trainer.max_steps=12",
    "trainer.log_every=2",
    "trainer.eval_every=4",
    "trainer.sample_every=6",
    "trainer.sample_tokens=5",
    "trainer.checkpoint_every=5",
    "trainer.device=cpu",
    "trainer.threads=1",
    "schedule.warmup_steps=3",
]


@dataclass(frozen=True)
class Outcome:
    """The exit code and output of a command."""

    code: int
    out: str
    err: str


Cli = Callable[..., Outcome]

TEXT = "".join(f"Line {i}: the quick brown fox jumps over {i * i} lazy dogs.\n" for i in range(60))


# Tests that train runs through the command line, start processes, or are large matrices.
MEDIUM = (
    *(
        "bench/",
        "compare/test_compare.py",
        "export/",
        "inference/",
        "logger/",
        "studies/",
        "sweep/",
        "train/",
        "tune/",
    ),
    *("data/test_shards.py", "evaluate/test_eval_runs.py", "evaluate/test_inspect.py"),
    "evaluate/test_inspect_objectives.py",
    *("model/test_architecture_mutations.py", "model/test_designs.py"),
    *("report/test_listing.py", "report/test_serve.py", "run/test_latest.py"),
    *("run/test_removal.py", "test_api.py", "test_cli.py", "test_scripts.py", "test_use.py"),
)


@pytest.hookimpl(tryfirst=True)  # before pytest applies -m
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test a tier: its own mark, `medium` for those below MEDIUM, otherwise `fast`."""
    for item in items:
        if not {mark.name for mark in item.iter_markers()} & {"fast", "medium", "slow"}:
            path = item.path.relative_to(Path(__file__).parent).as_posix()
            item.add_marker("medium" if path.startswith(MEDIUM) else "fast")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that is marked `gpu` where torch finds no GPU."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a GPU")


def pytest_collection_finish() -> None:
    """Exclude collected tests from garbage collection, which they would slow down."""
    gc.freeze()


@pytest.fixture(scope="session")
def prepared_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the data directory of a test process; each corpus is prepared once."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def workdir(tmp_path: Path, prepared_data: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Change to a new working directory with a small text; W&B is offline. Return it.

    The environment is restored: minigpt sets variables for the programs it starts.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINIGPT_DATA", str(prepared_data))
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    with patch.dict(os.environ):
        yield tmp_path


@pytest.fixture
def cli(workdir: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Return a function that runs the command line, also all jobs of a sweep, in this process."""
    monkeypatch.setattr("minigpt.sweep.run.processes_at_once", lambda at_once: at_once or 1)

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["minigpt", *arguments])
        capfd.readouterr()
        code = main(list(arguments))
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory: pytest.TempPathFactory, prepared_data: Path) -> Path:
    """Return a run directory trained with TINY. Tests must not change it."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setenv("MINIGPT_DATA", str(prepared_data))
        arguments = ["train", *TINY, "hydra.run.dir=run"]
        patched.setattr(sys, "argv", ["minigpt", *arguments])
        assert main(arguments) == 0
    return folder / "run"


@pytest.fixture
def tiny_run(workdir: Path, trained_once: Path) -> Path:
    """Copy the run of `trained_once` to `run` in the working directory. Return it."""
    return shutil.copytree(trained_once, Path("run"))


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl without times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timing = ("seconds", "tokens_per_second")
    return [{k: v for k, v in line.items() if k not in timing} for line in lines]


def the_run(under: Path) -> Path:
    """Return the only run directory below a folder."""
    runs = [path.parent for path in under.rglob("manifest.json")]
    assert len(runs) == 1, runs
    return runs[0]


def inspect_wandb(path: Path) -> str:
    """Return the content of a .wandb file, read by W&B's own program."""
    program = str(Path(sys.executable).with_name("wandb"))
    command = [program, "leet", "inspect", "--json", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
