"""Measure one run on several processes, in every mode, against one process."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from minigpt.bench.measure import Design, Result
from minigpt.bench.programs import MINIGPT, running
from minigpt.errors import require
from minigpt.files import read_json, read_json_lines
from minigpt.report.tables import Cell, Column, Table
from minigpt.run.directory import RunDirectory
from minigpt.runtime import PARALLELS
from minigpt.train.distributed import TIMED_STEPS

ALONE = ("none", 1)
WARMUP = TIMED_STEPS.stop + 2  # steps, of which the profiler times some
COLUMNS = [
    Column("mode", "trainer.parallel"),
    Column("processes"),
    Column("step", "step, ms", digits=2),
    Column("tokens_per_second", "tokens/s", digits=0),
    Column("efficiency", digits=2),
    Column("share", "time in collectives", digits=2),
    Column("memory", "peak memory of a process, MB", digits=0),
]


class Trained(NamedTuple):
    """Seconds per step, the share of them in collectives, peak bytes of the largest process.

    The last two are None where they are not measured.
    """

    seconds: float
    share: float | None
    memory: int | None


def measure(design: Design, processes: Sequence[int], steps: int, repeats: int) -> Result:
    """Time `steps` steps, after WARMUP, in each mode and number of processes, interleaved. Medians.

    Efficiency: tokens/s over those of one process, per process. Raises UserError for more processes
    than this machine has devices.
    """
    n_devices = torch.cuda.device_count() if design.device == "cuda" else os.cpu_count() or 1
    why = f"this machine has {n_devices} devices for them; use at most {n_devices}"
    require(max(processes) <= n_devices, "--processes", max(processes), why)
    modes = [mode for mode in PARALLELS if mode != "none"]
    ways: list[tuple[str, int]] = [ALONE, *((mode, n) for mode in modes for n in processes)]
    runs: dict[tuple[str, int], list[Trained]] = {way: [] for way in ways}
    design.progress.total = repeats * len(ways)
    for _ in range(repeats):
        for way in ways:
            runs[way].append(_trained(design, *way, steps))
            design.progress.advance()
    trainer, model = design.configs[0][1].trainer, design.configs[0][1].model
    tokens = trainer.batch_size * model.block_size
    rows: list[list[Cell]] = []
    for (mode, n), each in runs.items():
        seconds = statistics.median(run.seconds for run in each)
        first = rows[0][3] if rows else tokens / seconds
        assert isinstance(first, float)
        row: list[Cell] = [mode, n, 1e3 * seconds, tokens / seconds, tokens / seconds / first / n]
        shares = [run.share for run in each if run.share is not None]
        row.append(statistics.median(shares) if shares else None)
        memory = [run.memory for run in each if run.memory is not None]
        rows.append([*row, statistics.median(memory) / 1e6 if memory else None])
    note = (
        f"The same batch of {tokens:,} tokens in every row; {steps} steps after {WARMUP}, not "
        f"compiled; median of {repeats}. "
    )
    if design.device == "cpu":
        note += (
            f"These processes share {n_devices} CPU cores, which one process uses too, so the "
            f"efficiency shows what they cost, not what more devices gain."
        )
    return Result(Table("parallel", "One run on several processes", COLUMNS, rows, note.strip()))


def _trained(design: Design, mode: str, processes: int, steps: int) -> Trained:
    """Train in new processes. Their run is deleted."""
    total = WARMUP + steps
    with tempfile.TemporaryDirectory(prefix="minigpt_bench_") as folder:
        run = RunDirectory(Path(folder, "run"))
        own = [f"trainer.max_steps={total}", f"trainer.log_every={WARMUP}", "logger=none"]
        own += ["trainer.eval_every=null", "trainer.sample_every=null", "trainer.compile=false"]
        own += ["trainer.checkpoint_every=null", f"trainer.parallel={mode}"]
        own += [] if (mode, processes) == ALONE else [f"trainer.processes={processes}"]
        own += [f"hydra.run.dir={run.path}"]
        with running([*MINIGPT, "train", *design.overrides, *own]) as process:
            process.wait()
        logged = [line for line in read_json_lines(run.metrics) if "tokens_per_second" in line]
        result = read_json(run.path / "result.json")
    before, after = (
        line["tokens"] / line["tokens_per_second"] for line in logged[:: len(logged) - 1]
    )
    memory = result.get("peak_memory_bytes_by_rank") or [result["peak_memory_bytes"]]
    largest = max((n_bytes for n_bytes in memory if n_bytes is not None), default=None)
    return Trained((after - before) / steps, result.get("collective_share"), largest)
