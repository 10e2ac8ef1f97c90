"""Measure one layer with every choice of a config group, by backend and context length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from minigpt.bench.attention import one_layer, random_windows, time_layers
from minigpt.bench.measure import Design, Result, kept_bytes
from minigpt.config.groups import config_directory
from minigpt.errors import require_one_of
from minigpt.model import GPT
from minigpt.model.backends import BACKENDS
from minigpt.model.compatibility import USES
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


class Cost(NamedTuple):
    """The cost of one choice with one backend at one length."""

    ms: float
    megabytes: float | None  # None if the backend cannot train the choice
    parameters: int


def measure(
    design: Design, group: str, lengths: Sequence[int], tokens: int, backends: str, repeats: int
) -> Result:
    """Measure each choice of a config group; choices and spans come before the overrides.

    The choices for one backend and length are interleaved. If a backend supports a choice only in
    inference, only the forward pass is timed. Raises UserError for an unknown group or backend.
    """
    require_one_of("GROUP", group, GROUPS)
    names = backends.split(",")
    for backend in names:
        require_one_of("--backends", backend, BACKENDS)
    has_module = group in ("positional", "attention")
    costs: dict[tuple[str, str], list[Cost]] = {}
    design.progress.total = len(names) * len(lengths)
    for backend in names:
        for length in design.progress.counted(lengths):
            windows = random_windows(tokens, length, design.device)
            models = _models(design, group, length, backend)
            for choice, times in time_layers(models, windows, repeats, design.device).items():
                model = models[choice]
                part = model.get_submodule(group) if has_module else model
                n_parameters = sum(p.numel() for p in part.parameters())
                trains = any(p.requires_grad for p in model.parameters())
                megabytes = kept_bytes(model, windows) / 1e6 if trains else None
                cost = Cost(1000 * times.median, megabytes, n_parameters)
                costs.setdefault((backend, choice), []).append(cost)
    columns = [Column("backend", "backend"), Column(group, group), Column("passes", "passes")]
    # Parameters have a column per length only if they depend on it.
    grow = any(len({cost.parameters for cost in each}) > 1 for each in costs.values())
    columns += [] if grow else [Column("parameters", "parameters")]
    for n in lengths:
        columns += [Column(f"ms_{n}", f"ms {n}", 1), Column(f"mb_{n}", f"MB {n}", 0)]
        columns += [Column(f"parameters_{n}", f"parameters {n}")] if grow else []
    rows: list[list[Cell]] = []
    for (backend, choice), each in costs.items():
        row: list[Cell] = [backend, choice, "forward" if each[0].megabytes is None else "both"]
        row += [] if grow else [each[0].parameters]
        for cost in each:
            row += cost if grow else cost[:2]
        rows.append(row)
    note = (
        f"One layer and the head in fp32, {tokens:,} tokens in windows of each length. Passes: "
        f"forward and backward, or only forward if the backend cannot train the choice. ms: "
        f"median of {repeats} passes. MB: saved for the backward pass, weights excluded. "
        f"Parameters: of {f'the {group} module' if has_module else 'the model'}."
    )
    if group == "attention":
        note += f" Options: {', '.join(option for spans in SPANS.values() for option in spans)}."
    return Result(Table("group", f"Cost of each {group}", columns, rows, note))


def _models(design: Design, group: str, length: int, backend: str) -> dict[str, GPT]:
    """Return a model of each choice that the backend supports, at least for inference."""
    models = {}
    for choice in sorted(file.stem for file in (config_directory() / group).glob("*.yaml")):
        spans = SPANS.get(choice, []) if group == "attention" else []
        chosen = [f"{group}={choice}", *spans, *design.overrides]
        for use in USES:
            model = one_layer(chosen, length, backend, design.device, use)
            if model is not None:
                models[choice] = model
                break
    return models
