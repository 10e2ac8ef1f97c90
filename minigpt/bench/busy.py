"""Measure commands while other programs use the cores, by how OpenMP threads wait."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from minigpt.bench.measure import Design, Result
from minigpt.bench.programs import MINIGPT, busy_loops, running
from minigpt.cpu import WAIT_SETTINGS
from minigpt.errors import require
from minigpt.files import read_json
from minigpt.report.tables import Cell, Column, Table

# Environments by name. Without settings, minigpt sets its own.
WAITING: dict[str, dict[str, str]] = {
    "minigpt's limit": {},
    "OpenMP's own": {"GOMP_SPINCOUNT": "300000", "KMP_BLOCKTIME": "200"},
    "no spinning": {"OMP_WAIT_POLICY": "PASSIVE"},
}
COMMANDS = 3  # train, eval, sample
LOOPS_PER_CORE = 16
COLUMNS = [
    Column("competitors", "busy loops"),
    Column("waiting", "waiting threads"),
    Column("tokens_per_second", "train, tokens/s", digits=0),
    Column("ratio", "of the first row", digits=3),
    Column("eval", "eval, s", digits=2),
    Column("sample", "sample, s", digits=2),
]


def measure(design: Design, competitors: Sequence[int], steps: int, repeats: int) -> Result:
    """Train, evaluate and sample beside `competitors` endless loops, interleaved. Medians.

    Raises UserError for more loops than LOOPS_PER_CORE allow.
    """
    most = LOOPS_PER_CORE * (os.cpu_count() or 1)
    why = f"with more than {LOOPS_PER_CORE} loops per core, the machine hardly answers; use {most}"
    require(max(competitors) <= most, "--competitors", max(competitors), f"{why} or fewer")
    times: dict[tuple[int, str], list[tuple[float, float, float]]] = {
        (n, waiting): [] for n in competitors for waiting in WAITING
    }
    design.progress.total = repeats * len(times) * COMMANDS
    for _ in range(repeats):
        for n, waiting in times:
            with busy_loops(n):
                timed = _commands(design, steps, WAITING[waiting])
            times[n, waiting].append(timed)
    rows: list[list[Cell]] = []
    for (n, waiting), each in times.items():
        speed, evaluation, sampling = map(statistics.median, zip(*each, strict=True))
        first = rows[0][2] if rows else speed
        assert isinstance(first, float)
        rows.append([str(n), waiting, speed, speed / first, evaluation, sampling])
    note = f"{steps} steps; eval and sample from command to exit; median of {repeats}."
    return Result(Table("busy", "Beside other programs", COLUMNS, rows, note))


def _commands(design: Design, steps: int, settings: dict[str, str]) -> tuple[float, float, float]:
    """Return the tokens/s of a training, and the seconds of an evaluation and of a sample."""
    inherited = {name: v for name, v in os.environ.items() if name not in WAIT_SETTINGS}
    with tempfile.TemporaryDirectory(prefix="minigpt_bench_") as folder:
        run = Path(folder, "run")

        def seconds(*arguments: str) -> float:
            started = time.perf_counter()
            with running([*MINIGPT, *arguments], inherited | settings) as process:
                process.wait()
                design.progress.advance()
                return time.perf_counter() - started

        length = [f"trainer.max_steps={steps}", "trainer.sample_every=null", "logger=none"]
        seconds("train", *design.overrides, *length, f"hydra.run.dir={run}")
        speed = read_json(run / "result.json")["tokens_per_second"]
        return speed, seconds("eval", str(run)), seconds("sample", str(run))
