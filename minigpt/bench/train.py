"""Measure a training step inside the real training loop."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from minigpt.bench.measure import Ceilings, Times, ceilings, synchronize
from minigpt.config.schema import Config
from minigpt.data.prepare import prepare
from minigpt.evaluate.loss import evaluate
from minigpt.logger import LOGGERS, LoggerConfig, RunInfo
from minigpt.report.tables import Cell, Column, Table
from minigpt.run.directory import RunDirectory
from minigpt.runtime import Runtime, choose_runtime, peak_memory_bytes, set_threads
from minigpt.train.display import Display
from minigpt.train.setup import set_up
from minigpt.train.trainer import Trainer

# Steps between two clock readings. A reading waits for the GPU, which would else be idle often.
STEPS_PER_READING = {"cpu": 1, "cuda": 20}

COLUMNS = [
    Column("config", "config"),
    Column("step", "step, ms (quartiles)"),
    Column("ratio", "ratio to the first", digits=3),
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


@dataclass
class Round:
    """One training from scratch: seconds of the first step, later steps and an evaluation."""

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
    flops_per_token: int
    rounds: list[Round] = field(default_factory=list)

    @property
    def step(self) -> Times:
        """Seconds of a step."""
        return Times([seconds for one in self.rounds for seconds in one.steps])

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a batch."""
        return self.config.trainer.batch_size * self.config.model.block_size


class StepClock(Display):
    """A display that prints nothing and records the time after steps."""

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

    def train(self, step: int, metrics: dict[str, float]) -> None: ...

    def evaluation(self, step: int, val: Any, best: bool) -> None: ...

    def seconds(self, warmup: int) -> list[float]:
        """Return the seconds of a step between readings, without the first `warmup` steps."""
        steps = pairwise(self.readings)
        return [(t1 - t0) / (s1 - s0) for (s0, t0), (s1, t1) in steps if s0 >= warmup]


def measure_training(
    configs: Sequence[tuple[str, Config]], steps: int, warmup: int, rounds: int
) -> tuple[list[Measured], dict[str, Ceilings]]:
    """Return what `train_in_turns` measures, and the ceilings by precision."""
    measured = train_in_turns(configs, steps, warmup, rounds)
    kinds = {one.runtime.precision: one.runtime.device for one in measured}
    return measured, {precision: ceilings(device, precision) for precision, device in kinds.items()}


def train_in_turns(
    configs: Sequence[tuple[str, Config]], steps: int, warmup: int, rounds: int
) -> list[Measured]:
    """Train each config in turns, `rounds` times from scratch for `warmup` and then `steps` steps.

    Raises UserError for a config that cannot be trained here.
    """
    measured = []
    for label, config in configs:
        set_threads(config.trainer.threads)
        runtime = choose_runtime(config.trainer.device, config.trainer.precision)
        measured.append(Measured(label, config, runtime, 0))
    for _ in range(rounds):
        for one in measured:
            _round(one, steps, warmup)
    return measured


def _round(measured: Measured, steps: int, warmup: int) -> None:
    config, runtime = measured.config, measured.runtime
    never = {"eval_every": None, "checkpoint_every": None, "sample_every": None, "patience": None}
    length = {"max_steps": warmup + steps, "log_every": warmup + steps}
    config = replace(config, trainer=replace(config.trainer, **length, **never))
    set_threads(config.trainer.threads)
    prepared = prepare(config.data, config.tokenizer)
    prepared.tokens.require_block(config.model.block_size)
    with tempfile.TemporaryDirectory(prefix="minigpt_bench_") as folder:
        run = RunDirectory(Path(folder))
        clock = StepClock(runtime.device)
        logger = LOGGERS.build(LoggerConfig("none"), RunInfo(run.path, "bench", None, [], {}, None))
        trainer = Trainer(set_up(config, prepared, runtime), run, clock, logger)
        clock.read(0)
        trainer.train()
        started = time.perf_counter()  # the loop has evaluated once: no first-time costs
        evaluate(trainer.model, trainer.data.val, runtime)
        evaluation = time.perf_counter() - started
    measured.flops_per_token = trainer.model.flops_per_token()
    (_, start), (_, first) = clock.readings[:2]
    measured.rounds.append(
        Round(first - start, clock.seconds(warmup), evaluation, peak_memory_bytes(runtime.device))
    )


def table(measured: Sequence[Measured], limits: dict[str, Ceilings]) -> Table:
    """Return a row per config."""
    rows: list[list[Cell]] = []
    for one in measured:
        speed = one.tokens_per_step / one.step.median
        memory = [r.memory for r in one.rounds if r.memory is not None]
        rows.append(
            [
                one.label,
                one.step.describe(),
                one.step.median / measured[0].step.median,
                speed,
                one.flops_per_token * speed / limits[one.runtime.precision].flops,
                Times([r.first for r in one.rounds]).median,
                Times([r.evaluation for r in one.rounds]).median,
                max(memory) / 1e6 if memory else None,
            ]
        )
    return Table("train", "Training", COLUMNS, rows, NOTE)
