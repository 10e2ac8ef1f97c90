"""Measure several runs of one design: one after the other, and as one batched program."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from minigpt.bench.measure import Times, alternately
from minigpt.config.schema import Config
from minigpt.data.prepare import prepare
from minigpt.errors import UserError
from minigpt.logger import LOGGERS, LoggerConfig, RunInfo
from minigpt.model.compatibility import replica_problems
from minigpt.report.tables import Cell, Column, Table
from minigpt.run.directory import RunDirectory
from minigpt.runtime import choose_runtime, set_threads
from minigpt.train.display import Display
from minigpt.train.replicas import Program, step
from minigpt.train.setup import set_up
from minigpt.train.trainer import Trainer

COLUMNS = [
    Column("how", "how"),
    Column("step", "step per run, ms (quartiles)"),
    Column("tokens_per_second", "tokens/s, all runs", digits=0),
    Column("ratio", "speed-up", digits=3),
    Column("first_step", "first step, s", digits=2),
]


def measure_replicas(config: Config, n: int, steps: int, warmup: int) -> Table:
    """Time steps of `n` runs with different seeds, both ways in turns, after `warmup` turns.

    Raises UserError for a design that cannot train as replicas.
    """
    for problem in replica_problems(config.model):
        raise UserError(str(problem))
    set_threads(config.trainer.threads)
    runtime = choose_runtime(config.trainer.device, config.trainer.precision)
    prepared = prepare(config.data, config.tokenizer)
    prepared.tokens.require_block(config.model.block_size)
    with ExitStack() as stack:
        trainers: list[Trainer] = []
        for seed in range(n):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="minigpt_bench_"))
            one, run = replace(config, seed=config.seed + seed), RunDirectory(Path(folder))
            logger = LOGGERS.build(
                LoggerConfig("none"), RunInfo(run.path, "bench", None, [], {}, None)
            )
            trainers.append(Trainer(set_up(one, prepared, runtime), run, Display(0), logger))
        models = [trainer.model.train() for trainer in trainers]
        program = Program(models, runtime, config.trainer.compile)

        def one_after_the_other() -> None:
            for trainer in trainers:
                trainer.update([trainer.backward(batch) for batch in trainer.draw()])

        ways = {
            "one after the other": one_after_the_other,
            "together": lambda: step(program, trainers),
        }
        firsts = alternately(ways, 1, 0, runtime.device)
        times = alternately(ways, steps, warmup, runtime.device)
    tokens = n * config.trainer.batch_size * config.model.block_size
    base = times["one after the other"].median
    rows: list[list[Cell]] = [
        [
            way,
            Times([seconds / n for seconds in each.seconds]).describe(),
            tokens / each.median,
            base / each.median,
            firsts[way].median,
        ]
        for way, each in times.items()
    ]
    note = f"{n} runs of {tokens // n} tokens per step in {runtime.precision}, optimizer included."
    return Table("replicas", "Runs together", COLUMNS, rows, note)
