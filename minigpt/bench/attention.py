"""What a layer costs by backend and length: time forward and backward, and what it keeps."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from minigpt.bench.measure import alternately, kept_bytes
from minigpt.config.compose import composed_config
from minigpt.model import GPT
from minigpt.model.backends import BACKENDS
from minigpt.model.compatibility import backend_limit
from minigpt.report.tables import Cell, Column, Table

N_VOCAB = 65


def layer(overrides: Sequence[str], length: int, backend: str, device: str) -> GPT | None:
    """A design of one layer at a block size under a backend; None where it cannot train here."""
    chosen = [*overrides, f"model.block_size={length}", "model.n_layer=1"]
    model = GPT(composed_config(chosen).model, N_VOCAB).to(device)
    if backend_limit(model.config, backend, device, "train") is not None:
        return None
    model.backend_name, model.backend = backend, BACKENDS[backend]
    return model


def measure_attention(
    overrides: Sequence[str], lengths: Sequence[int], n_tokens: int, repeats: int, device: str
) -> Table:
    """Every backend that trains, in alternation, over so many tokens in windows of each length."""
    rows: list[list[Cell]] = []
    for length in lengths:
        tokens = torch.randint(N_VOCAB, (max(1, n_tokens // length), length), device=device)
        made = {name: layer(overrides, length, name, device) for name in BACKENDS}
        models = {name: model for name, model in made.items() if model is not None}

        def step(model: GPT, tokens: torch.Tensor = tokens) -> None:
            model.loss(tokens, tokens).backward()
            model.zero_grad()

        things = {name: lambda model=model: step(model) for name, model in models.items()}
        found = alternately(things, repeats, warmup=1, device=device)
        first = next(iter(found.values())).median
        for name, times in found.items():
            rows.append(
                [
                    str(length),
                    name,
                    times.describe(),
                    times.median / first,
                    tokens.numel() / times.median,
                    kept_bytes(models[name], tokens) / 1e6,
                ]
            )
    columns = [
        Column("length", "length"),
        Column("backend", "backend"),
        Column("time", "ms (quartiles)"),
        Column("ratio", "over the first", digits=3),
        Column("tokens_per_second", "tokens/s", digits=0),
        Column("kept", "kept for backward, MB", digits=0),
    ]
    note = f"One layer and the head, {n_tokens:,} tokens, forward and backward in fp32."
    return Table("attention", "One layer by backend and length", columns, rows, note)
