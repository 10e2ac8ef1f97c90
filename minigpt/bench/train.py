"""Measure training steps in the training loop of `minigpt train`."""

from __future__ import annotations

import re
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity

from minigpt.bench.measure import Design, Result, Times, ceilings
from minigpt.config.schema import Config
from minigpt.console import Advance, ignore_progress
from minigpt.data.prepare import Prepared, prepare
from minigpt.evaluate.loss import evaluate
from minigpt.files import write_bytes
from minigpt.logger import LOGGERS, LoggerConfig, RunInfo
from minigpt.report.tables import Cell, Column, Table
from minigpt.run.directory import RunDirectory
from minigpt.runtime import (
    Runtime,
    choose_runtime,
    peak_memory_bytes,
    set_threads,
    synchronize,
)
from minigpt.train.compilation import Choice, Planned, choose_compilation
from minigpt.train.control import Interrupted
from minigpt.train.display import Display
from minigpt.train.setup import build_setup
from minigpt.train.trainer import Trainer

# Steps between clock readings. Each reading syncs the GPU, so frequent readings would idle it.
STEPS_PER_READING = {"cpu": 1, "cuda": 20}
TOP = 10  # operators in the summary of a profile
# What a profile lists: on a CPU operators, not Python's functions or autograd's nodes, and each
# graph of torch.compile as one; on a GPU kernels.
LISTED = {
    "cpu": re.compile(r"(\w+::\w+)$|## Call (CompiledFxGraph \w{6})"),
    "cuda": re.compile("(.{1,60})"),
}
PROFILE_COLUMNS = [
    Column("operator", "operator"),
    Column("ms", "ms per step", digits=3),
    Column("share", "share of the time", digits=3),
]

COLUMNS = [
    Column("config", "config"),
    Column("step", "step, ms (quartiles)"),
    Column("ratio", "time / first row", digits=3),
    Column("tokens_per_second", "tokens/s", digits=0),
    Column("gflops", "GFLOP/s", digits=1),
    Column("utilisation", "utilisation", digits=3),
    Column("first_step", "first step, s", digits=2),
    Column("evaluation", "evaluation, s", digits=3),
    Column("memory", "peak memory, MB", digits=0),
]
NOTE = (
    "Step: median over all steps of all rounds after each round's warm-up. GFLOP/s: "
    "flops_per_token (6 per active weight, 12 head_size per key, head and layer, and the products "
    "of the positional scheme) times tokens/s. Utilisation: these over the FLOP/s of one large "
    "matrix product in the same precision. Evaluation: one pass over the validation split."
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

    def evaluation(
        self, step: int, val: Any, best: bool, by_weights: Mapping[str, float]
    ) -> None: ...

    def stopped(self, number: int, run: RunDirectory, result: dict[str, Any]) -> None: ...

    def seconds(self, warmup: int) -> list[float]:
        """Return the seconds per step between readings, without the first `warmup` steps."""
        steps = pairwise(self.readings)
        return [(t1 - t0) / (s1 - s0) for (s0, t0), (s1, t1) in steps if s0 >= warmup]


def measure(
    design: Design, steps: int, warmup: int, repeats: int, profile: Path | None = None
) -> Result:
    """Measure a training step, and the peak speed of the machine by precision.

    `profile`: a file for torch's profile of the first config's steps.
    """
    design.progress.total = repeats * len(design.configs) + (profile is not None)
    advance = design.progress.advance
    measured = train_in_turns(design.configs, steps, warmup, repeats, advance)
    limits = {one.runtime.precision: one.runtime.device for one in measured}
    peaks = {precision: ceilings(device, precision) for precision, device in limits.items()}
    rows: list[list[Cell]] = []
    for one in measured:
        step, rounds = one.step, one.rounds
        speed = one.tokens_per_step / step.median
        flops = one.flops_per_token * speed
        utilisation = flops / peaks[one.runtime.precision].flops
        first = statistics.median(each.first for each in rounds)
        evaluation = statistics.median(each.evaluation for each in rounds)
        memory = max((each.memory / 1e6 for each in rounds if each.memory), default=None)
        ratio = step.median / measured[0].step.median
        costs = (flops / 1e9, utilisation, first, evaluation, memory)
        rows.append([one.label, step.describe(), ratio, speed, *costs])
    facts = "; ".join(
        f"{peak.flops / 1e9:,.0f} GFLOP/s in a {precision} product, "
        f"{peak.bytes / 1e9:,.1f} GB/s copied (read and written)"
        for precision, peak in peaks.items()
    )
    noted, details = {"ceilings": facts}, []
    if profile is not None:
        details.append(profile_steps(design.configs[0][1], steps, warmup, profile))
        noted["profile"] = f"{profile} (open it in ui.perfetto.dev)"
        advance(1)
    return Result(Table("train", "Training", COLUMNS, rows, NOTE), noted, details=details)


def profile_steps(config: Config, steps: int, warmup: int, file: Path) -> Table:
    """Write torch's trace of `steps` steps. Return the TOP of LISTED.

    The time of an operator excludes those that it calls.
    """
    device = choose_runtime(config.trainer.device, config.trainer.precision).device
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (device == "cuda")]
    with ready_trainer(config, warmup + steps, StepClock(device)) as trainer:
        trainer.begin()

        def take(n: int) -> None:
            for _ in range(n):
                trainer.take_step()
            synchronize(device)

        take(warmup)
        with torch.profiler.profile(activities=activities) as profiler:
            take(steps)
    with tempfile.TemporaryDirectory(prefix="minigpt_bench_") as folder:
        trace = Path(folder, file.name)  # whose suffix says whether it is compressed
        profiler.export_chrome_trace(str(trace))
        write_bytes(file, trace.read_bytes())
    where = "cuda" if device == "cuda" else "cpu"
    time_of = attrgetter("self_device_time_total" if where == "cuda" else "self_cpu_time_total")
    events = [event for event in profiler.key_averages() if not event.is_user_annotation]
    events = [event for event in events if event.device_type.name.lower() == where]
    total = sum(map(time_of, events))
    rows: list[list[Cell]] = []
    for event in sorted(events, key=time_of, reverse=True):
        if name := LISTED[where].match(event.key):
            time_per_step = time_of(event) / steps / 1e3  # us to ms
            rows.append([name[name.lastindex or 0], time_per_step, time_of(event) / total])
    title = f"Profile of {steps} steps: the {TOP} longest"
    return Table("profile", title, PROFILE_COLUMNS, rows[:TOP], "")


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
    config: Config,
    prepared: Prepared,
    runtime: Runtime,
    display: Display,
    chosen: Choice | None = None,
) -> Iterator[Trainer]:
    """Yield a trainer without a tracker whose run directory is deleted at the end.

    `chosen`: whether to compile; None: as for a run with the steps of this config.
    """
    prepared.tokens.require_block(config.model.block_size)
    with tempfile.TemporaryDirectory(prefix="minigpt_bench_") as folder:
        run = RunDirectory(Path(folder))
        logger = LOGGERS.build(LoggerConfig("none"), RunInfo(run.path, "bench", None, [], {}, None))
        yield Trainer(build_setup(config, prepared, runtime, chosen), run, display, logger)


