"""Measure the time of a generated token, after the prompt."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from minigpt.bench.measure import Times, synchronize
from minigpt.config.schema import Config
from minigpt.inference.generate import generate
from minigpt.model import GPT
from minigpt.report.tables import Cell, Column, Table
from minigpt.runtime import choose_runtime, set_threads

N_VOCAB = 65
COLUMNS = [
    Column("config", "config"),
    Column("batch", "texts"),
    Column("prompt", "prompt and first token, ms (quartiles)"),
    Column("token", "ms per token of each text (quartiles)"),
    Column("tokens_per_second", "tokens/s, all texts", digits=0),
    Column("ratio", "ratio to the first", digits=3),
]


def measure_decoding(
    configs: Sequence[tuple[str, Config]],
    batches: Sequence[int],
    n_tokens: int,
    prompt: int,
    repeats: int,
) -> Table:
    """Generate texts with untrained models, each config and number of texts in turns.

    The context is block_size tokens, as in training. The first turn is not timed.
    """
    prompts: dict[tuple[str, int], list[float]] = {}
    tokens: dict[tuple[str, int], list[float]] = {}
    for turn in range(repeats + 1):
        for label, config in configs:
            for batch in batches:
                first, rest = _decode(config, batch, n_tokens, prompt)
                if turn:
                    prompts.setdefault((label, batch), []).append(first)
                    tokens.setdefault((label, batch), []).append(rest / (n_tokens - 1))
    rows: list[list[Cell]] = []
    firsts = {batch: Times(tokens[configs[0][0], batch]).median for batch in batches}
    for (label, batch), seconds in tokens.items():
        each = Times(seconds)
        rows.append(
            [
                label,
                str(batch),
                Times(prompts[label, batch]).describe(),
                each.describe(digits=3),
                batch / each.median,
                each.median / firsts[batch],
            ]
        )
    note = f"Prompts of {prompt} tokens, {n_tokens} tokens each; sampled at temperature 1."
    return Table("decode", "Decoding", COLUMNS, rows, note)


def _decode(config: Config, batch: int, n_tokens: int, prompt: int) -> tuple[float, float]:
    """Return the seconds to the first token, and from there to the last."""
    set_threads(config.trainer.threads)
    runtime = choose_runtime(config.trainer.device, config.trainer.precision)
    torch.manual_seed(config.seed)
    model = GPT(config.model, N_VOCAB).to(runtime.device).eval()
    model.use_backend(runtime.device, runtime.precision == "bf16")
    prompts = torch.randint(N_VOCAB, (batch, prompt)).tolist()
    synchronize(runtime.device)
    started = time.perf_counter()
    texts = generate(model, prompts, n_tokens, seed=range(batch), runtime=runtime)
    next(texts)
    first = time.perf_counter()  # a token is a Python int, so the device has finished
    for _ in texts:
        pass
    return first - started, time.perf_counter() - first
