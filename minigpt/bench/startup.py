"""Measure the time from a command to its exit or to the first training step."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from minigpt.bench.measure import Times
from minigpt.errors import Failure
from minigpt.report.tables import Cell, Column, Table

COLUMNS = [
    Column("what", "command"),
    Column("seconds", "s (quartiles)"),
]
FIRST_STEP = "step 1/"  # start of the line that reports it


def measure_startup(overrides: Sequence[str], repeats: int) -> Table:
    """Start each command `repeats` times in turns, after a first turn that fills the disk cache."""
    minigpt = [sys.executable, "-m", "minigpt.cli"]
    often = ["trainer.log_every=1", "trainer.sample_every=null", "logger=none"]
    commands = {
        "python -c pass": ([sys.executable, "-c", "pass"], None),
        "python -c 'import torch'": ([sys.executable, "-c", "import torch"], None),
        "minigpt --help": ([*minigpt, "--help"], None),
        "minigpt train --help": ([*minigpt, "train", "--help"], None),
        f"minigpt train {' '.join(overrides)}: first step": (
            [*minigpt, "train", *overrides, *often],
            FIRST_STEP,
        ),
    }
    seconds: dict[str, list[float]] = {}
    for turn in range(repeats + 1):
        for name, (command, line_start) in commands.items():
            elapsed = _seconds(command, line_start)
            if turn:
                seconds.setdefault(name, []).append(elapsed)
    rows: list[list[Cell]] = [
        [name, Times(repeated).describe(unit=1, digits=3)] for name, repeated in seconds.items()
    ]
    return Table("startup", "Start", COLUMNS, rows, "First step: time until it is reported.")


def _seconds(command: list[str], line_start: str | None) -> float:
    """Return the seconds until a command exits, or until it prints `line_start` and is killed."""
    with tempfile.TemporaryDirectory(prefix="minigpt_bench_") as folder:
        folder_option = [] if line_start is None else [f"hydra.run.dir={folder}/run"]
        started = time.perf_counter()
        with subprocess.Popen(
            [*command, *folder_option], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
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
