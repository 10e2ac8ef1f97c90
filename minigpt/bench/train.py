"""What a training step costs: the real loop, its clock read after every step."""

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
from minigpt.logger import LOGGERS, RunInfo
from minigpt.logger.none import NoneConfig
from minigpt.report.tables import Cell, Column, Table
from minigpt.run.directory import RunDirectory
from minigpt.runtime import Runtime, choose_runtime, peak_memory_bytes, set_threads
from minigpt.train.display import Display
from minigpt.train.setup import set_up
from minigpt.train.trainer import Trainer

# Steps between two looks at the clock: a look waits for a GPU, which is kept busy in between.
STEPS_A_LOOK = {"cpu": 1, "cuda": 20}

COLUMNS = [
    Column("config", "config"),
    Column("step", "step, ms (quartiles)"),
    Column("ratio", "over the first", digits=3),
    Column("tokens_per_second", "tokens/s", digits=0),
    Column("utilisation", "of the product's ceiling", digits=3),
    Column("first_step", "first step, s", digits=2),
    Column("evaluation", "evaluation, s", digits=3),
    Column("memory", "peak memory, MB", digits=0),
]
NOTE = (
    "Step: median over all steps of all rounds after each round's warm-up. Utilisation: "
    "flops_per_token (6 an active weight, 12 n_embd a key and layer) times tokens/s, over the "
    "FLOP/s of one large product in the same precision. Evaluation: one pass over the validation "
    "split."
)


@dataclass
class Round:
    """One training from scratch: seconds of its first step, of each later one, of evaluating."""

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
    def tokens_a_step(self) -> int:
        """Tokens of a batch."""
        return self.config.trainer.batch_size * self.config.model.block_size


class StepClock(Display):
    """Shows nothing; notes when each step, or each of several, has ended."""

    def __init__(self, device: str) -> None:
        super().__init__(0)
        self.device, self.every = device, STEPS_A_LOOK.get(device, 1)
        self.looks: list[tuple[int, float]] = []

    def look(self, step: int) -> None:
        """Wait for the device and read the clock."""
        synchronize(self.device)
        self.looks.append((step, time.perf_counter()))

    def step(self, step: int) -> None:
        if step == 1 or step % self.every == 0:
            self.look(step)

    def train(self, step: int, metrics: dict[str, float]) -> None: ...

    def evaluation(self, step: int, val: Any, best: bool) -> None: ...

    def seconds(self, warmup: int) -> list[float]:
        """Of a step, between two looks; what began before `warmup` steps does not count."""
        steps = pairwise(self.looks)
        return [(t1 - t0) / (s1 - s0) for (s0, t0), (s1, t1) in steps if s0 >= warmup]


def measure_training(
    configs: Sequence[tuple[str, Config]], steps: int, warmup: int, rounds: int
) -> tuple[list[Measured], dict[str, Ceilings]]:
    """What `train_in_turns` finds, and the ceilings by precision."""
    found = train_in_turns(configs, steps, warmup, rounds)
    kinds = {one.runtime.precision: one.runtime.device for one in found}
    return found, {precision: ceilings(device, precision) for precision, device in kinds.items()}


def train_in_turns(
    configs: Sequence[tuple[str, Config]], steps: int, warmup: int, rounds: int
) -> list[Measured]:
    """Train each config in turns, `rounds` times from scratch for `warmup` and then `steps` steps.

    Raises UserError for what cannot be trained here.
    """
    found = []
    for label, config in configs:
        set_threads(config.trainer.threads)
        runtime = choose_runtime(config.trainer.device, config.trainer.precision)
        found.append(Measured(label, config, runtime, 0))
    for _ in range(rounds):
        for one in found:
            _round(one, steps, warmup)
    return found


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
        logger = LOGGERS.build(NoneConfig("none"), RunInfo(run.path, "bench", None, [], {}, None))
        trainer = Trainer(set_up(config, prepared, runtime), run, clock, logger)
        clock.look(0)
        trainer.train()
        started = time.perf_counter()  # the loop has evaluated once: no first-time costs
        evaluate(trainer.model, trainer.data.val, runtime)
        evaluation = time.perf_counter() - started
    measured.flops_per_token = trainer.model.flops_per_token()
    (_, began), (_, first) = clock.looks[:2]
    measured.rounds.append(
        Round(first - began, clock.seconds(warmup), evaluation, peak_memory_bytes(runtime.device))
    )


def table(found: Sequence[Measured], limits: dict[str, Ceilings]) -> Table:
    """A row a config."""
    rows: list[list[Cell]] = []
    for one in found:
        speed = one.tokens_a_step / one.step.median
        memory = [r.memory for r in one.rounds if r.memory is not None]
        rows.append(
            [
                one.label,
                one.step.describe(),
                one.step.median / found[0].step.median,
                speed,
                one.flops_per_token * speed / limits[one.runtime.precision].flops,
                Times([r.first for r in one.rounds]).median,
                Times([r.evaluation for r in one.rounds]).median,
                max(memory) / 1e6 if memory else None,
            ]
        )
    return Table("train", "Training", COLUMNS, rows, NOTE)
