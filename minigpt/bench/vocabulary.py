"""Measure memory and time of a large vocabulary's logits, in chunks and all at once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import torch

from minigpt.bench.measure import Design, Result, Times, in_new_process
from minigpt.config.compose import composed_config
from minigpt.model import GPT
from minigpt.model.gpt import MAX_LOGITS
from minigpt.optim.optimizer import OPTIMIZERS
from minigpt.report.tables import Cell, Column, Table
from minigpt.runtime import choose_runtime, peak_memory_bytes, reset_peak_memory

VARIANTS = {"all at once": 2**62, "chunks": MAX_LOGITS}  # max_logits
STEPS = 4
COLUMNS = [
    Column("logits", "logits"),
    Column("memory", "peak memory of the steps, MB", digits=0),
    Column("ratio", "memory reduction (times)", digits=1),
    Column("step", "step, ms (quartiles)"),
    Column("loss", "loss, nats/token", digits=5),
]


class Steps(NamedTuple):
    """Peak memory beyond the one before the first step, seconds per step, and the last loss."""

    n_bytes: int
    seconds: float
    loss: float


def measure(design: Design, vocabulary: int, tokens: int, repeats: int) -> Result:
    """Train with each variant `repeats` times, interleaved, each time in a new process."""
    measured: dict[str, list[Steps]] = {name: [] for name in VARIANTS}
    design.progress.total = repeats * len(VARIANTS)
    for _ in range(repeats):
        for name, max_logits in design.progress.counted(VARIANTS.items()):
            steps = in_new_process(train_steps, design.overrides, vocabulary, tokens, max_logits)
            measured[name].append(steps)
    memory = {name: max(s.n_bytes for s in steps) / 1e6 for name, steps in measured.items()}
    rows: list[list[Cell]] = []
    for name, steps in measured.items():
        times, saving = Times([s.seconds for s in steps]), memory["all at once"] / memory[name]
        rows.append([name, memory[name], saving, times.describe(), steps[0].loss])
    note = f"experiment=seed_blog, {vocabulary:,} tokens in the vocabulary, {tokens:,} per step."
    return Result(Table("vocabulary", "Logits of a large vocabulary", COLUMNS, rows, note))


def train_steps(overrides: Sequence[str], n_vocab: int, n_tokens: int, max_logits: int) -> Steps:
    """Train a small model that computes at most `max_logits` logits at once."""
    config = composed_config(["experiment=seed_blog", *overrides])
    length = config.model.block_size
    runtime = choose_runtime(config.trainer.device, config.trainer.precision)
    torch.manual_seed(1)
    model = GPT(config.model, n_vocab).to(runtime.device)
    model.max_logits = 1  # first in chunks, for which torch imports more
    model.use_backend(runtime.device, runtime.precision == "bf16", "training")
    optimizer = OPTIMIZERS.build(config.optimizer, model)
    tokens = torch.randint(n_vocab, (max(1, n_tokens // length), length + 1)).to(runtime.device)

    def step(inputs: torch.Tensor, targets: torch.Tensor) -> float:
        with runtime.autocast():
            loss, _ = model.training_loss(inputs, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    step(tokens[:1, :2], tokens[:1, 1:3])  # allocates optimizer state and library buffers
    model.max_logits = max_logits
    reset_peak_memory(runtime.device)
    before = peak_memory_bytes(runtime.device) or 0
    started = time.perf_counter()
    losses = [step(tokens[:, :-1], tokens[:, 1:]) for _ in range(STEPS)]
    seconds = (time.perf_counter() - started) / STEPS
    return Steps((peak_memory_bytes(runtime.device) or 0) - before, seconds, losses[-1])