@contextmanager
def ready_trainer(config: Config, steps: int, clock: StepClock) -> Iterator[Trainer]:
    """Yield a trainer of `steps` steps without interruptions, compiled as configured.

    `trainer.compile=auto` is decided for the steps of the config.
    """
    set_threads(config.trainer.threads)
    prepared = prepare(config.data, config.tokenizer)
    chosen = choose_compilation([Planned(config, prepared.tokenizer.n_vocab)])
    never = {"eval_every": None, "checkpoint_every": None, "sample_every": None}
    never |= {"patience": None, "guessing_patience": None}
    length = {"max_steps": steps, "log_every": steps}
    config = replace(config, trainer=replace(config.trainer, **length, **never))
    runtime = choose_runtime(config.trainer.device, config.trainer.precision)
    with temporary_trainer(config, prepared, runtime, clock, chosen) as trainer:
        clock.read(0)
        if chosen.compiled:
            trainer.compile()
        yield trainer


def _round(measured: Measured, steps: int, warmup: int) -> Round:
    runtime = measured.runtime
    clock = StepClock(runtime.device)
    with ready_trainer(measured.config, warmup + steps, clock) as trainer:
        trainer.train()
        if trainer.stopped_by is not None:
            raise Interrupted(trainer.stopped_by)
        started = time.perf_counter()  # the loop has evaluated before, so this is warm
        evaluate(trainer.model, trainer.data.val, runtime, objective=trainer.objective)
        evaluation = time.perf_counter() - started
    measured.flops_per_token = trainer.model.flops_per_token(trainer.options.micro_batch_size)
    (_, start), (_, first) = clock.readings[:2]
    memory = peak_memory_bytes(runtime.device)
    return Round(first - start, clock.seconds(warmup), evaluation, memory)
