"""How training grows with the context, the width, the depth and the corpus.

    python scripts/growth.py --out docs/growth.md
    python scripts/growth.py --axes corpus --corpus 1e6,1e8,5e9   # 10 GB of tokens
    python scripts/growth.py trainer.precision=fp32               # overrides of minigpt train

A step is of the same number of tokens everywhere, and trains on random tokens in shards (2 bytes a
token, deleted at the end). Each size trains in a process of its own, the sizes of an axis in turns.
Compares the time of a step with the model's own FLOPs; writes a page and a figure beside it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.lib.format import open_memmap
from tables import table

from minigpt.bench.measure import Times, device_here, machine
from minigpt.bench.train import train_in_turns
from minigpt.config.compose import composed_config
from minigpt.data.shards import TOKENIZER, Index, data_settings, tokenizer_settings
from minigpt.files import sha256
from minigpt.runtime import peak_memory_bytes, reset_peak_memory
from minigpt.tokenizer.char import CharTokenizer

AXES = {
    "context": "64,128,256,512,1024,2048",
    "width": "64,128,256,512",
    "depth": "1,2,4,8,16",
    "corpus": "1e6,1e7,1e8,1e9",
}
UNITS = {
    "context": "tokens of a window",
    "width": "model.n_embd",
    "depth": "layers",
    "corpus": "tokens of the corpus",
}
SMALL = ["model.n_layer=4", "model.n_head=4", "model.n_embd=128", "model.block_size=256"]
CHARACTERS = "".join(map(chr, range(0x100, 0x300)))  # so many that a token takes two bytes
TINY = ["model.n_layer=1", "model.n_embd=16", "model.block_size=8", "trainer.batch_size=1"]
SMALL_CORPUS = 1_000_000
VAL_TOKENS = 10_000
SHARD_TOKENS = 1 << 26
WORSE = 1.1  # times as much growth as the FLOPs': less is what a busy machine does


@dataclass
class Size:
    """What training at one size took, of all rounds.

    `peak` bytes held, `beyond` those held before; empty where none are known.
    """

    size: int
    seconds: list[float] = field(default_factory=list)
    flops: int = 0
    peak: list[int] = field(default_factory=list)
    beyond: list[int] = field(default_factory=list)

    @property
    def step(self) -> Times:
        """Seconds of a step."""
        return Times(self.seconds)

    @property
    def megabytes(self) -> list[str]:
        """`peak` and `beyond`, the most of all rounds."""
        return [f"{max(n) / 1e6:,.0f}" if n else "?" for n in (self.peak, self.beyond)]


Found = dict[str, list[Size]]  # by axis


def main() -> None:
    """Print what is being done; write the page and the figure."""
    parser = argparse.ArgumentParser(description="Step time and memory against size.")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as of minigpt train")
    parser.add_argument("--axes", default=",".join(AXES), help="which to measure")
    for axis, sizes in AXES.items():
        parser.add_argument(f"--{axis}", default=sizes, help=UNITS[axis])
    parser.add_argument("--tokens", type=int, default=4096, help="of a step, in all windows")
    parser.add_argument("--steps", type=int, default=20, help="timed steps a round")
    parser.add_argument("--warmup", type=int, default=3, help="steps before them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where the shards lie meanwhile, instead of the system's")
    parser.add_argument("--sparse", action="store_true", help="holes for random tokens: no writing")
    parser.add_argument("--out", type=Path, default=Path("docs/growth.md"))
    parser.add_argument("--one", action="store_true", help="measure the overrides alone, as JSON")
    options = parser.parse_intermixed_args()
    if options.one:
        print(json.dumps(measure(options.overrides, options.steps, options.warmup)))
        return
    axes = options.axes.split(",")
    if unknown := {*axes} - {*AXES}:
        parser.error(f"--axes: no {', '.join(sorted(unknown))}; use some of {', '.join(AXES)}")
    sizes = {axis: [int(float(n)) for n in getattr(options, axis).split(",")] for axis in axes}
    if max(sizes.get("context", [0])) > options.tokens:
        parser.error(f"--tokens={options.tokens}: fewer than a window of --context; give more")
    with tempfile.TemporaryDirectory(prefix="minigpt_growth_", dir=options.folder) as folder:
        corpora = {SMALL_CORPUS, *sizes.get("corpus", [])}
        require_room(Path(folder), 0 if options.sparse else 2 * sum(corpora))
        for n in sorted(corpora):
            print(f"writing {n:,} {'sparse' if options.sparse else 'random'} tokens", flush=True)
            made_up_shards(corpus_folder(folder, n), n, options.sparse)
        found: Found = {}
        for axis, of_axis in sizes.items():
            found[axis] = [Size(size) for size in of_axis]
            for turn in range(options.rounds):
                for one in found[axis]:
                    chosen = overrides_of(axis, one.size, options.tokens, folder)
                    add(one, [*chosen, *options.overrides], options.steps, options.warmup)
                    said = f"{1e3 * Times(one.seconds[-options.steps :]).median:,.1f} ms a step"
                    print(f"{axis} {one.size:,}, round {turn + 1}: {said}", flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure = options.out.with_suffix(".png")
    draw(found).savefig(figure, dpi=120)
    lines = page(found, options, figure.name)
    options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"written to {options.out} and {figure}")


# ---- measuring ----


def overrides_of(axis: str, size: int, tokens: int, folder: str) -> list[str]:
    """The design and the data at one size."""
    context = size if axis == "context" else 256
    corpus = corpus_folder(folder, size if axis == "corpus" else SMALL_CORPUS)
    own = {"width": [f"model.n_embd={size}"], "depth": [f"model.n_layer={size}"]}
    return [
        *("data=shards", f"data.path='{corpus}'", "tokenizer=char"),
        *(*SMALL, f"model.block_size={context}", f"trainer.batch_size={max(1, tokens // context)}"),
        *own.get(axis, []),
    ]


def add(one: Size, overrides: list[str], steps: int, warmup: int) -> None:
    """Train in a process of its own, and take over what it found. Exits where it fails."""
    counts = ["--steps", str(steps), "--warmup", str(warmup)]
    command = [sys.executable, __file__, "--one", *counts, *overrides]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"ended by {done.returncode}"]
        raise SystemExit(f"{' '.join(overrides)}: {said[-1]}")
    figures = json.loads(done.stdout)
    one.seconds += figures["seconds"]
    one.flops = figures["flops"]
    one.peak += figures["peak"]
    one.beyond += figures["beyond"]


def measure(overrides: list[str], steps: int, warmup: int) -> dict[str, object]:
    """Seconds of steps, FLOPs of one, and the most memory that this process held."""
    train_in_turns([("", composed_config([*overrides, *TINY]))], 1, 0, rounds=1)  # loads libraries
    reset_peak_memory("cpu")
    before = peak_memory_bytes("cpu")
    (one,) = train_in_turns([("", composed_config(overrides))], steps, warmup, rounds=1)
    peak = peak_memory_bytes("cpu")
    beyond = None if peak is None or before is None else peak - before
    if one.runtime.device == "cuda":
        beyond = one.rounds[0].memory
    return {
        "seconds": one.step.seconds,
        "flops": one.flops_per_token * one.tokens_a_step,
        "peak": [] if peak is None else [peak],
        "beyond": [] if beyond is None else [beyond],
    }


def corpus_folder(folder: str, n: int) -> Path:
    """Where the shards of n tokens lie."""
    return Path(folder) / f"{n}_tokens"


def require_room(folder: Path, n_bytes: int) -> None:
    """Exit unless the disk holds so much, and a tenth more."""
    free = shutil.disk_usage(folder).free
    if free < 1.1 * n_bytes:
        raise SystemExit(
            f"{folder}: {n_bytes / 1e9:.1f} GB of tokens, but only {free / 1e9:.1f} GB are free; "
            f"give a smaller --corpus, or another --folder"
        )


def made_up_shards(folder: Path, n: int, sparse: bool) -> None:
    """Write a corpus of n tokens as `minigpt data --shards` would, but that there is no text.

    They are random, or, `sparse`, all the same: holes in files, which take no room on most disks.
    """
    folder.mkdir()
    random = np.random.default_rng(0)
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
                tokens[:] = random.integers(tokenizer.n_vocab, size=length, dtype=np.uint16)
            tokens.flush()
            shards[file] = length
        # A character of these takes two bytes.
        splits[name] = {"target_bytes": 2 * (size - 1), "shards": shards, "ends": 0}
    Index(
        sha256=sha256(f"{n} {sparse}"),
        n_bytes=2 * (n + VAL_TOKENS),
        characters={"train": n, "val": VAL_TOKENS},
        made_with=data_settings(config.data) | tokenizer_settings(config.tokenizer),
        tokenizer_sha256=tokenizer.fingerprint,
        splits=splits,
    ).write(folder)


# ---- the page ----


def page(found: Found, options: argparse.Namespace, figure: str) -> list[str]:
    """The tables, and what they say."""
    facts = ", ".join(f"{key} {value}" for key, value in machine(device_here()).items())
    design = " ".join([*SMALL, *options.overrides])
    corpus = "holes in files" if options.sparse else "random"
    lines = [
        "# How training grows",
        "",
        f"Written by `scripts/growth.py`: {facts}.",
        f"The default design with `{design}`,",
        f"and one thing at a time in other sizes; {options.tokens:,} tokens a step, of a corpus in",
        f"shards ({corpus}). Time: median of {options.rounds} x {options.steps} steps, sizes in",
        "turns, each in a process of its own. FLOPs are the model's own, `flops_per_token`: 6 an",
        "active weight, 12 n_embd a key and layer. MB: the most that the process held, and what of",
        "it came on top of what a tiny training had left it with (on a GPU: the most held there).",
        "Growth is that from the smallest size on; time that grows "
        f"{WORSE} times as much as the FLOPs",
        "or more is worse than the model's own complexity.",
        "",
        *(f"- {verdict(axis, sizes)}" for axis, sizes in found.items()),
        "",
        f"![step time and FLOPs over those of the smallest size, and memory]({figure})",
    ]
    head = ["ms a step (quartiles)", "GFLOPs", "time grew", "FLOPs grew", "time over FLOPs"]
    head += ["MB", "MB on top"]
    for axis, sizes in found.items():
        rows = [
            [
                f"{one.size:,}",
                one.step.describe(),
                f"{one.flops / 1e9:,.2f}",
                f"{time:.2f}",
                f"{flops:.2f}",
                f"{time / flops:.2f}",
                *one.megabytes,
            ]
            for one, (time, flops) in zip(sizes, growths(sizes), strict=True)
        ]
        lines += ["", f"## {axis.capitalize()}", "", *table([UNITS[axis], *head], rows)]
    return lines


def growths(sizes: list[Size]) -> list[tuple[float, float]]:
    """How many times as large as at the first size the time and the FLOPs of a step are."""
    first = sizes[0]
    return [(one.step.median / first.step.median, one.flops / first.flops) for one in sizes]


def verdict(axis: str, sizes: list[Size]) -> str:
    """One sentence on an axis: from the smallest size to the largest."""
    (first, last), (time, flops) = (sizes[0], sizes[-1]), growths(sizes)[-1]
    worse = "worse" if time / flops >= WORSE else "no worse"
    return (
        f"{axis}, {first.size:,} to {last.size:,}: a step takes {time:.2f} times the time and "
        f"{flops:.2f} times the FLOPs, {worse} than the model's own complexity; memory on top from "
        f"{first.megabytes[1]} to {last.megabytes[1]} MB."
    )


def draw(found: Found) -> Figure:
    """Above, step time and FLOPs over those of the smallest size; below, memory."""
    figure = Figure(figsize=(4 * len(found), 6.5), layout="constrained")
    panels = figure.subplots(2, len(found), squeeze=False, sharex="col")
    for (axis, sizes), (above, below) in zip(found.items(), panels.T, strict=True):
        x = [one.size for one in sizes]
        time, flops = zip(*growths(sizes), strict=True)
        above.plot(x, time, marker=".", label="time of a step")
        above.plot(x, flops, marker=".", linestyle="--", label="its FLOPs")
        above.set_ylim(min(time + flops) / 1.5, max(time + flops) * 1.5)
        if all(one.beyond for one in sizes):
            memory = [max(one.beyond) / 1e6 for one in sizes]
            below.plot(x, memory, marker=".", color="C2")
            below.set_ylim(0, 1.2 * max(memory))
        above.set_title(axis)
        above.set_yscale("log", base=2)
        above.yaxis.set_major_formatter("{x:g}")
        below.set_xscale("log", base=10 if axis == "corpus" else 2)
        below.set_xlabel(UNITS[axis])
        if axis != "corpus":
            below.xaxis.set_major_formatter("{x:g}")
        for panel in (above, below):
            panel.grid(alpha=0.3)
    panels[0, 0].set_ylabel("times as much as at the smallest")
    panels[0, 0].legend()
    panels[1, 0].set_ylabel("MB on top")
    return figure


if __name__ == "__main__":
    main()
