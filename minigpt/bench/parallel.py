"""Measure one run on several processes, in every mode, against one process."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from minigpt.bench.measure import Design, Result
from minigpt.bench.programs import MINIGPT, running
from minigpt.errors import require
from minigpt.files import read_json
from minigpt.report.tables import Cell, Column, Table
from minigpt.runtime import PARALLELS

ALONE = ("none", 1)
COLUMNS = [
    Column("mode", "trainer.parallel"),
    Column("processes"),
    Column("step", "step, ms", digits=2),
    Column("tokens_per_second", "tokens/s", digits=0),
    Column("efficiency", digits=2),
    Column("share", "time in collectives", digits=2),
    Column("memory", "peak memory of a process, MB", digits=0),
]


def measure(design: Design, processes: Sequence[int], steps: int, repeats: int) -> Result:
    """Train `steps` steps in each mode and number of processes, interleaved. Medians.

    Efficiency: tokens/s over those of one process, per process. Raises UserError for more processes
    than this machine has devices.
    """
    n_devices = torch.cuda.device_count() if design.device == "cuda" else os.cpu_count() or 1
    why = f"this machine has {n_devices} devices for them; use at most {n_devices}"
    require(max(processes) <= n_devices, "--processes", max(processes), why)
    modes = [mode for mode in PARALLELS if mode != "none"]
    ways: list[tuple[str, int]] = [ALONE, *((mode, n) for mode in modes for n in processes)]
    results: dict[tuple[str, int], list[dict[str, Any]]] = {way: [] for way in ways}
    design.progress.total = repeats * len(ways)
    for _ in range(repeats):
        for way in ways:
            results[way].append(_trained(design, *way, steps))
            design.progress.advance()
    trainer, model = design.configs[0][1].trainer, design.configs[0][1].model
    tokens = trainer.batch_size * model.block_size
    rows: list[list[Cell]] = []
    for (mode, n), each in results.items():
        speed = statistics.median(result["tokens_per_second"] for result in each)
        memory = [max(r.get("peak_memory_bytes_by_rank") or [r["peak_memory_bytes"]]) for r in each]
        first = rows[0][3] if rows else speed
        assert isinstance(first, float)
        row: list[Cell] = [mode, n, 1e3 * tokens / speed, speed, speed / first / n]
        shares = [share for r in each if (share := r.get("collective_share")) is not None]
        row.append(statistics.median(shares) if shares else None)
        rows.append([*row, statistics.median(memory) / 1e6])
    note = f"The same batch of {tokens:,} tokens in every row; median of {repeats}. "
    if design.device == "cpu":
        note += (
            f"These processes share {n_devices} CPU cores, which one process uses too, so the "
            f"efficiency shows what they cost, not what more devices gain."
        )
    return Result(Table("parallel", "One run on several processes", COLUMNS, rows, note.strip()))


def _trained(design: Design, mode: str, processes: int, steps: int) -> dict[str, Any]:
    """Return result.json of a training."""
    with tempfile.TemporaryDirectory(prefix="minigpt_bench_") as folder:
        run = Path(folder, "run")
        own = [f"trainer.max_steps={steps}", f"trainer.log_every={steps}", f"hydra.run.dir={run}"]
        own += ["trainer.eval_every=null", "trainer.sample_every=null", "logger=none"]
        own += ["trainer.checkpoint_every=null", f"trainer.parallel={mode}"]
        own += [] if (mode, processes) == ALONE else [f"trainer.processes={processes}"]
        with running([*MINIGPT, "train", *design.overrides, *own]) as process:
            process.wait()
        return read_json(run / "result.json")
