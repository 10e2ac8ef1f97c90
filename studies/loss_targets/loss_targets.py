"""Train the recipes for one GPU with fixed seeds, and compare them with their target losses.

    python studies/loss_targets/loss_targets.py speedrun    # a loss in seconds
    python studies/loss_targets/loss_targets.py best        # the lowest loss, five seeds

The loss is that of the last step. Choosing the best checkpoint instead would choose on the split
that is reported.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt.bench.measure import device_here, machine
from minigpt.config.compose import composed_config
from minigpt.files import read_json, write_json
from minigpt.report.statistics import interval
from minigpt.report.tables import Cell, Column, Table, to_markdown, to_plain


@dataclass(frozen=True)
class Target:
    """Upper limits of the means over seeds: nats/token, seconds of training and of the command."""

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
    Column("loss", "validation loss, nats/token", digits=4),
    Column("training", "training, s", digits=2),
    Column("command", "command to exit, s", digits=2),
]


def main() -> None:
    """Train with each seed and print the table; exit with 1 if a target was missed."""
    parser = argparse.ArgumentParser(description="Recipes for one GPU and their target losses.")
    parser.add_argument("experiment", choices=tuple(TARGETS))
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as of minigpt train")
    parser.add_argument("--json", type=Path, help="also write means and targets to a file")
    parser.add_argument("--markdown", type=Path, help="also write the table to a file")
    options = parser.parse_args()
    target = TARGETS[options.experiment]
    if any(override.startswith("seed=") for override in options.overrides):
        parser.error("seed=: the seeds of a target are fixed; leave it out")
    runs = []
    for seed in target.seeds:
        runs.append(train(options.experiment, seed, options.overrides))
        print(f"seed {seed}: {runs[-1][0]['val_loss']:.4f}", file=sys.stderr, flush=True)
    measured = [[result["val_loss"], result["step_seconds"], s] for result, s in runs]
    means = [interval(values) for values in zip(*measured, strict=True)]
    limits = (target.loss, target.training, target.command)
    pairs = zip(limits, means, strict=True)
    met = all(limit is None or mean.mean <= limit for limit, mean in pairs)
    rows: list[list[Cell]] = [
        [str(seed), *values] for seed, values in zip(target.seeds, measured, strict=True)
    ]
    rows += [["mean", *means], ["at most", *limits]]
    note = f"{'Met' if met else 'Missed'}: experiment={options.experiment}, last step, full pass."
    table = Table(options.experiment, options.experiment, COLUMNS, rows, note)
    facts = ", ".join(f"{key} {value}" for key, value in machine(device_here()).items())
    if options.json is not None:
        names = [column.title for column in COLUMNS[1:]]
        content: dict[str, Any] = {"seeds": len(runs)}
        content["means"] = dict(zip(names, [mean.mean for mean in means], strict=True))
        content["targets"] = dict(zip(names, limits, strict=True))
        write_json(options.json, content)
    print(*to_plain(table), note, facts, sep="\n")
    if options.markdown is not None:
        options.markdown.write_text(f"{to_markdown(table)}\n\n{facts}\n", encoding="utf-8")
    sys.exit(0 if met else 1)


def train(experiment: str, seed: int, overrides: list[str]) -> tuple[dict[str, Any], float]:
    """Train a run; return its result, the seconds of its steps and of the whole command."""
    with tempfile.TemporaryDirectory() as folder:
        chosen = [f"experiment={experiment}", *overrides, f"seed={seed}"]
        command = [sys.executable, "-m", "minigpt.cli", "train", *chosen]
        command += [f"hydra.run.dir={folder}/run"]
        started = time.perf_counter()
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - started
        if process.returncode:
            raise SystemExit(process.stderr.strip() or process.stdout)
        result = read_json(Path(folder, "run", "result.json"))
    config = composed_config([f"experiment={experiment}", *overrides])
    tokens = result["steps"] * config.trainer.batch_size * config.model.block_size
    return result | {"step_seconds": tokens / result["tokens_per_second"]}, seconds


if __name__ == "__main__":
    main()
