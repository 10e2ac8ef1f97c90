"""The model card of an exported folder: README.md with the learning curve of the run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from minigpt.config.pairs import as_typed, flat
from minigpt.config.schema import Config
from minigpt.export.architecture import Architecture
from minigpt.files import write_bytes, write_text
from minigpt.html import drawn

README, CURVE = "README.md", "learning_curve.png"
TITLES = {"train_loss": "training batch", "val_loss": "validation"}


def write_card(
    folder: Path,
    name: str,
    architecture: Architecture,
    config: Config,
    facts: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
) -> None:
    """Write README.md, and the learning curve if there is one, into a folder.

    `name`: of the run. `facts`: what METADATA says of it. `metrics`: the lines of metrics.jsonl.
    """
    curves = {
        key: [(line["step"], line[key]) for line in metrics if line.get(key) is not None]
        for key in TITLES
    }
    curves = {key: points for key, points in curves.items() if points}
    if curves:
        write_bytes(folder / CURVE, _plot(curves))
    picture = f"![training and validation loss by step]({CURVE})\n\n" if curves else ""
    write_text(folder / README, _text(name, architecture, config, facts, picture))


def _text(
    name: str, architecture: Architecture, config: Config, facts: Mapping[str, Any], picture: str
) -> str:
    result, versions = facts.get("result", {}), facts.get("versions", {})
    losses = {
        "validation loss": (result.get("val_loss"), "nats/token"),
        "bits per byte": (result.get("val_bits_per_byte"), "bits/byte"),
        "parameters": ((result.get("parameters") or {}).get("total"), ""),
        "steps": (result.get("steps"), ""),
        "seed": (config.seed, ""),
    }
    rows = [
        f"| {key} | {value:,.4f} {unit} |" if isinstance(value, float) else f"| {key} | {value:,} |"
        for key, (value, unit) in losses.items()
        if value is not None
    ]
    design = flat(config.to_dict()["model"], "model.")
    options = "\n".join(f"    {key}={as_typed(value)}" for key, value in design.items())
    commands = [facts.get("command", []), *facts.get("resumed", [])]
    lines = "\n".join(f"    {' '.join(command)}" for command in commands if command)
    origin = "".join(f"{line}\n" for line in _origin(facts))
    packages = ", ".join(f"{package} {version}" for package, version in versions.items())
    table = "\n".join(rows)
    sha = facts.get("data_sha256") or "unknown"
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [minigpt, {architecture.model_type}]
---
# {name}

A small GPT trained with minigpt on `data={config.data.name}`, as {architecture.name}.
It loads without other code, in transformers 5 or later:

    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained("FOLDER")
    tokenizer = AutoTokenizer.from_pretrained("FOLDER")

| | |
| --- | --- |
{table}

{picture}## Training

{lines or "    the command is unknown"}

{origin}Text: `data={config.data.name}`, sha256 {sha}. Tokenizer: `{config.tokenizer.name}`.
Versions: {packages or "unknown"}.

## Design

{options}

Dropout applies in training only. Rows of the padding of the vocabulary are left out.
`minigpt.json` has the whole config. `minigpt eval`, `sample` and `inspect` read this folder
as they read a run.
"""


def _origin(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each of base, adapter and teacher that a run has."""
    base, adapter, objective = (facts.get(key) for key in ("base", "adapter", "objective"))
    if base:
        yield f"Base: {_named(base)}."
    if adapter:
        options = {key: value for key, value in adapter.items() if key != "name"}
        values = ", ".join(f"{key}={as_typed(value)}" for key, value in options.items())
        yield f"Adapter: `{adapter['name']}` ({values}), merged into the weights."
    if objective:
        values = f"temperature={objective['temperature']}, weight={objective['weight']}"
        yield f"Teacher of distillation: {_named(objective['teacher'])} ({values})."


def _named(source: Mapping[str, Any]) -> str:
    return f"`{source['path']}`, checkpoint {source['checkpoint']}, sha256 {source['sha256']}"


def _plot(curves: Mapping[str, Sequence[tuple[int, float]]]) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.add_subplot()
    for key, points in curves.items():
        steps, losses = zip(*points, strict=True)
        marker = "." if len(points) < 50 else None
        axes.plot(steps, losses, label=TITLES[key], linewidth=1, marker=marker)
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats/token")
    axes.legend(frameon=False)
    return drawn(figure, "png")
