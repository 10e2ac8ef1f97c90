"""Measure training steps in the training loop of `minigpt train`."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from minigpt.bench.measure import Design, Result, Times, ceilings, synchronize
from minigpt.config.schema import Config
from minigpt.console import Advance, ignore_progress
from minigpt.data.prepare import Prepared, prepare
from minigpt.evaluate.loss import evaluate
from minigpt.logger import LOGGERS, LoggerConfig, RunInfo
from minigpt.report.tables import Cell, Column, Table
from minigpt.run.directory import RunDirectory
from minigpt.runtime import Runtime, choose_runtime, peak_memory_bytes, set_threads
from minigpt.train.display import Display
from minigpt.train.setup import build_setup
from minigpt.train.trainer import Trainer

# Steps between clock readings. Each reading syncs the GPU, so frequent readings would idle it.
STEPS_PER_READING = {"cpu": 1, "cuda": 20}

COLUMNS = [
    Column("config", "config"),
    Column("step", "step, ms (quartiles)"),
    Column("ratio", "time / first row", digits=3),
    Column("tokens_per_second", "tokens/s", digits=0),
    Column("utilisation", "utilisation", digits=3),
    Column("first_step", "first step, s", digits=2),
    Column("evaluation", "evaluation, s", digits=3),
    Column("memory", "peak memory, MB", digits=0),
]
NOTE = (
    "Step: median over all steps of all rounds after each round's warm-up. Utilisation: "
    "flops_per_token (6 per active weight, 12 n_embd per key and layer) times tokens/s, over the "
    "FLOP/s of one large matrix product in the same precision. Evaluation: one pass over the "
    "validation split."
)


class Round(NamedTuple):
    """Seconds of the first step, later steps and an evaluation of one training from scratch."""

    first: float
    steps: list[float]
    evaluation: float
    memory: int | None


@dataclass
class Measured:
    """All rounds of one config."""

    label: str
    config: Config
    runtime: Runtime
    flops_per_token: int = 0
    rounds: list[Round] = field(default_factory=list)

    @property
    def step(self) -> Times:
        """Seconds per step."""
        return Times([seconds for one in self.rounds for seconds in one.steps])

    @property
    def tokens_per_step(self) -> int:
        """Tokens per step."""
        return self.config.trainer.batch_size * self.config.model.block_size


class StepClock(Display):
    """A display that prints nothing and records the time of steps."""

    def __init__(self, device: str) -> None:
        super().__init__(0)
        self.device, self.every = device, STEPS_PER_READING.get(device, 1)
        self.readings: list[tuple[int, float]] = []

    def read(self, step: int) -> None:
        """Wait for the device and read the clock."""
        synchronize(self.device)
        self.readings.append((step, time.perf_counter()))

    def step(self, step: int) -> None:
        if step == 1 or step % self.every == 0:
            self.read(step)

    def train(self, step: int, loss: float, speed: float) -> None: ...

    def evaluation(self, step: int, val: Any, best: bool) -> None: ...

    def seconds(self, warmup: int) -> list[float]:
        """Return the seconds per step between readings, without the first `warmup` steps."""
        steps = pairwise(self.readings)
        return [(t1 - t0) / (s1 - s0) for (s0, t0), (s1, t1) in steps if s0 >= warmup]


def measure(design: Design, steps: int, warmup: int, repeats: int) -> Result:
    """Measure a training step, and the peak speed of the machine by precision."""
    design.progress.total = repeats * len(design.configs)
    advance = design.progress.advance
    measured = train_in_turns(design.configs, steps, warmup, repeats, advance)
    limits = {one.runtime.precision: one.runtime.device for one in measured}
    peaks = {precision: ceilings(device, precision) for precision, device in limits.items()}
    rows: list[list[Cell]] = []
    for one in measured:
        step, rounds = one.step, one.rounds
        speed = one.tokens_per_step / step.median
        utilisation = one.flops_per_token * speed / peaks[one.runtime.precision].flops
        first = statistics.median(each.first for each in rounds)
        evaluation = statistics.median(each.evaluation for each in rounds)
        memory = max((each.memory / 1e6 for each in rounds if each.memory), default=None)
        ratio = step.median / measured[0].step.median
        costs = (utilisation, first, evaluation, memory)
        rows.append([one.label, step.describe(), ratio, speed, *costs])
    facts = "; ".join(
        f"{peak.flops / 1e9:,.0f} GFLOP/s in a {precision} product, "
        f"{peak.bytes / 1e9:,.1f} GB/s copied (read and written)"
        for precision, peak in peaks.items()
    )
    return Result(Table("train", "Training", COLUMNS, rows, NOTE), {"ceilings": facts})


def train_in_turns(
    configs: Sequence[tuple[str, Config]],
    steps: int,
    warmup: int,
    rounds: int,
    progress: Advance = ignore_progress,
) -> list[Measured]:
    """Train each config from scratch for `warmup` + `steps` steps, in `rounds` interleaved rounds.

    `progress`: called with 1 after each training. Raises UserError for a config that cannot be
    trained here.
    """
    measured = []
    for label, config in configs:
        set_threads(config.trainer.threads)
        runtime = choose_runtime(config.trainer.device, config.trainer.precision)
        measured.append(Measured(label, config, runtime))
    for _ in range(rounds):
        for one in measured:
            one.rounds.append(_round(one, steps, warmup))
            progress(1)
    return measured


@contextmanager
def temporary_trainer(
    config: Config, prepared: Prepared, runtime: Runtime, display: Display
) -> Iterator[Trainer]:
    """Yield a trainer without a tracker whose run directory is deleted at the end."""
    prepared.tokens.require_block(config.model.block_size)
    with tempfile.TemporaryDirectory(prefix="minigpt_bench_") as folder:
        run = RunDirectory(Path(folder))
        logger = LOGGERS.build(LoggerConfig("none"), RunInfo(run.path, "bench", None, [], {}, None))
        yield Trainer(build_setup(config, prepared, runtime), run, display, logger)


def _round(measured: Measured, steps: int, warmup: int) -> Round:
    config, device = measured.config, measured.runtime.device
    never = {"eval_every": None, "checkpoint_every": None, "sample_every": None}
    never |= {"patience": None, "guessing_patience": None}
    length = {"max_steps": warmup + steps, "log_every": warmup + steps}
    config = replace(config, trainer=replace(config.trainer, **length, **never))
    set_threads(config.trainer.threads)
    clock, prepared = StepClock(device), prepare(config.data, config.tokenizer)
    with temporary_trainer(config, prepared, measured.runtime, clock) as trainer:
        clock.read(0)
        trainer.train()
        started = time.perf_counter()  # the loop has evaluated before, so this is warm
        evaluate(trainer.model, trainer.data.val, measured.runtime)
        evaluation = time.perf_counter() - started
    measured.flops_per_token = trainer.model.flops_per_token()
    (_, start), (_, first) = clock.readings[:2]
    return Round(first - start, clock.seconds(warmup), evaluation, peak_memory_bytes(device))
