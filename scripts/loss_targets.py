"""Losses that recipes for one GPU are to reach, with their seeds, and whether they do.

    python scripts/loss_targets.py speedrun                       # a loss in seconds
    python scripts/loss_targets.py best                           # the lowest loss, five seeds
    python scripts/loss_targets.py best --markdown docs/best.md   # the table as a page

The loss is of the last step: a schedule that ends at zero needs no choice among checkpoints, and
none is made by the split that is reported.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt.bench.measure import device_here, machine
from minigpt.report.statistics import interval
from minigpt.report.tables import Cell, Column, Table, to_markdown, to_plain


@dataclass(frozen=True)
class Target:
    """What the mean over seeds is to be at most: nats, seconds of training and of the command."""

    seeds: tuple[int, ...]
    loss: float
    training: float | None = None
    command: float | None = None


TARGETS = {
    "speedrun": Target(seeds=(1, 2, 3), loss=1.4697, training=10, command=40),
    "best": Target(seeds=(1, 2, 3, 4, 5), loss=1.40),
}
COLUMNS = [
    Column("seed", "seed"),
    Column("loss", "validation loss, nats a token", digits=4),
    Column("training", "training, s", digits=2),
    Column("command", "command to exit, s", digits=2),
]


def main() -> None:
    """Train with each seed and say what was met; exit code 1 where a target was missed."""
    parser = argparse.ArgumentParser(description="Recipes for one GPU against their targets.")
    parser.add_argument("experiment", choices=tuple(TARGETS))
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as of minigpt train")
    parser.add_argument("--markdown", type=Path, help="also write the table there")
    options = parser.parse_args()
    target = TARGETS[options.experiment]
    if any(override.startswith("seed=") for override in options.overrides):
        parser.error("seed=: the target's seeds are fixed; leave it out")
    runs = []
    for seed in target.seeds:
        runs.append(train(options.experiment, seed, options.overrides))
        print(f"seed {seed}: {runs[-1][0]['val_loss']:.4f}", file=sys.stderr, flush=True)
    loss = interval([result["val_loss"] for result, _ in runs])
    training = interval([result["step_seconds"] for result, _ in runs])
    command = interval([seconds for _, seconds in runs])
    rows: list[list[Cell]] = [
        [str(result["seed"]), result["val_loss"], result["step_seconds"], seconds]
        for result, seconds in runs
    ]
    rows.append(["mean", loss, training, command])
    wanted = [(target.loss, loss), (target.training, training), (target.command, command)]
    met = all(most is None or found.mean <= most for most, found in wanted)
    rows.append(["at most", target.loss, target.training, target.command])
    note = f"{'Met' if met else 'Missed'}: experiment={options.experiment}, last step, full pass."
    table = Table(options.experiment, options.experiment, COLUMNS, rows, note)
    facts = ", ".join(f"{key} {value}" for key, value in machine(device_here()).items())
    print("\n".join([*to_plain(table), note, facts]))
    if options.markdown is not None:
        page = f"{to_markdown(table)}\n\n{facts}\n"
        options.markdown.write_text(page, encoding="utf-8")
    sys.exit(0 if met else 1)


def train(experiment: str, seed: int, overrides: list[str]) -> tuple[dict[str, Any], float]:
    """The result of one run, its seconds of stepping with them, and seconds until it had ended."""
    with tempfile.TemporaryDirectory() as folder:
        chosen = [
            f"experiment={experiment}",
            *overrides,
            f"seed={seed}",
            f"hydra.run.dir={folder}/run",
        ]
        started = time.perf_counter()
        command = [sys.executable, "-m", "minigpt.cli", "train", *chosen]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - started
        if done.returncode:
            raise SystemExit(done.stderr.strip() or done.stdout)
        result = json.loads(Path(folder, "run", "result.json").read_text(encoding="utf-8"))
    tokens = result["steps"] * tokens_a_step([f"experiment={experiment}", *overrides])
    return result | {"step_seconds": tokens / result["tokens_per_second"]}, seconds


def tokens_a_step(overrides: list[str]) -> int:
    """Tokens of a batch."""
    from minigpt.config.compose import composed_config

    config = composed_config(overrides)
    return config.trainer.batch_size * config.model.block_size


if __name__ == "__main__":
    main()
