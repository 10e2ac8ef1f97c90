"""Time minigpt and nanoGPT's scripts, interleaved, and compare with the targets.

    git clone https://github.com/karpathy/nanoGPT && git -C nanoGPT checkout 3adf61e
    python scripts/bench_vs_nanogpt.py steps --nanogpt nanoGPT       # time per step
    python scripts/bench_vs_nanogpt.py speedrun --nanogpt nanoGPT    # time to reach a loss
    python scripts/bench_vs_nanogpt.py decode --nanogpt nanoGPT      # generating text

On a CPU, the recipe is nanoGPT's CPU recipe (experiment=nanogpt_cpu); on a GPU, its baby GPT
(experiment=nanogpt_baby; nanoGPT compiles it). A step's time is that between two printed lines,
LOG_EVERY steps apart, over the steps: neither side prints a line a step.
"""

from __future__ import annotations

import sys

sys.path.pop(0)  # scripts/, whose numbers.py would replace the standard library's

import argparse
import math
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from minigpt.bench.measure import device_here, machine
from minigpt.config.compose import composed_config
from minigpt.data import CORPORA, TextCorpus
from minigpt.files import read_json, write_json
from minigpt.report.statistics import Interval, interval, spread
from minigpt.report.tables import Cell, Column, Table, to_markdown, to_plain

MINIGPT = [sys.executable, "-m", "minigpt.cli"]
NANOGPT = [sys.executable, "-u", "train.py", "config/train_shakespeare_char.py"]
SETTLE = 20  # number of first steps, not timed
LOG_EVERY = 25
STEPS, EVALUATE_AT = 600, 500  # to time, with an evaluation


@dataclass(frozen=True)
class Variant:
    """minigpt's recipe with more options.

    `target`: largest share of the time of a step of the faster of nanoGPT's trainings `against`.
    """

    options: list[str]
    against: list[str]
    target: float


@dataclass(frozen=True)
class Recipe:
    """The same work for nanoGPT (`theirs`) and minigpt (`ours`), and the targets.

    `their_variants`: more options by name, for a comparison of steps.
    """

    theirs: list[str]
    ours: list[str]
    their_variants: dict[str, list[str]]
    our_variants: dict[str, Variant]
    decode_target: float  # tokens/s, minigpt / nanoGPT
    speedruns: dict[str, tuple[float, float]]  # by experiment: loss, share of time


EAGER, COMPILED = "nanoGPT", "nanoGPT, compiled"
CPU = Recipe(
    theirs=[
        *("--device=cpu", "--compile=False", "--eval_iters=20", "--block_size=64"),
        *("--batch_size=12", "--n_layer=4", "--n_head=4", "--n_embd=128", "--dropout=0.0"),
        *("--max_iters=2000", "--lr_decay_iters=2000"),
    ],
    ours=["experiment=nanogpt_cpu"],
    their_variants={EAGER: [], COMPILED: ["--compile=True"]},
    our_variants={
        "fp32, eager": Variant(["trainer.precision=fp32", "trainer.compile=false"], [EAGER], 0.9),
        "eager": Variant(["trainer.compile=false"], [EAGER], 0.6),
        "default": Variant([], [EAGER, COMPILED], 0.75),
    },
    decode_target=8,
    speedruns={"cpu_speedrun": (1.88, 0.1), "cpu_budget": (1.53, 1.0)},
)
GPU = Recipe(
    theirs=[],
    ours=["experiment=nanogpt_baby"],
    their_variants={COMPILED: []},
    our_variants={"default": Variant([], [COMPILED], 0.6)},
    decode_target=10,
    speedruns={"speedrun": (1.4697, 0.25)},  # in seconds: studies/loss_targets
)


@dataclass(frozen=True)
class Timed:
    """One training: seconds of a step, of an evaluation and of the whole process."""

    step: float
    evaluation: float
    whole: float
    output: str


