"""A user's working directory, and the command line inside this process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from minigpt.cli import main

# Tests run side by side, one a core: threads of tiny tensors would only wait for each other.
# Read when torch is imported, here and in the programs that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("minigpt", deadline=None)  # a busy machine is no mistake
settings.load_profile("minigpt")

# A run that takes well under a second: one small block, a few thousand characters.
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
    """What a command left."""

    code: int
    out: str
    err: str


Cli = Callable[..., Outcome]


@pytest.fixture(scope="session")
def prepared_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One data directory for all tests of a worker, so that a corpus is prepared once."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def workdir(tmp_path: Path, prepared_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with a small text, and no account anywhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINIGPT_DATA", str(prepared_data))
    monkeypatch.setenv("WANDB_MODE", "offline")
    lines = [f"Line {i}: the quick brown fox jumps over {i * i} lazy dogs.\n" for i in range(60)]
    (tmp_path / "text.txt").write_text("".join(lines), encoding="utf-8")
    return tmp_path


@pytest.fixture
def cli(workdir: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run the command line in this process."""

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["minigpt", *arguments])
        capfd.readouterr()
        code = main(list(arguments))
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timing = ("seconds", "tokens_per_second")
    return [{k: v for k, v in line.items() if k not in timing} for line in lines]


def the_run(under: Path) -> Path:
    """The only run directory below a folder."""
    runs = [path.parent for path in under.rglob("manifest.json")]
    assert len(runs) == 1, runs
    return runs[0]


def inspect_wandb(path: Path) -> str:
    """What W&B's own reader says is in a run's file."""
    program = str(Path(sys.executable).with_name("wandb"))
    command = [program, "leet", "inspect", "--json", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
