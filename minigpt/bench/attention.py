"""Measure one layer by backend and context length: time, and memory saved for backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from minigpt.bench.measure import Times, alternately, kept_bytes
from minigpt.config.compose import composed_config
from minigpt.model import GPT
from minigpt.model.backends import BACKENDS
from minigpt.model.compatibility import backend_limit
from minigpt.report.tables import Cell, Column, Table

N_VOCAB = 65


def one_layer(
    overrides: Sequence[str],
    length: int,
    backend: str,
    device: str,
    use: Literal["train", "decode"] = "train",
) -> GPT | None:
    """Build a design with one layer and a block size; None if the backend does not support it.

    `use`: train or decode. A model to decode with has no gradients.
    """
    config = composed_config([*overrides, f"model.block_size={length}", "model.n_layer=1"]).model
    model = GPT(config, N_VOCAB).to(device)
    if use == "decode":
        model.requires_grad_(False)
    if backend_limit(model.config, backend, device, use) is not None:
        return None
    model.backend_name, model.backend = backend, BACKENDS[backend]
    return model


def time_layers(
    models: dict[str, GPT], tokens: torch.Tensor, repeats: int, device: str
) -> dict[str, Times]:
    """Time a pass of each model in alternation: forward, and backward if it has gradients."""

    def step(model: GPT) -> None:
        loss = model.loss(tokens, tokens)
        if loss.requires_grad:
            loss.backward()
        model.zero_grad()

    steps = {name: lambda model=model: step(model) for name, model in models.items()}
    return alternately(steps, repeats, warmup=1, device=device)


def random_windows(n_tokens: int, length: int, device: str) -> torch.Tensor:
    """Draw about `n_tokens` random tokens as (windows, length), one window at least."""
    return torch.randint(N_VOCAB, (max(1, n_tokens // length), length), device=device)


def measure_attention(
    overrides: Sequence[str], lengths: Sequence[int], n_tokens: int, repeats: int, device: str
) -> Table:
    """Measure one design with every backend that can train it, at each context length."""
    rows: list[list[Cell]] = []
    for length in lengths:
        tokens = random_windows(n_tokens, length, device)
        candidates = {name: one_layer(overrides, length, name, device) for name in BACKENDS}
        models = {name: model for name, model in candidates.items() if model is not None}
        times = time_layers(models, tokens, repeats, device)
        first = next(iter(times.values())).median
        for name, repeated in times.items():
            rows.append(
                [
                    str(length),
                    name,
                    repeated.describe(),
                    repeated.median / first,
                    tokens.numel() / repeated.median,
                    kept_bytes(models[name], tokens) / 1e6,
                ]
            )
    columns = [
        Column("length", "length"),
        Column("backend", "backend"),
        Column("time", "ms (quartiles)"),
        Column("ratio", "ratio to the first", digits=3),
        Column("tokens_per_second", "tokens/s", digits=0),
        Column("kept", "saved for backward, MB", digits=0),
    ]
    note = f"One layer and the head, {n_tokens:,} tokens, forward and backward in fp32."
    return Table("attention", "One layer by backend and length", columns, rows, note)