def main() -> None:
    """Run one comparison and print its table; exit with 1 if a target was missed."""
    parser = argparse.ArgumentParser(description="Compare minigpt with nanoGPT.")
    parser.add_argument("what", choices=tuple(COMPARISONS))
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout of nanoGPT")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures to a file")
    parser.add_argument("--markdown", type=Path, help="also write the table to a file")
    options = parser.parse_args()
    device = device_here()
    prepare_nanogpt(options.nanogpt)
    recipe = GPU if device == "cuda" else CPU
    compare = COMPARISONS[options.what]
    table, met = compare(recipe, options.nanogpt.absolute(), options.rounds)
    facts = machine(device)
    about = ", ".join(f"{key} {value}" for key, value in facts.items())
    print(*to_plain(table), table.note, about, sep="\n")
    if options.json is not None:
        rows = [dict(zip(table.head, row, strict=True)) for row in table.texts()]
        write_json(options.json, {"machine": facts, "rows": rows})
    if options.markdown is not None:
        options.markdown.write_text(to_markdown(table), encoding="utf-8")
    sys.exit(0 if met else 1)


def prepare_nanogpt(folder: Path) -> None:
    """Write the text that its own script would download, and run that script."""
    if not (folder / "train.py").is_file():
        raise SystemExit(f"--nanogpt={folder}: no train.py there; give a checkout of nanoGPT")
    data = folder / "data" / "shakespeare_char"
    if not (data / "meta.pkl").is_file():
        corpus = CORPORA.build(composed_config([]).data).corpus()
        assert isinstance(corpus, TextCorpus)
        (data / "input.txt").write_bytes(corpus.text.encode("utf-8"))
        subprocess.run([sys.executable, "prepare.py"], cwd=data, check=True, capture_output=True)


# ---- training ----


def steps(recipe: Recipe, nanogpt: Path, rounds: int) -> tuple[Table, bool]:
    """Compare seconds of a step and of an evaluation: medians per round, ratios over rounds."""
    warm_up(recipe)
    # One step later than ours, because nanoGPT prints a loss after the step: a line, then at once
    # the evaluation.
    length = [f"--max_iters={STEPS}", f"--eval_interval={EVALUATE_AT + 1}"]
    length += [f"--log_interval={LOG_EVERY}"]
    theirs: dict[str, list[Timed]] = {name: [] for name in recipe.their_variants}
    ours: dict[str, list[Timed]] = {name: [] for name in recipe.our_variants}
    for turn in range(rounds):
        for name, trainings in theirs.items():
            options = [*length, *recipe.their_variants[name]]
            trainings.append(train_nanogpt(recipe, nanogpt, options))
        for name, trainings in ours.items():
            trainings.append(train_ours(recipe, recipe.our_variants[name].options))
        print(f"round {turn + 1}/{rounds}", file=sys.stderr, flush=True)
    rows: list[list[Cell]] = [
        [name, *_medians(trainings), None, None, ""] for name, trainings in theirs.items()
    ]
    met = True
    for name, trainings in ours.items():
        variant = recipe.our_variants[name]
        fastest = min((theirs[other] for other in variant.against), key=_median_step)
        step, evaluation = (
            ratio(
                [getattr(one, what) for one in trainings], [getattr(one, what) for one in fastest]
            )
            for what in ("step", "evaluation")
        )
        good = step.mean <= variant.target
        met = met and good
        verdict = f"{'met' if good else 'missed'}: <= {variant.target}"
        rows.append([f"minigpt, {name}", *_medians(trainings), step, evaluation, verdict])
    columns = [
        Column("who", "who"),
        Column("step", "step, ms", digits=2),
        Column("evaluation", "evaluation, s", digits=3),
        Column("step_ratio", "step, minigpt / nanoGPT", digits=3),
        Column("evaluation_ratio", "evaluation, minigpt / nanoGPT", digits=3),
        Column("target", "target"),
    ]
    note = (
        f"{rounds} interleaved rounds, {STEPS} steps each, the first {SETTLE} left out; ratios to "
        f"the faster training of nanoGPT, for eager ones to its eager one. Evaluation: minigpt's "
        f"full pass, nanoGPT's random batches. ± half of a 95 % t-interval over rounds."
    )
    return Table("steps", "The same work as nanoGPT", columns, rows, note), met


