"""Measure one layer with every choice of a config group, by backend and context length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from minigpt.bench.attention import one_layer, random_windows, time_layers
from minigpt.bench.measure import kept_bytes
from minigpt.config.groups import config_directory
from minigpt.model import GPT
from minigpt.report.tables import Cell, Column, Table

GROUPS = ("positional", "attention", "ffn", "norm")
# A query attends to 64 keys, or has 64 features, at every length; `full` and `landmark` aside.
SPANS = {
    "sliding_window": ["model.attention.window=64"],
    "chunked": ["model.attention.chunk=64"],
    "bigbird": ["model.attention.block=16"],
    "performer": ["model.attention.features=64"],
    "landmark": ["model.attention.block=32", "model.attention.retrieved=7"],
}


@dataclass
class Cost:
    """Costs of one choice with one backend, in the order of the lengths."""

    trains: bool
    ms: list[float] = field(default_factory=list)
    megabytes: list[float | None] = field(default_factory=list)  # None: the backend cannot train it
    parameters: list[int] = field(default_factory=list)


def measure_group(
    group: str,
    overrides: Sequence[str],
    backends: Sequence[str],
    lengths: Sequence[int],
    n_tokens: int,
    repeats: int,
    device: str,
) -> Table:
    """Measure each choice of a config group; choices and spans come before `overrides`.

    The choices of one backend and length are timed in alternation. Where a backend can only decode
    a choice, the forward pass alone is timed.
    """
    costs: dict[tuple[str, str], Cost] = {}
    for backend in backends:
        for length in lengths:
            tokens = random_windows(n_tokens, length, device)
            models: dict[str, GPT] = {}
            for choice in sorted(f.stem for f in (config_directory() / group).glob("*.yaml")):
                spans = SPANS.get(choice, []) if group == "attention" else []
                chosen = [f"{group}={choice}", *spans, *overrides]
                for use in ("train", "decode"):
                    model = one_layer(chosen, length, backend, device, use)
                    if model is not None:
                        models[choice] = model
                        costs.setdefault((backend, choice), Cost(trains=use == "train"))
                        break
            for choice, times in time_layers(models, tokens, repeats, device).items():
                cost, model = costs[backend, choice], models[choice]
                part = model.get_submodule(group) if group in ("positional", "attention") else model
                cost.ms.append(1000 * times.median)
                cost.megabytes.append(kept_bytes(model, tokens) / 1e6 if cost.trains else None)
                cost.parameters.append(sum(p.numel() for p in part.parameters()))
    return _table(group, costs, lengths, f"{n_tokens:,} tokens", repeats)


def _table(
    group: str, costs: dict[tuple[str, str], Cost], lengths: Sequence[int], size: str, repeats: int
) -> Table:
    """Return one row per backend and choice; parameters per length only where they grow."""
    grow = any(len({*cost.parameters}) > 1 for cost in costs.values())
    columns = [Column("backend", "backend"), Column(group, group), Column("passes", "passes")]
    columns += [] if grow else [Column("parameters", "parameters")]
    for length in lengths:
        columns += [
            Column(f"ms_{length}", f"ms {length}", 1),
            Column(f"mb_{length}", f"MB {length}", 0),
        ]
        columns += [Column(f"parameters_{length}", f"parameters {length}")] if grow else []
    rows: list[list[Cell]] = []
    for (backend, choice), cost in costs.items():
        row: list[Cell] = [backend, choice, "both" if cost.trains else "forward"]
        row += [] if grow else [cost.parameters[0]]
        for ms, megabytes, parameters in zip(cost.ms, cost.megabytes, cost.parameters, strict=True):
            row += [ms, megabytes, parameters] if grow else [ms, megabytes]
        rows.append(row)
    counted = f"the {group} module" if group in ("positional", "attention") else "the model"
    note = (
        f"One layer and the head in fp32, {size} in windows of each length. Passes: forward and "
        f"backward, or forward alone where the backend cannot train the choice. ms: median of "
        f"{repeats} passes. MB: saved for the backward pass, weights excluded. Parameters: of "
        f"{counted}."
    )
    if group == "attention":
        note += f" Options: {', '.join(option for spans in SPANS.values() for option in spans)}."
    return Table("group", f"Cost of each {group}", columns, rows, note)
