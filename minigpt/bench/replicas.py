"""Measure several runs of one design: sequentially, and as one batched program."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

from minigpt.bench.measure import Design, Result, Times, alternately
from minigpt.bench.train import temporary_trainer
from minigpt.data.prepare import prepare
from minigpt.errors import UserError
from minigpt.model.compatibility import replica_problems
from minigpt.report.tables import Cell, Column, Table
from minigpt.runtime import choose_runtime, set_threads
from minigpt.train.display import Display
from minigpt.train.replicas import Program, step

COLUMNS = [
    Column("how", "method"),
    Column("step", "step per run, ms (quartiles)"),
    Column("tokens_per_second", "tokens/s, all runs", digits=0),
    Column("ratio", "speed-up", digits=3),
    Column("first_step", "first step, s", digits=2),
]


def measure(design: Design, replicas: int, steps: int, warmup: int, repeats: int) -> Result:
    """Time steps of runs with different seeds by both methods, after `warmup` rounds.

    Raises UserError for a design that cannot train as replicas.
    """
    config = design.configs[0][1]
    for problem in replica_problems(config.model):
        raise UserError(str(problem))
    set_threads(config.trainer.threads)
    runtime = choose_runtime(config.trainer.device, config.trainer.precision)
    prepared = prepare(config.data, config.tokenizer)
    seeds = range(config.seed, config.seed + replicas)
    with ExitStack() as stack:
        trainers = [
            stack.enter_context(
                temporary_trainer(replace(config, seed=seed), prepared, runtime, Display(0))
            )
            for seed in seeds
        ]
        models = [trainer.model.train() for trainer in trainers]
        program = Program(models, runtime, config.trainer.compile is True)

        def one_after_the_other() -> None:
            for trainer in trainers:
                trainer.take_step()
            design.progress.advance()

        def together() -> None:
            step(program, trainers)
            design.progress.advance()

        design.progress.total = 2 * (1 + warmup + repeats * steps)
        ways = {"sequential": one_after_the_other, "together": together}
        firsts = alternately(ways, 1, 0, runtime.device)
        times = alternately(ways, repeats * steps, warmup, runtime.device)
    tokens = replicas * config.trainer.batch_size * config.model.block_size
    base = times["sequential"].median
    rows: list[list[Cell]] = []
    for way, each in times.items():
        per_run = Times([seconds / replicas for seconds in each.seconds]).describe()
        ratio = base / each.median
        rows.append([way, per_run, tokens / each.median, ratio, firsts[way].median])
    size = f"{tokens // replicas} tokens per step in {runtime.precision}, optimizer included"
    note = f"{replicas} runs of {size}."
    return Result(Table("replicas", "Several runs at once", COLUMNS, rows, note))
