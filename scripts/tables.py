"""What the tables of runs share: reading runs by choice and seed, intervals, Markdown."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from minigpt.report.statistics import half_intervals

Runs = dict[str, list[dict[str, Any]]]  # by choice, in the order of seeds


def read_all_seeds(folder: str) -> Runs:
    """What each finished run found, by choice, at the lengths that all were evaluated at.

    Exits where seeds are missing or few.
    """
    runs = read(Path(folder))
    every = [run for found in runs.values() for run in found]
    lengths = set.intersection(*({*run["lengths"]} for run in every)) if every else set()
    for run in every:
        run["lengths"] = {n: loss for n, loss in run["lengths"].items() if n in lengths}
    seeds = sorted({run["seed"] for found in runs.values() for run in found})
    for name, found in runs.items():
        if [run["seed"] for run in found] != seeds:
            raise SystemExit(f"{folder}/{name}: not every seed of {seeds} is finished")
    if len(seeds) < 2:
        raise SystemExit(f"{folder}: one seed has no interval; train two or more (SEEDS='1 2 3')")
    return runs


def read(folder: Path) -> Runs:
    """What each finished run found, by choice, best validation loss first."""
    runs: Runs = {}
    for file in sorted(folder.glob("*/seed_*/result.json")):
        result = json.loads(file.read_text())
        if result["status"] == "finished":
            evaluated = json.loads(file.with_name("eval.json").read_text())["last"]
            lengths = {int(n): found["loss"] for n, found in evaluated["lengths"].items()}
            manifest = json.loads(file.with_name("manifest.json").read_text())
            config = OmegaConf.to_container(OmegaConf.load(file.with_name("config.yaml")))
            run = {**result, "lengths": lengths, "manifest": manifest, "config": config}
            run["path"] = file.parent
            runs.setdefault(file.parent.parent.name, []).append(run)
    for found in runs.values():
        found.sort(key=lambda run: run["seed"])
    return dict(sorted(runs.items(), key=lambda item: mean(values(item[1], "val_loss"))))


def values(runs: list[dict[str, Any]], key: str) -> list[float]:
    """A number of each run."""
    return [run[key] for run in runs]


def mean(numbers: Sequence[float]) -> float:
    """Their mean."""
    return statistics.fmean(numbers)


def interval(numbers: Sequence[float]) -> float:
    """Half of the 95 % t-interval of the mean of two numbers or more."""
    return float(half_intervals(np.asarray(numbers)))


def with_interval(numbers: Sequence[float], sign: str = "") -> str:
    """Mean and interval."""
    return f"{mean(numbers):{sign}.4f} ± {interval(numbers):.4f}"


def at(run: dict[str, Any], length: int | None) -> float:
    """A run's validation loss, at a context length or as trained."""
    return run["val_loss"] if length is None else run["lengths"][length]


def difference(runs: Runs, one: str, other: str, length: int | None = None) -> list[float]:
    """Validation loss of one choice minus another's, seed by seed."""
    pairs = zip(runs[one], runs[other], strict=True)
    return [at(a, length) - at(b, length) for a, b in pairs]


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of Markdown."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]
