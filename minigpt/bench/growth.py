"""Measure how step time and memory grow with context, width, depth and corpus.

Every step has the same number of tokens. A corpus is random tokens in shards, 2 bytes per token,
deleted at the end. Each training runs in a new process, the sizes of an axis in turns.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.lib.format import open_memmap

from minigpt.bench.measure import Times, in_new_process
from minigpt.bench.train import train_in_turns
from minigpt.config.compose import composed_config
from minigpt.data.shards import TOKENIZER, Index, data_settings, tokenizer_settings
from minigpt.errors import Failure, UserError
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
CHARACTERS = "".join(map(chr, range(0x100, 0x300)))  # over 256, so that a token takes two bytes
SMALL_CORPUS = 1_000_000
VAL_TOKENS = 10_000
SHARD_TOKENS = 1 << 26
WORSE = 1.1  # growth of time over that of FLOPs; less can be noise of a busy machine
COLUMNS = [
    Column("axis", "axis"),
    Column("size", "size"),
    Column("step", "step, ms (quartiles)"),
    Column("gflops", "GFLOPs per step", digits=2),
    Column("time_growth", "time growth", digits=2),
    Column("flops_growth", "FLOPs growth", digits=2),
    Column("ratio", "time over FLOPs", digits=2),
    Column("memory", "MB", digits=0),
    Column("added_memory", "MB added", digits=0),
]


class Training(NamedTuple):
    """Seconds of each step, FLOPs of one, peak memory, and how much of it the training added.

    Memory is in bytes, None where the system does not report it.
    """

    seconds: list[float]
    flops: int
    peak: int | None
    added: int | None


@dataclass
class Size:
    """The trainings at one size of an axis."""

    size: int
    trainings: list[Training] = field(default_factory=list)

    @property
    def step(self) -> Times:
        """Seconds of a step."""
        return Times([seconds for training in self.trainings for seconds in training.seconds])

    @property
    def flops(self) -> int:
        """FLOPs of a step."""
        return self.trainings[0].flops

    @property
    def memory(self) -> tuple[float | None, float | None]:
        """Peak and added memory in MB, the highest of all trainings."""
        peaks = [training.peak for training in self.trainings if training.peak is not None]
        added = [training.added for training in self.trainings if training.added is not None]
        return max(peaks) / 1e6 if peaks else None, max(added) / 1e6 if added else None


def measure_growth(
    axes: Mapping[str, Sequence[int]],
    overrides: Sequence[str],
    n_tokens: int,
    steps: int,
    warmup: int,
    rounds: int,
    folder: str | None,
    sparse: bool,
    progress: Callable[[str], None],
) -> tuple[Table, Figure]:
    """Train at each size of each axis, `n_tokens` a step.

    `folder`: where to write the shards, None for the system's temporary folder. `sparse`: write
    files with holes instead of random tokens. `progress` gets one line per training. Raises
    UserError for a window longer than a step, and Failure if the disk is too small.
    """
    if max(axes.get("context", [0])) > n_tokens:
        raise UserError(f"--tokens={n_tokens}: fewer than a window of --context; give more")
    measured = {axis: [Size(size) for size in sizes] for axis, sizes in axes.items()}
    with tempfile.TemporaryDirectory(prefix="minigpt_growth_", dir=folder) as temporary:
        corpora = sorted({SMALL_CORPUS, *axes.get("corpus", [])})
        require_space(Path(temporary), 0 if sparse else 2 * sum(corpora))
        for n in corpora:
            progress(f"writing {n:,} {'sparse' if sparse else 'random'} tokens")
            write_corpus(corpus_folder(temporary, n), n, sparse)
        for axis, sizes in measured.items():
            for turn in range(rounds):
                for one in sizes:
                    chosen = [*design_at(axis, one.size, n_tokens, temporary), *overrides]
                    one.trainings.append(in_new_process(train, chosen, steps, warmup))
                    ms = 1e3 * Times(one.trainings[-1].seconds).median
                    progress(f"{axis} {one.size:,}, round {turn + 1}: {ms:,.1f} ms a step")
    design = " ".join([*SMALL, *overrides])
    about = (
        f"The default design with {design} and one value at a time changed; {n_tokens:,} tokens "
        f"per step, from a corpus in shards ({'sparse files' if sparse else 'random tokens'}). "
        f"Time: median of {rounds} x {steps} steps."
    )
    return table(measured, about), plot(measured)


# ---- measuring ----


def design_at(axis: str, size: int, n_tokens: int, folder: str) -> list[str]:
    """Return the overrides of the design and the data at one size of an axis."""
    context = size if axis == "context" else 256
    corpus = corpus_folder(folder, size if axis == "corpus" else SMALL_CORPUS)
    changed = {"width": [f"model.n_embd={size}"], "depth": [f"model.n_layer={size}"]}
    batch_size = max(1, n_tokens // context)
    return [
        *("data=shards", f"data.path='{corpus}'", "tokenizer=char", *SMALL),
        *(f"model.block_size={context}", f"trainer.batch_size={batch_size}"),
        *changed.get(axis, []),
    ]


def train(overrides: Sequence[str], steps: int, warmup: int) -> Training:
    """Train a design once. The added memory is that beyond the peak of a tiny training."""
    train_in_turns([("", composed_config([*overrides, *TINY]))], 1, 0, rounds=1)  # loads libraries
    reset_peak_memory("cpu")
    before = peak_memory_bytes("cpu")
    (measured,) = train_in_turns([("", composed_config([*overrides]))], steps, warmup, rounds=1)
    peak = peak_memory_bytes("cpu")
    added = None if peak is None or before is None else peak - before
    if measured.runtime.device == "cuda":
        added = measured.rounds[0].memory
    flops = measured.flops_per_token * measured.tokens_per_step
    return Training(measured.step.seconds, flops, peak, added)


def corpus_folder(folder: str, n: int) -> Path:
    """Return the folder for the shards of n tokens."""
    return Path(folder) / f"{n}_tokens"


def require_space(folder: Path, n_bytes: int) -> None:
    """Raise Failure unless the disk has room for 1.1 times `n_bytes`."""
    free = shutil.disk_usage(folder).free
    if free < 1.1 * n_bytes:
        raise Failure(
            f"{folder}: {n_bytes / 1e9:.1f} GB of tokens, but only {free / 1e9:.1f} GB are free; "
            f"give a smaller --corpus, or another --folder"
        )


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


# ---- table and figure ----


def growth(sizes: Sequence[Size]) -> list[tuple[float, float]]:
    """Return the time and the FLOPs of a step at each size, relative to the first."""
    first = sizes[0]
    return [(one.step.median / first.step.median, one.flops / first.flops) for one in sizes]


def table(measured: Mapping[str, Sequence[Size]], about: str) -> Table:
    """Return a row per axis and size."""
    rows: list[list[Cell]] = [
        [
            axis,
            one.size,
            one.step.describe(),
            one.flops / 1e9,
            time,
            flops,
            time / flops,
            *one.memory,
        ]
        for axis, sizes in measured.items()
        for one, (time, flops) in zip(sizes, growth(sizes), strict=True)
    ]
    verdicts = " ".join(verdict(axis, sizes) for axis, sizes in measured.items())
    note = (
        f"{about} {verdicts} FLOPs are flops_per_token: 6 per active weight, 12 n_embd per key and "
        f"layer. MB: peak memory of the process; MB added: beyond the peak of a tiny training (on "
        f"a GPU: the peak there). Growth is relative to the smallest size."
    )
    return Table("growth", "Growth of training", COLUMNS, rows, note)


def verdict(axis: str, sizes: Sequence[Size]) -> str:
    """Return one sentence that compares the smallest and the largest size."""
    (first, last), (time, flops) = (sizes[0], sizes[-1]), growth(sizes)[-1]
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
        time, flops = zip(*growth(sizes), strict=True)
        top.plot(x, time, marker=".", label="time of a step")
        top.plot(x, flops, marker=".", linestyle="--", label="its FLOPs")
        top.set_ylim(min(time + flops) / 1.5, max(time + flops) * 1.5)
        added = [megabytes for one in sizes if (megabytes := one.memory[1]) is not None]
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
        for panel in (top, bottom):
            panel.grid(alpha=0.3)
    panels[0, 0].set_ylabel("relative to the smallest size")
    panels[0, 0].legend()
    panels[1, 0].set_ylabel("MB added")
    return figure
