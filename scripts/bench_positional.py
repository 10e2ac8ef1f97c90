"""What each positional scheme costs: time and memory of one layer by backend and length.

    python scripts/bench_positional.py [--lengths 64,256,1024,4096] [--out docs/positional_cost.md]

A model of one layer (4 heads of 32) reads so many tokens in windows of each length, forward and
backward, in fp32; where a backend cannot train here, forward alone, marked f. Median of the
repeats, schemes in alternation, so that a busy moment strikes all alike. Memory is what a forward
pass keeps for the backward pass, weights left out.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from datetime import date
from pathlib import Path

import torch

from minigpt.config import composed_config
from minigpt.model import GPT
from minigpt.model.backends import BACKENDS, why_not
from minigpt.model.positional import POSITIONAL

N_VOCAB, REPEATS = 65, 5


def main() -> None:
    """Print the table, and write it where asked to."""
    parser = argparse.ArgumentParser(description="Cost of each positional scheme.")
    parser.add_argument("--lengths", default="64,256,1024,4096")
    parser.add_argument("--backends", default=",".join(BACKENDS))
    parser.add_argument("--tokens", type=int, default=4096, help="in all windows together")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    lengths = [int(length) for length in options.lengths.split(",")]
    lines = page(device, lengths, options.backends.split(","), options.tokens)
    print("\n".join(lines))
    if options.out is not None:
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def page(device: str, lengths: list[int], backends: list[str], tokens: int) -> list[str]:
    """The tables as Markdown."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU ({platform.machine()})"
    lines = [
        "# What positional schemes cost",
        "",
        f"Written by `scripts/bench_positional.py`: {name}, {torch.get_num_threads()} threads,",
        f"torch {torch.__version__}, {date.today()}. {tokens:,} tokens in windows of each length",
        "through one layer (4 heads of 32 channels), forward and backward, fp32; f marks forward",
        f"alone (the backend cannot train here). ms: median of {REPEATS}. MB: kept for the",
        "backward pass, weights left out. params: the scheme's.",
    ]
    for backend in backends:
        columns = [f"{what} {n}" for n in lengths for what in ("ms", "MB", "params")]
        lines += ["", f"## backend={backend}", "", row(["scheme", *columns])]
        lines += [row(["---", *["---:"] * len(columns)])]
        cells: dict[str, list[str]] = {scheme: [] for scheme in POSITIONAL.names()}
        for length in lengths:
            for scheme, found in measure(device, backend, length, tokens).items():
                cells[scheme] += found
        lines += [row([f"`{scheme}`", *found]) for scheme, found in cells.items()]
    return lines


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def measure(device: str, backend: str, length: int, n_tokens: int) -> dict[str, list[str]]:
    """Time, memory and parameters of every scheme, as text."""
    tokens = torch.randint(N_VOCAB, (max(1, n_tokens // length), length), device=device)
    models, trains = {}, {}
    for scheme in POSITIONAL.names():
        overrides = [f"positional={scheme}", f"model.block_size={length}", "model.n_layer=1"]
        model = GPT(composed_config(overrides).model, N_VOCAB).to(device)
        model.backend = BACKENDS[backend]
        trains[scheme] = why_not(backend, "train", device, model.positional, model.config) is None
        models[scheme] = model.requires_grad_(trains[scheme])
    seconds: dict[str, list[float]] = {scheme: [] for scheme in models}
    for repeat in range(REPEATS + 1):
        for scheme, model in models.items():
            started = time.perf_counter()
            loss = model.loss(tokens, tokens)
            if trains[scheme]:
                loss.backward()
            if device == "cuda":
                torch.cuda.synchronize()
            if repeat:  # the first one warms up
                seconds[scheme].append(time.perf_counter() - started)
            model.zero_grad()
    memory = {scheme: kept_bytes(model, tokens) for scheme, model in models.items()}
    return {
        scheme: [
            f"{1000 * statistics.median(seconds[scheme]):.1f}{'' if trains[scheme] else ' f'}",
            f"{memory[scheme] / 1e6:.0f}" if trains[scheme] else "",
            f"{model.parameter_counts()['positional']:,}",
        ]
        for scheme, model in models.items()
    }


def kept_bytes(model: GPT, tokens: torch.Tensor) -> int:
    """Bytes that a forward pass keeps for the backward pass, without the weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # a function that held its own result would not be freed

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model.loss(tokens, tokens)
    del loss  # until now it held what was kept, so that no address was used twice
    return sum(kept.values())


if __name__ == "__main__":
    main()
