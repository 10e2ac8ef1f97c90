"""Everything that is to be measured on one GPU, with its targets."""

from __future__ import annotations

import operator
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from minigpt.bench import decode, replicas
from minigpt.bench.measure import Design, Result, as_dicts, ceilings
from minigpt.bench.programs import running
from minigpt.bench.train import train_in_turns
from minigpt.config.compose import composed_config
from minigpt.errors import Failure, UserError, first_line, require
from minigpt.files import read_json
from minigpt.model import GPT
from minigpt.report.tables import Cell, Column, Table

# Seconds: a part that would begin later is left out, and a program that still runs is killed. What
# is measured in this process ends when it has done all its steps.
LIMIT = 520.0
REPOSITORY = Path(__file__).resolve().parents[2]
BABY, BLOG = "experiment=nanogpt_baby", "experiment=seed_blog"
STEPS, WARMUP = 200, 40
WAYS = {
    "eager": ["trainer.compile=false", "trainer.graph=off"],
    "graph": ["trainer.compile=false", "trainer.graph=on"],
    "compiled": ["trainer.compile=true", "trainer.graph=off"],
    "compiled, graph": ["trainer.compile=true", "trainer.graph=on"],
}
COLUMNS = [
    Column("what", "figure"),
    Column("value", "measured", digits=3),
    Column("target", "target"),
    Column("result", "result"),
]


@dataclass(frozen=True)
class Figure:
    """One number, and its target if there is one. `better`: operator.le if smaller is better."""

    what: str
    value: float
    target: float | None = None
    better: Callable[[float, float], bool] = operator.le

    def row(self) -> list[Cell]:
        """Return the cells of COLUMNS."""
        if self.target is None:
            return [self.what, self.value, "", ""]
        sign = "<=" if self.better is operator.le else ">="
        met = "met" if self.better(self.value, self.target) else "missed"
        return [self.what, self.value, f"{sign} {self.target:g}", met]


Part = Callable[[float], Iterator[Figure]]
"""part(seconds left) -> figures. It may raise any error; `seconds` is the limit of its program."""


def measure(design: Design, nanogpt: Path | None, repeats: int) -> Result:
    """Measure all parts in turn. Overrides of `design` change all recipes, for a quick try.

    `nanogpt`: a checkout of nanoGPT to compare with; None: without. Raises UserError without a GPU.
    """
    if nanogpt is not None:
        why = "no train.py there; give a checkout of nanoGPT"
        require((nanogpt / "train.py").is_file(), "--nanogpt", nanogpt, why)
    if not torch.cuda.is_available():
        why = f"torch {torch.__version__} finds none here; without one, use another benchmark"
        raise UserError(f"minigpt bench gpu: needs a GPU, and {why}")
    parts = all_parts(design.overrides, nanogpt, repeats)
    started = time.perf_counter()
    design.progress.total = len(parts)
    rows: list[list[Cell]] = []
    for name, part in design.progress.counted(parts.items()):
        rows += rows_of(name, part, LIMIT - (time.perf_counter() - started))
    note = f"Untrained weights, except of the recipes. {STEPS} steps after {WARMUP}."
    took = f"{time.perf_counter() - started:.0f} s"
    missing = [str(row[0]) for row in rows if row[1] is None]
    return Result(Table("gpu", "One GPU", COLUMNS, rows, note), {"took": took}, missing=missing)


def all_parts(overrides: Sequence[str], nanogpt: Path | None, repeats: int) -> dict[str, Part]:
    """Return the parts by name, in the order of measuring."""
    parts: dict[str, Part] = {
        "training steps": partial(training, overrides, repeats),
        "decoding": partial(decoding, overrides, repeats),
        "replicas": partial(together, overrides, repeats),
        "speedrun": partial(recipe, "speedrun", overrides),
        "best": partial(recipe, "best", overrides),
    }
    if nanogpt is not None:
        ratios = {"steps": ("minigpt, default", "step, minigpt / nanoGPT", 0.6, operator.le)}
        ratios |= {"decode": ("minigpt / nanoGPT", "tokens/s", 10, operator.ge)}
        for what, cell in ratios.items():
            parts[f"nanoGPT, {what}"] = partial(compared, what, nanogpt, repeats, *cell)
    return parts


def rows_of(name: str, part: Part, seconds: float) -> list[list[Cell]]:
    """Return the rows of a part, or one that says why there are none; the others go on."""
    if seconds <= 0:
        return [[name, None, "", f"not measured: {LIMIT:.0f} s have passed"]]
    rows: list[list[Cell]] = []
    try:
        rows += [figure.row() for figure in part(seconds)]
    except subprocess.TimeoutExpired:
        rows.append([name, None, "", f"not measured: did not end in {seconds:.0f} s"])
    except Exception as error:  # of many types, from torch, the compiler and CUDA
        rows.append([name, None, "", f"failed: {first_line(error)}"])
    return rows


