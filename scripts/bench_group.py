"""What each choice of a config group costs: time and memory of one layer by backend and length.

    python scripts/bench_group.py positional --out docs/positional_cost.md
    python scripts/bench_group.py attention --lengths 256,512,1024,2048,4096,8192 --tokens 8192

A model of one layer (4 heads of 32) reads so many tokens in windows of each length, forward and
backward, in fp32; where a backend cannot train here, forward alone, marked f. Median of the
repeats, choices in alternation, so that a busy moment strikes all alike. Memory is what a forward
pass keeps for the backward pass, weights left out.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
from tables import table

from minigpt.bench.measure import device_here, kept_bytes
from minigpt.config.compose import composed_config
from minigpt.config.groups import config_directory
from minigpt.model import GPT
from minigpt.model.backends import BACKENDS
from minigpt.model.compatibility import backend_limit

N_VOCAB = 65


@dataclass(frozen=True)
class Cost:
    """Of one choice at one length: `kept` bytes, None where it cannot train."""

    seconds: float
    kept: int | None
    parameters: int

    @property
    def ms(self) -> str:
        """Milliseconds, marked where they are of a forward pass alone."""
        return f"{1000 * self.seconds:.1f}{' f' if self.kept is None else ''}"

    @property
    def mb(self) -> str:
        """Megabytes."""
        return "" if self.kept is None else f"{self.kept / 1e6:.0f}"


Costs = dict[str, dict[int, Cost]]
"""By choice and length."""


def main() -> None:
    """Print the tables, and write them where asked to."""
    parser = argparse.ArgumentParser(description="Cost of each choice of a config group.")
    parser.add_argument("group", choices=("positional", "attention", "ffn", "norm"))
    parser.add_argument("--lengths", default="64,256,1024,4096")
    parser.add_argument("--backends", default=",".join(BACKENDS))
    parser.add_argument("--tokens", type=int, default=4096, help="in all windows together")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    lengths = [int(length) for length in options.lengths.split(",")]
    lines = [
        f"# What each {options.group}= costs",
        "",
        *about("scripts/bench_group.py", options.tokens, options.repeats),
    ]
    for backend in options.backends.split(","):
        costs = measure(options.group, backend, lengths, options.tokens, options.repeats)
        lines += ["", f"## backend={backend}", "", *rows(options.group, costs)]
    print("\n".join(lines))
    if options.out is not None:
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def about(script: str, tokens: int, repeats: int) -> list[str]:
    """Where and how it was measured."""
    device = device_here()
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU ({platform.machine()})"
    return [
        f"Written by `{script}`: {name}, {torch.get_num_threads()} threads,",
        f"torch {torch.__version__}, {date.today()}. {tokens:,} tokens in windows of each length",
        "through one layer (4 heads of 32 channels), forward and backward, fp32; f marks forward",
        f"alone (the backend cannot train here). ms: median of {repeats}. MB: kept for the",
        "backward pass, weights left out. params: of what is compared.",
    ]


def rows(group: str, costs: Costs) -> list[str]:
    """A table, a line a choice; parameters stand once where they are the same at every length."""
    lengths = [*next(iter(costs.values()))]
    grow = any(len({c.parameters for c in found.values()}) > 1 for found in costs.values())
    columns = ("ms", "MB", "params") if grow else ("ms", "MB")
    head = [group, *([] if grow else ["params"])]
    head += [f"{column} {length}" for length in lengths for column in columns]
    lines = []
    for name, found in costs.items():
        each = [(c.ms, c.mb, f"{c.parameters:,}") for c in found.values()]
        cells = [cell for cost in each for cell in cost[: len(columns)]]
        lines.append([f"`{name}`", *([] if grow else [each[0][2]]), *cells])
    return table(head, lines)


def measure(
    group: str,
    backend: str,
    lengths: list[int],
    n_tokens: int,
    repeats: int,
    overrides: dict[str, list[str]] | None = None,
) -> Costs:
    """The cost of every choice that the backend computes. `overrides`: more of them, by choice."""
    device = device_here()
    names = sorted(file.stem for file in (config_directory() / group).glob("*.yaml"))
    costs: Costs = {}
    for length in lengths:
        tokens = torch.randint(N_VOCAB, (max(1, n_tokens // length), length), device=device)
        models, trains = {}, {}
        for name in names:
            chosen = [f"{group}={name}", f"model.block_size={length}", "model.n_layer=1"]
            model = GPT(
                composed_config([*chosen, *(overrides or {}).get(name, [])]).model, N_VOCAB
            ).to(device)
            model.backend = BACKENDS[backend]
            able = [
                backend_limit(model.config, backend, device, use) is None
                for use in ("train", "decode")
            ]
            if any(able):
                trains[name] = able[0]
                models[name] = model.requires_grad_(able[0])
        seconds: dict[str, list[float]] = {name: [] for name in models}
        for repeat in range(repeats + 1):
            for name, model in models.items():
                started = time.perf_counter()
                loss = model.loss(tokens, tokens)
                if trains[name]:
                    loss.backward()
                if device == "cuda":
                    torch.cuda.synchronize()
                if repeat:  # the first one warms up
                    seconds[name].append(time.perf_counter() - started)
                model.zero_grad()
                del loss
        for name, model in models.items():
            module = model.get_submodule(group) if group in ("positional", "attention") else model
            n_parameters = sum(p.numel() for p in module.parameters())
            kept = kept_bytes(model, tokens) if trains[name] else None
            cost = Cost(statistics.median(seconds[name]), kept, n_parameters)
            costs.setdefault(name, {})[length] = cost
    return costs


if __name__ == "__main__":
    main()
