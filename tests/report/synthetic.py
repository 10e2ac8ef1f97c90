"""Synthetic run directories, with the files that training writes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import yaml

from minigpt.report.comparison import Comparison

SHA = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
OPTIONS: dict[str, dict[str, Any]] = {
    "learned": {},
    "rope": {"base": 10000.0, "fraction": 1.0},
    "alibi": {"slopes": "fixed"},
}


def config(positional: str = "rope", seed: int = 1, **changes: Any) -> dict[str, Any]:
    """A config.yaml; `changes` are dotted keys with __ for the dot."""
    values: dict[str, Any] = {
        "defaults": ["runtime", "_self_"],
        "resume": None,
        "name": None,
        "group": "sweep",
        "tags": [],
        "seed": seed,
        "data": {"name": "tinyshakespeare", "dir": "/somewhere/data", "train_fraction": 0.9},
        "tokenizer": {"name": "char"},
        "model": {
            "name": "rope",
            "n_layer": 2,
            "n_embd": 16,
            "block_size": 8,
            "positional": {"name": positional, **OPTIONS.get(positional, {})},
            "norm": {"placement": "pre", "kind": "layernorm"},
            "backend": {"name": "eager"},
        },
        "optimizer": {"name": "adamw", "lr": 0.004},
        "trainer": {"max_steps": 40, "batch_size": 4, "threads": 1, "sample_prompt": "\n"},
        "logger": {"name": "none"},
    }
    for key, value in changes.items():
        section = values
        *parents, last = key.split("__")
        for parent in parents:
            section = section[parent]
        section[last] = value
    return values


def make_run(
    path: Path,
    settings: dict[str, Any],
    loss: float = 1.5,
    status: str | None = "finished",
    manifest: dict[str, Any] | None = None,
    result: dict[str, Any] | None = None,
    evaluated: bool = False,
) -> Path:
    """Write a run with a final validation loss; with `status` None it has not ended."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    seed, steps = settings["seed"], settings["trainer"]["max_steps"]
    about = {
        "command": ["minigpt", "train", f"seed={seed}"],
        "started": f"2026-11-25T10:{seed:02d}:00+00:00",
        "minigpt": "0.1.0",
        "commit": "a" * 40,
        "python": "3.11.7",
        "platform": "Linux",
        "versions": {"torch": "2.13.0"},
        "device": "cpu",
        "backend": "eager",
        "data_sha256": SHA,
        "characters": {"train": 900, "val": 100},
        "tokenizer_sha256": settings["tokenizer"]["name"],
        "tracker_id": f"id{seed}",
    }
    _write(path / "manifest.json", about | (manifest or {}))
    tokens = settings["trainer"]["batch_size"] * settings["model"]["block_size"]
    lines = []
    for step in range(10, steps + 1, 10):
        now = loss + 20 / step
        seconds = step / 10 + seed / 100
        train = {"step": step, "train_loss": now, "tokens": step * tokens, "seconds": seconds}
        val = {"step": step, "val_loss": now, "val_bits_per_byte": now / math.log(2)}
        lines += [train, {**val, "seconds": seconds}]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "samples.txt").write_text(f"--- step {steps} ---\nThe <king> & seed {seed}.\n\n")
    if status is not None:
        done = {
            "status": status,
            "seed": seed,
            "steps": steps,
            "train_loss": loss - 0.1,
            "val_loss": loss,
            "best_val_loss": loss,
            "val_perplexity": math.exp(loss),
            "val_bits_per_byte": loss / math.log(2),
            "parameters": {"total": 1000, "active": 1000, "non_embedding": 900, "positional": 0},
            "flops_per_token": 6000,
            "tokens_per_second": 1000.0 + seed,
            "seconds": 4.0 + seed / 10,
            "peak_memory_bytes": 2**20 * (100 + seed),
            "device": "cpu",
            "precision": "fp32",
        }
        _write(path / "result.json", done | (result or {}))
    if evaluated:
        curves = {
            "weights_sha256": "0",
            "lengths": {
                "8": {"loss": loss, "bits_per_byte": loss / math.log(2)},
                "16": {"loss": loss + 0.1, "bits_per_byte": (loss + 0.1) / math.log(2)},
                "32": {"loss": None, "bits_per_byte": None, "undefined": "8 positions"},
            },
            "by_position": {"8": [loss + 1 / n for n in range(1, 9)]},
        }
        _write(path / "eval.json", {"last": curves})
    return path


def make_sweep(
    top: Path, designs: dict[str, dict[str, Any]], seeds: tuple[int, ...] = (1, 2, 3)
) -> Path:
    """Write runs of several designs and seeds; the loss of the n-th design is 0.1 n higher."""
    for place, (name, changes) in enumerate(designs.items()):
        for seed in seeds:
            loss = 1.5 + 0.1 * place + 0.01 * seed + 0.001 * ((place * 7 + seed * 3) % 5)
            make_run(
                top / f"{name}_seed={seed}",
                config(seed=seed, **changes),
                loss,
                manifest={
                    "started": f"2026-11-25T{10 + place // 60:02d}:{place % 60:02d}:{seed:02d}"
                },
                evaluated=True,
            )
    return top


POSITIONS = {name: {"positional": name} for name in OPTIONS}


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content))


def labels(comparison: Comparison) -> list[str]:
    return [design.label for design in comparison.designs]


def warned(comparison: Comparison, *words: str) -> bool:
    """Whether one warning has all the words."""
    return any(all(word in line for word in words) for line in comparison.warnings)