def warm_up(recipe: Recipe) -> None:
    """Fill the cache of compiled code, which decides what `trainer.compile=auto` is."""
    with tempfile.TemporaryDirectory() as out:
        once = ["trainer.compile=true", "trainer.max_steps=1", "trainer.sample_every=null"]
        chosen = [*recipe.ours, *once, "logger=none", f"hydra.run.dir={out}/run"]
        done = subprocess.run([*MINIGPT, "train", *chosen], capture_output=True, text=True)
        if done.returncode:  # no compiler: trainer.compile=auto is eager
            print(done.stderr, file=sys.stderr)


def _median_step(trainings: Sequence[Timed]) -> float:
    return statistics.median(one.step for one in trainings)


def _medians(trainings: Sequence[Timed]) -> list[Cell]:
    evaluation = statistics.median(one.evaluation for one in trainings)
    return [1000 * _median_step(trainings), evaluation]


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """Return the geometric mean of the ratios by round, and half of its t-interval."""
    return interval([math.log(a / b) for a, b in zip(ours, theirs, strict=True)]).exp()


def train_nanogpt(recipe: Recipe, folder: Path, options: Sequence[str] = ()) -> Timed:
    """Time its train.py with its recipe and more options."""
    with tempfile.TemporaryDirectory() as out:
        command = [*NANOGPT, *recipe.theirs, *options, f"--out_dir={out}"]
        return timed(command, folder, r"iter (\d+): loss", r"step (\d+): train loss")


def train_ours(recipe: Recipe, options: Sequence[str]) -> Timed:
    """Time `minigpt train` with the recipe and more options."""
    with tempfile.TemporaryDirectory() as out:
        often = [
            *(f"trainer.max_steps={STEPS}", f"trainer.eval_every={EVALUATE_AT}"),
            *(f"trainer.log_every={LOG_EVERY}", "trainer.sample_every=null"),
            *("trainer.checkpoint_every=null", "logger=none"),
        ]
        command = [*MINIGPT, "train", *recipe.ours, *often, *options, f"hydra.run.dir={out}/run"]
        return timed(command, None, r"step (\d+)/\d+  train", r"step (\d+)/\d+  val loss")


def timed(command: list[str], folder: Path | None, step: str, evaluation: str) -> Timed:
    """Run a training and record the time of each line it prints."""
    started = time.perf_counter()
    lines: list[str] = []
    steps: list[tuple[int, float]] = []
    pauses: dict[int, float] = {}
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            now = time.perf_counter()
            lines.append(line)
            if match := re.match(step, line):
                steps.append((int(match[1]), now))
            elif match := re.match(evaluation, line):
                pauses[int(match[1])] = now
    whole = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}:\n{''.join(lines[-20:])}")
    each = [
        (t1 - t0) / (s1 - s0)
        for (s0, t0), (s1, t1) in pairwise(steps)
        if s0 >= SETTLE and not any(t0 < at < t1 for at in pauses.values())
    ]
    a_step = statistics.median(each)
    moment = next(moment for at, moment in pauses.items() if at >= SETTLE)
    before = max(t for _, t in steps if t < moment)  # a line just before the evaluation
    return Timed(a_step, moment - before, whole, "".join(lines))


# ---- time to a loss ----


