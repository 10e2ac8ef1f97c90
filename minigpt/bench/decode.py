"""Measure the time per generated token, after the prompt."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from minigpt.bench.measure import Design, Result, Times
from minigpt.config.schema import Config
from minigpt.inference.generate import generate
from minigpt.model import GPT
from minigpt.report.tables import Cell, Column, Table
from minigpt.runtime import choose_runtime, set_threads, synchronize

N_VOCAB = 65
COLUMNS = [
    Column("config", "config"),
    Column("batch", "batch"),
    Column("prompt", "time to first token, ms (quartiles)"),
    Column("token", "ms per decoding step (quartiles)"),
    Column("tokens_per_second", "tokens/s, whole batch", digits=0),
    Column("ratio", "time / first row", digits=3),
]


def measure(design: Design, batch: Sequence[int], tokens: int, prompt: int, repeats: int) -> Result:
    """Generate text with untrained models, interleaved over configs and batch sizes.

    The context is block_size tokens, as in training. The first round is not timed.
    """
    cases = [(label, config, n) for label, config in design.configs for n in batch]
    seconds: dict[tuple[str, int], list[tuple[float, float]]] = {}
    design.progress.total = (repeats + 1) * len(cases)
    for turn in range(repeats + 1):
        for label, config, n in design.progress.counted(cases):
            timed = decode(config, n, tokens, prompt)
            if turn:
                seconds.setdefault((label, n), []).append(timed)
    rows: list[list[Cell]] = []
    firsts: dict[int, float] = {}
    for (label, n), turns in seconds.items():
        starts = Times([start for start, _ in turns])
        token = Times([rest / (tokens - 1) for _, rest in turns])
        ratio = token.median / firsts.setdefault(n, token.median)
        speeds = (token.describe(digits=3), n / token.median, ratio)
        rows.append([label, str(n), starts.describe(), *speeds])
    note = f"Prompts of {prompt} tokens, {tokens} tokens each; sampled at temperature 1."
    return Result(Table("decode", "Decoding", COLUMNS, rows, note))


def decode(config: Config, batch: int, n_tokens: int, prompt: int) -> tuple[float, float]:
    """Decode random prompts with an untrained model.

    Returns the seconds to the first token, and from there to the last.
    """
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
    first = time.perf_counter()  # tokens are Python ints, so the device has finished
    for _ in texts:
        pass
    return first - started, time.perf_counter() - first
