"""Seconds from a command to its first sign of life, each in a process of its own."""

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
    Column("what", "what"),
    Column("seconds", "s (quartiles)"),
]
FIRST_STEP = "step 1/"  # how the line that reports it begins


def measure_startup(overrides: Sequence[str], repeats: int) -> Table:
    """Start each command `repeats` times in turns, after one turn that fills the disk's cache."""
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
        for name, (command, sign) in commands.items():
            found = _seconds(command, sign)
            if turn:
                seconds.setdefault(name, []).append(found)
    rows: list[list[Cell]] = [
        [name, Times(found).describe(unit=1, digits=3)] for name, found in seconds.items()
    ]
    return Table("startup", "Start", COLUMNS, rows, "The first step: until it is reported.")


def _seconds(command: list[str], sign: str | None) -> float:
    """Until a command ends, or prints a line that begins with `sign`; then it is stopped."""
    with tempfile.TemporaryDirectory(prefix="minigpt_bench_") as folder:
        where = [] if sign is None else [f"hydra.run.dir={folder}/run"]
        started = time.perf_counter()
        with subprocess.Popen(
            [*command, *where], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None and process.stderr is not None
            for line in process.stdout:
                if sign is not None and line.startswith(sign):
                    found = time.perf_counter() - started
                    process.kill()
                    return found
            process.wait()
            if process.returncode or sign is not None:
                said = process.stderr.read().strip().splitlines() or ["it said nothing"]
                raise Failure(f"{' '.join(command)}: {said[-1]}")
        return time.perf_counter() - started
