"""Measure the time from a command to its exit or to the first training step."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time

from minigpt.bench.measure import Design, Result, Times
from minigpt.errors import Failure
from minigpt.report.tables import Cell, Column, Table

COLUMNS = [Column("what", "command"), Column("seconds", "s (quartiles)")]
FIRST_STEP = "step 1/"  # start of the line that reports the first step


def measure(design: Design, repeats: int) -> Result:
    """Time each command `repeats` times, interleaved, after a round that fills the disk cache."""
    minigpt = [sys.executable, "-m", "minigpt.cli"]
    often = ["trainer.log_every=1", "trainer.sample_every=null", "logger=none"]
    if not any(override.startswith("trainer.compile=") for override in design.overrides):
        often.append("trainer.compile=false")
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "python -c 'import torch'": [sys.executable, "-c", "import torch"],
        "minigpt --help": [*minigpt, "--help"],
        "minigpt train --help": [*minigpt, "train", "--help"],
    }
    training = [*minigpt, "train", *design.overrides, *often]
    training_name = f"minigpt train {' '.join(design.overrides)}: first step"
    seconds: dict[str, list[float]] = {}
    design.progress.total = repeats + 1
    for turn in design.progress.counted(range(repeats + 1)):
        elapsed = {name: _seconds(command) for name, command in commands.items()}
        elapsed[training_name] = _seconds(training, FIRST_STEP)
        if turn:
            for name, value in elapsed.items():
                seconds.setdefault(name, []).append(value)
    rows: list[list[Cell]] = [
        [name, Times(turns).describe(unit=1, digits=3)] for name, turns in seconds.items()
    ]
    note = "First step: time until its line is printed; eager unless trainer.compile is given."
    return Result(Table("startup", "Start", COLUMNS, rows, note))


def _seconds(command: list[str], line_start: str | None = None) -> float:
    """Return the seconds until a command exits, or until it prints `line_start` and is killed."""
    with tempfile.TemporaryDirectory(prefix="minigpt_bench_") as folder:
        folder_option = [] if line_start is None else [f"hydra.run.dir={folder}/run"]
        started = time.perf_counter()
        arguments, pipe = [*command, *folder_option], subprocess.PIPE
        with subprocess.Popen(arguments, stdout=pipe, stderr=pipe, text=True) as process:
            assert process.stdout is not None and process.stderr is not None
            for line in process.stdout:
                if line_start is not None and line.startswith(line_start):
                    elapsed = time.perf_counter() - started
                    process.kill()
                    return elapsed
            process.wait()
            if process.returncode or line_start is not None:
                errors = process.stderr.read().strip().splitlines() or ["failed without a message"]
                raise Failure(f"{' '.join(command)}: {errors[-1]}")
        return time.perf_counter() - started
