"""Measure how step time and memory grow with context, width, depth and corpus.

Every step has the same number of tokens. The corpus consists of shards of random tokens, 2 bytes
each, which are deleted at the end. Each size trains in a new process; sizes are interleaved.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.lib.format import open_memmap

from minigpt.bench.measure import Design, Result, Times, in_new_process
from minigpt.bench.train import train_in_turns
from minigpt.config.compose import composed_config
from minigpt.data.shards import TOKENIZER, Index, data_settings, tokenizer_settings
from minigpt.errors import Failure, UserError, require_one_of
from minigpt.files import sha256
from minigpt.report.tables import Cell, Column, Table
from minigpt.runtime import peak_memory_bytes, reset_peak_memory
from minigpt.tokenizer.char import CharTokenizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNITS = {
    "context": "tokens per window",
    "width": "model.n_embd",
    "depth": "layers",
    "corpus": "tokens in the corpus",
}
SMALL = ["model.n_layer=4", "model.n_head=4", "model.n_embd=128", "model.block_size=256"]
TINY = ["model.n_layer=1", "model.n_embd=16", "model.block_size=8", "trainer.batch_size=1"]
CHARACTERS = "".join(map(chr, range(0x100, 0x300)))  # over 256, so a token has two bytes
SMALL_CORPUS = 1_000_000
VAL_TOKENS = 10_000
SHARD_TOKENS = 1 << 26
WORSE = 1.1  # time growth / FLOPs growth; smaller ratios can be noise
COLUMNS = [
    Column("axis", "axis"),
    Column("size", "size"),
    Column("step", "step, ms (quartiles)"),
    Column("gflops", "GFLOPs per step", digits=2),
    Column("time_growth", "time growth", digits=2),
    Column("flops_growth", "FLOPs growth", digits=2),
    Column("ratio", "time growth / FLOPs growth", digits=2),
    Column("memory", "peak MB", digits=0),
    Column("added_memory", "MB added", digits=0),
]


class Training(NamedTuple):
    """Seconds of each step, FLOPs per step, peak memory, and the part added by the training.

    Memory is in MB, None if the system does not report it.
    """

    seconds: list[float]
    flops: int
    peak: float | None
    added: float | None


class Size(NamedTuple):
    """The trainings at one size of an axis: growth relative to the first size, peak memory."""

    size: int
    step: Times
    flops: int
    time_growth: float
    flops_growth: float
    memory: float | None
    added_memory: float | None


def measure(
    design: Design,
    axes: str,
    tokens: int,
    steps: int,
    warmup: int,
    repeats: int,
    folder: Path | None,
    sparse: bool,
    **sizes: list[int],
) -> Result:
    """Train at each of the `sizes` of each axis, `tokens` a step. Prints progress to stderr.

    `axes`: keys of UNITS. `folder`: where to write the shards, None for the system's temporary
    folder. `sparse`: write files with holes instead of random tokens. Raises UserError for an
    unknown axis or a window longer than a step, and Failure if the disk is too small.
    """
    for axis in axes.split(","):
        require_one_of("--axes", axis, UNITS)
    chosen = {axis: sizes[axis] for axis in axes.split(",")}
    if max(chosen.get("context", [0])) > tokens:
        raise UserError(f"--tokens={tokens}: fewer than one window of --context; use more")
    measured: dict[str, list[Size]] = {}
    with tempfile.TemporaryDirectory(prefix="minigpt_growth_", dir=folder) as temporary:
        corpora = sorted({SMALL_CORPUS, *chosen.get("corpus", [])})
        require_space(Path(temporary), 0 if sparse else 2 * sum(corpora))
        for n in corpora:
            _print_progress(f"writing {n:,} {'sparse' if sparse else 'random'} tokens")
            write_corpus(Path(temporary, f"{n}_tokens"), n, sparse)
        design.progress.total = repeats * sum(map(len, chosen.values()))
        for axis in chosen:
            trainings: dict[int, list[Training]] = {size: [] for size in chosen[axis]}
            for turn in range(repeats):
                for size, done in design.progress.counted(trainings.items()):
                    overrides = [*design_at(axis, size, tokens, temporary), *design.overrides]
                    done.append(in_new_process(train, overrides, steps, warmup))
                    ms = 1e3 * Times(done[-1].seconds).median
                    _print_progress(f"{axis} {size:,}, round {turn + 1}: {ms:,.1f} ms a step")
            measured[axis] = summarize(trainings)
    rows: list[list[Cell]] = []
    for axis, each in measured.items():
        for one in each:
            ratio = one.time_growth / one.flops_growth
            costs = (one.time_growth, one.flops_growth, ratio, one.memory, one.added_memory)
            rows.append([axis, one.size, one.step.describe(), one.flops / 1e9, *costs])
    note = (
        f"The default design with {' '.join([*SMALL, *design.overrides])} and one value at a time "
        f"changed; {tokens:,} tokens per step, from a corpus in shards "
        f"({'sparse files' if sparse else 'random tokens'}). Time: median of {repeats} x {steps} "
        f"steps. {' '.join(verdict(axis, each) for axis, each in measured.items())} FLOPs are "
        f"flops_per_token: 6 per active weight, 12 head_size per key, head and layer, and the "
        f"products of the positional scheme. MB: peak memory of the process; MB added: beyond the "
        f"peak of a tiny training (on a GPU: the peak there). Growth is relative to the smallest "
        f"size."
    )
    table = Table("growth", "Growth of training", COLUMNS, rows, note)
    return Result(table, figure=plot(measured))


def _print_progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def summarize(trainings: Mapping[int, Sequence[Training]]) -> list[Size]:
    """Return the time, FLOPs and memory at each size."""
    sizes: list[Size] = []
    for size, each in trainings.items():
        step = Times([seconds for training in each for seconds in training.seconds])
        flops, first = each[0].flops, sizes[0] if sizes else None
        growth = (step.median / first.step.median, flops / first.flops) if first else (1.0, 1.0)
        peak = max((t.peak for t in each if t.peak is not None), default=None)
        added = max((t.added for t in each if t.added is not None), default=None)
        sizes.append(Size(size, step, flops, *growth, peak, added))
    return sizes


def design_at(axis: str, size: int, n_tokens: int, folder: str) -> list[str]:
    """Return the overrides of the design and the data at one size of an axis."""
    context = size if axis == "context" else 256
    corpus = Path(folder, f"{size if axis == 'corpus' else SMALL_CORPUS}_tokens")
    changed = {"width": [f"model.n_embd={size}"], "depth": [f"model.n_layer={size}"]}
    shape = [f"model.block_size={context}", f"trainer.batch_size={max(1, n_tokens // context)}"]
    data = ["data=shards", f"data.path='{corpus}'", "tokenizer=char"]
    return [*data, *SMALL, *shape, *changed.get(axis, [])]


def train(overrides: Sequence[str], steps: int, warmup: int) -> Training:
    """Train a design once. Added memory is relative to the peak of a tiny training."""
    train_in_turns([("", composed_config([*overrides, *TINY]))], 1, 0, rounds=1)  # loads libraries
    reset_peak_memory("cpu")
    before = peak_memory_bytes("cpu")
    (measured,) = train_in_turns([("", composed_config([*overrides]))], steps, warmup, rounds=1)
    peak = peak_memory_bytes("cpu")
    added = None if peak is None or before is None else peak - before
    if measured.runtime.device == "cuda":
        added = measured.rounds[0].memory
    flops = measured.flops_per_token * measured.tokens_per_step
    memory = (None if n_bytes is None else n_bytes / 1e6 for n_bytes in (peak, added))
    return Training(measured.step.seconds, flops, *memory)


def require_space(folder: Path, n_bytes: int) -> None:
    """Raise Failure unless the disk has room for 1.1 times `n_bytes`."""
    free, remedy = shutil.disk_usage(folder).free, "give a smaller --corpus, or another --folder"
    if free < 1.1 * n_bytes:
        why = f"{n_bytes / 1e9:.1f} GB of tokens, but only {free / 1e9:.1f} GB are free"
        raise Failure(f"{folder}: {why}; {remedy}")


def write_corpus(folder: Path, n: int, sparse: bool) -> None:
    """Write a corpus of n random tokens in the format of `minigpt data --shards`.

    `sparse`: all tokens are 0, as holes in the files, which take no space on most disks.
    """
    folder.mkdir()
    generator = np.random.default_rng(0)
    config = composed_config(["data=shards", f"data.path='{folder}'", "tokenizer=char"])
    tokenizer = CharTokenizer(CHARACTERS)
    tokenizer.save(folder / TOKENIZER)
    splits = {}
    for name, size in (("train", n), ("val", VAL_TOKENS)):
        shards = {}
        for start in range(0, size, SHARD_TOKENS):
            file, length = f"{name}_{len(shards):05}.npy", min(SHARD_TOKENS, size - start)
            tokens = open_memmap(folder / file, mode="w+", dtype=np.uint16, shape=(length,))
            if not sparse:
                tokens[:] = generator.integers(tokenizer.n_vocab, size=length, dtype=np.uint16)
            tokens.flush()
            shards[file] = length
        # Each of CHARACTERS takes two bytes.
        splits[name] = {"target_bytes": 2 * (size - 1), "shards": shards, "ends": 0}
    Index(
        sha256=sha256(f"{n} {sparse}"),
        n_bytes=2 * (n + VAL_TOKENS),
        characters={"train": n, "val": VAL_TOKENS},
        made_with=data_settings(config.data) | tokenizer_settings(config.tokenizer),
        tokenizer_sha256=tokenizer.fingerprint,
        splits=splits,
    ).write(folder)


def verdict(axis: str, sizes: Sequence[Size]) -> str:
    """Return one sentence that compares the smallest and the largest size."""
    first, last = sizes[0], sizes[-1]
    time, flops = last.time_growth, last.flops_growth
    worse = "worse" if time / flops >= WORSE else "no worse"
    return (
        f"From {first.size:,} to {last.size:,} {UNITS[axis]} ({axis}) time grows {time:.2f} times "
        f"and FLOPs {flops:.2f} times: {worse} than the model's own complexity."
    )


def plot(measured: Mapping[str, Sequence[Size]]) -> Figure:
    """Plot the growth of time and FLOPs (top) and the added memory (bottom), a column per axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(measured), 6.5), layout="constrained")
    panels = figure.subplots(2, len(measured), squeeze=False, sharex="col")
    for (axis, sizes), (top, bottom) in zip(measured.items(), panels.T, strict=True):
        x = [one.size for one in sizes]
        time, flops = [one.time_growth for one in sizes], [one.flops_growth for one in sizes]
        top.plot(x, time, marker=".", label="time of a step")
        top.plot(x, flops, marker=".", linestyle="--", label="its FLOPs")
        top.set_ylim(min(time + flops) / 1.5, max(time + flops) * 1.5)
        added = [one.added_memory for one in sizes if one.added_memory is not None]
        if len(added) == len(sizes):
            bottom.plot(x, added, marker=".", color="C2")
            bottom.set_ylim(0, 1.2 * max(added))
        top.set_title(axis)
        top.set_yscale("log", base=2)
        top.yaxis.set_major_formatter("{x:g}")
        bottom.set_xscale("log", base=10 if axis == "corpus" else 2)
        bottom.set_xlabel(UNITS[axis])
        if axis != "corpus":
            bottom.xaxis.set_major_formatter("{x:g}")
        top.grid(alpha=0.3)
        bottom.grid(alpha=0.3)
    panels[0, 0].set_ylabel("relative to the smallest size")
    panels[0, 0].legend()
    panels[1, 0].set_ylabel("MB added")
    return figure
