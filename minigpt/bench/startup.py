"""Measure the time from a command to its exit or to the first training step."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time

from minigpt.bench.measure import Design, Result, Times
from minigpt.bench.programs import MINIGPT, running
from minigpt.errors import Failure, require
from minigpt.report.tables import Cell, Column, Table

COLUMNS = [Column("what", "command"), Column("seconds", "s (quartiles)")]
FIRST_STEP = "step 1/"  # start of the line that reports the first step


def measure(design: Design, repeats: int) -> Result:
    """Time each command `repeats` times, interleaved, after a round that fills the disk cache."""
    steps = design.configs[0][1].trainer.max_steps
    require(steps > 0, "trainer.max_steps", steps, "trains no first step; use 1 or more")
    often = ["trainer.log_every=1", "trainer.sample_every=null", "logger=none"]
    if not any(override.startswith("trainer.compile=") for override in design.overrides):
        often.append("trainer.compile=false")
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "python -c 'import torch'": [sys.executable, "-c", "import torch"],
        "minigpt --help": [*MINIGPT, "--help"],
        "minigpt train --help": [*MINIGPT, "train", "--help"],
    }
    training = [*MINIGPT, "train", *design.overrides, *often]
    training_name = f"{' '.join(['minigpt train', *design.overrides])}: first step"
    seconds: dict[str, list[float]] = {}
    design.progress.total = repeats + 1
    for turn in design.progress.counted(range(repeats + 1)):
        elapsed = {name: _to_exit(command) for name, command in commands.items()}
        elapsed[training_name] = _to_first_step(training)
        if turn:
            for name, value in elapsed.items():
                seconds.setdefault(name, []).append(value)
    rows: list[list[Cell]] = [
        [name, Times(turns).describe(unit=1, digits=3)] for name, turns in seconds.items()
    ]
    note = "First step: time until its line is printed; eager unless trainer.compile is given."
    return Result(Table("startup", "Start", COLUMNS, rows, note))


def _to_exit(command: list[str]) -> float:
    """Return the seconds until a command exits."""
    started = time.perf_counter()
    with running(command) as process:
        process.wait()
        return time.perf_counter() - started


def _to_first_step(command: list[str]) -> float:
    """Return the seconds until a training prints the line of its first step, where it is killed."""
    with tempfile.TemporaryDirectory(prefix="minigpt_bench_") as folder:
        started = time.perf_counter()
        directory = f"hydra.run.dir={folder}/run"
        with running([*command, directory], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith(FIRST_STEP):
                    return time.perf_counter() - started
            process.wait()
        raise Failure(f"{' '.join(command)}: ended without a line that begins with {FIRST_STEP!r}")