def speedrun(recipe: Recipe, nanogpt: Path, rounds: int) -> tuple[Table, bool]:
    """Compare whole recipes of nanoGPT and minigpt: validation loss, time from command to exit."""
    theirs: list[Timed] = []
    ours: dict[str, list[tuple[float, float]]] = {name: [] for name in recipe.speedruns}
    for turn in range(rounds):
        theirs.append(train_nanogpt(recipe, nanogpt))
        for name, trainings in ours.items():
            trainings.append(_seconds_and_loss(name))
        print(f"round {turn + 1}/{rounds}", file=sys.stderr, flush=True)
    whole = [one.whole for one in theirs]
    printed = [float(re.findall(r"val loss ([\d.]+)", one.output)[-1]) for one in theirs]
    rows: list[list[Cell]] = [["nanoGPT", statistics.median(whole), None, interval(printed), ""]]
    met = True
    for name, (target, largest_share) in recipe.speedruns.items():
        seconds, losses = zip(*ours[name], strict=True)
        share, loss = ratio(seconds, whole), interval(losses)
        good = loss.mean <= target and share.mean <= largest_share
        met = met and good
        verdict = f"{'met' if good else 'missed'}: <= {target} in <= {largest_share}"
        rows.append([f"experiment={name}", statistics.median(seconds), share, loss, verdict])
    columns = [
        Column("who", "who"),
        Column("seconds", "s, command to exit", digits=2),
        Column("share", "over nanoGPT's", digits=4),
        Column("loss", "validation loss", digits=4),
        Column("target", "target"),
    ]
    losses = "minigpt: full pass; nanoGPT: random batches, as printed"
    note = f"{rounds} rounds. Losses: {losses}."
    return Table("speedrun", "Time to a loss", columns, rows, note), met


def _seconds_and_loss(experiment: str) -> tuple[float, float]:
    """Train an experiment; return seconds from command to exit, and the validation loss."""
    with tempfile.TemporaryDirectory() as run:
        chosen = [f"experiment={experiment}", "logger=none", f"hydra.run.dir={run}"]
        started = time.perf_counter()
        done = subprocess.run([*MINIGPT, "train", *chosen], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        seconds = time.perf_counter() - started
        return seconds, read_json(Path(run, "result.json"))["val_loss"]


# ---- generating text ----


def decode(recipe: Recipe, nanogpt: Path, rounds: int) -> tuple[Table, bool]:
    """Compare tokens/s of generating 500 tokens with a model of nanogpt_baby's size.

    Untrained weights, which do not change the work. nanoGPT's sample.py prints whole texts, so its
    speed is measured on the texts after the first.
    """
    theirs, ours = [], []
    with tempfile.TemporaryDirectory() as out:
        device = [option for option in recipe.theirs if option.startswith("--device")]
        common = [f"--out_dir={out}", *device]
        size = ["--n_layer=6", "--n_head=6", "--n_embd=384", "--block_size=256", "--compile=False"]
        short = ["--max_iters=1", "--eval_interval=1", "--eval_iters=1"]
        train = [*NANOGPT, *size, *short, *common]
        subprocess.run(train, cwd=nanogpt, check=True, capture_output=True)
        options = ["--num_samples=2", "--max_new_tokens=500", *common]
        sample = [sys.executable, "-u", "sample.py", *options]
        figures = Path(out, "decode.json")
        command = [*MINIGPT, "bench", "decode", "experiment=nanogpt_baby", "--prompt", "1"]
        command += ["--tokens", "500", "--repeats", "1", "--json", str(figures)]
        for _ in range(rounds):
            theirs.append(500 / _seconds_a_text(sample, nanogpt))
            subprocess.run(command, check=True, capture_output=True)
            ours.append(read_json(figures)["rows"][0]["tokens_per_second"])
    times = ratio(ours, theirs)
    good = times.mean >= recipe.decode_target
    speeds = {"nanoGPT": spread(theirs), "minigpt": spread(ours), "minigpt / nanoGPT": times}
    rows: list[list[Cell]] = [[who, speed] for who, speed in speeds.items()]
    columns = [Column("who", "who"), Column("speed", "tokens/s", digits=2)]
    note = f"{'Met' if good else 'Missed'}: {recipe.decode_target} times as many; {rounds} rounds."
    return Table("decode", "Generating 500 tokens", columns, rows, note), good


def _seconds_a_text(command: list[str], folder: Path) -> float:
    """Return the mean seconds between the rules that sample.py prints after each text."""
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        moments = [time.perf_counter() for line in process.stdout if line.startswith("-----")]
    if process.returncode or len(moments) < 2:
        raise SystemExit(f"{' '.join(command)}: failed; see above")
    return (moments[-1] - moments[0]) / (len(moments) - 1)


COMPARISONS = {"steps": steps, "speedrun": speedrun, "decode": decode}


if __name__ == "__main__":
    main()