def training(
    overrides: Sequence[str], repeats: int, seconds: float, ways: Sequence[str] = tuple(WAYS)
) -> Iterator[Figure]:
    """Time a step of nanogpt_baby in each of WAYS."""
    configs = [(way, composed_config([BABY, *WAYS[way], *overrides])) for way in ways]
    measured = train_in_turns(configs, STEPS, WARMUP, repeats)
    runtime = measured[0].runtime
    peak = ceilings(runtime.device, runtime.precision).flops
    for one in measured:
        step = one.step.median
        yield Figure(f"nanogpt_baby, {one.label}: a step, ms", 1e3 * step)
        used = one.flops_per_token * one.tokens_per_step / step / peak
        yield Figure(f"nanogpt_baby, {one.label}: FLOP/s over a large product's", used)


def decoding(
    overrides: Sequence[str], repeats: int, seconds: float, tokens: int = 500
) -> Iterator[Figure]:
    """Time generated tokens of nanogpt_baby: of one text, and of 64 at once."""
    design = one_design([BABY, *overrides])
    (_, config), device = design.configs[0], design.device
    with torch.device("meta"):
        weights = GPT(config.model, decode.N_VOCAB).parameters()
    n_bytes = sum(weight.numel() * weight.element_size() for weight in weights)
    floor = n_bytes / ceilings(device, config.trainer.precision).bytes
    for row in as_dicts(decode.measure(design, [1, 64], tokens, prompt=1, repeats=repeats).table):
        batch, speed = int(row["batch"]), row["tokens_per_second"]
        yield Figure(f"nanogpt_baby, {batch} at once: tokens/s", speed)
        over = batch / speed / floor
        yield Figure(f"nanogpt_baby, {batch} at once: a token over reading the weights", over)


def together(
    overrides: Sequence[str], repeats: int, seconds: float, n: int = 8
) -> Iterator[Figure]:
    """Compare runs of seed_blog as replicas with the same runs one after the other."""
    table = replicas.measure(one_design([BLOG, *overrides]), n, 20, 5, repeats).table
    _, row = as_dicts(table)
    yield Figure(f"seed_blog, {n} replicas over one after the other", row["ratio"], 5, operator.ge)


def recipe(experiment: str, overrides: Sequence[str], seconds: float) -> Iterator[Figure]:
    """Train a recipe once with each seed of its target, and compare the means."""
    program = REPOSITORY / "studies" / "loss_targets" / "loss_targets.py"
    found = program_output(program, [experiment, *overrides], seconds)
    for name, mean in found["means"].items():
        target = found["targets"][name]
        yield Figure(f"experiment={experiment}, {found['seeds']} seeds: {name}", mean, target)


def compared(
    what: str,
    nanogpt: Path,
    rounds: int,
    row: str,
    column: str,
    target: float,
    better: Callable[[float, float], bool],
    seconds: float,
) -> Iterator[Figure]:
    """Compare with nanoGPT's scripts."""
    program = REPOSITORY / "scripts" / "bench_vs_nanogpt.py"
    options = [what, "--nanogpt", str(nanogpt), "--rounds", str(rounds)]
    rows = {cells["who"]: cells for cells in program_output(program, options, seconds)["rows"]}
    value = float(rows[row][column].split()[0])
    yield Figure(f"minigpt / nanoGPT, {what}", value, target, better)


def program_output(program: Path, options: Sequence[str], seconds: float) -> dict[str, Any]:
    """Run a program of the repository; return what it writes with --json.

    It exits with 1 also if a target was missed. Raises UserError or Failure if it writes nothing,
    and TimeoutExpired.
    """
    if not program.is_file():
        raise Failure(f"{program.name}: not part of the installed package; use a checkout")
    with tempfile.TemporaryDirectory(prefix="minigpt_bench_") as folder:
        out = Path(folder, "out.json")
        command = [sys.executable, str(program), *options, "--json", str(out)]
        try:
            with running(command) as process:
                process.wait(seconds)
        except (UserError, Failure):
            if not out.exists():
                raise
        return read_json(out)


def one_design(overrides: Sequence[str]) -> Design:
    """Return the design of one config."""
    config = composed_config(list(overrides))
    device = "cuda" if config.trainer.device == "auto" else config.trainer.device
    return Design(list(overrides), [(" ".join(overrides), config)], device)
