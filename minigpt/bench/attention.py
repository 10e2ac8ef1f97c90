"""Measure one layer by backend and context length: time, and memory saved for backward."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from minigpt.bench.measure import Design, Result, Times, alternately, kept_bytes
from minigpt.config.compose import composed_config
from minigpt.model import GPT
from minigpt.model.backends import BACKENDS
from minigpt.model.compatibility import Use, backend_limit
from minigpt.report.tables import Cell, Column, Table

N_VOCAB = 65
COLUMNS = [
    Column("length", "length"),
    Column("backend", "backend"),
    Column("time", "ms (quartiles)"),
    Column("ratio", "time / first row", digits=3),
    Column("tokens_per_second", "tokens/s", digits=0),
    Column("kept", "saved for backward, MB", digits=0),
]


def one_layer(
    overrides: Sequence[str],
    length: int,
    backend: str,
    device: str,
    use: Use = "training",
) -> GPT | None:
    """Build a design with one layer and a block size; None if the backend does not support it.

    For inference its parameters have no gradients.
    """
    config = composed_config([*overrides, f"model.block_size={length}", "model.n_layer=1"]).model
    model = GPT(config, N_VOCAB).to(device)
    if use == "inference":
        model.requires_grad_(False)
    if backend_limit(model.config, backend, device, use) is not None:
        return None
    model.backend_name = backend
    model.set_backend(BACKENDS[backend])
    return model


def time_layers(
    models: dict[str, GPT], tokens: torch.Tensor, repeats: int, device: str
) -> dict[str, Times]:
    """Time interleaved passes of the models: forward, and backward if it has gradients."""

    def step(model: GPT) -> None:
        loss = model.loss(tokens, tokens)
        if loss.requires_grad:
            loss.backward()
        model.zero_grad()

    steps = {name: lambda model=model: step(model) for name, model in models.items()}
    return alternately(steps, repeats, warmup=1, device=device)


def random_windows(n_tokens: int, length: int, device: str) -> torch.Tensor:
    """Draw about `n_tokens` random tokens as (windows, length), with at least one window."""
    return torch.randint(N_VOCAB, (max(1, n_tokens // length), length), device=device)


def measure(design: Design, lengths: Sequence[int], tokens: int, repeats: int) -> Result:
    """Measure one design with every backend that can train it, at each context length."""
    rows: list[list[Cell]] = []
    design.progress.total = len(lengths)
    for length in design.progress.counted(lengths):
        windows = random_windows(tokens, length, design.device)
        models: dict[str, GPT] = {}
        for name in BACKENDS:
            model = one_layer(design.overrides, length, name, design.device)
            if model is not None:
                models[name] = model
        times = time_layers(models, windows, repeats, design.device)
        first = next(iter(times.values())).median
        for name, passes in times.items():
            speed, kept = windows.numel() / passes.median, kept_bytes(models[name], windows) / 1e6
            ratio = passes.median / first
            rows.append([str(length), name, passes.describe(), ratio, speed, kept])
    note = f"One layer and the head, {tokens:,} tokens, forward and backward in fp32."
    return Result(Table("attention", "One layer by backend and length", COLUMNS, rows, note))
