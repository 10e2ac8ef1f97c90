"""The posts' claims, tested on the runs of scripts/reproduce_claims.sh.

    python scripts/claims.py runs/claims docs/claims.md

Each claim is the sentence of configs/experiment/claims/NAME.yaml, a table of effects with 95 %
intervals, and a verdict. Differences are paired by seed; p-values are Holm's within a claim.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from bench_group import device_here, kept_bytes

from minigpt.config import composed_config
from minigpt.hydra_app import config_directory
from minigpt.model import GPT
from minigpt.model.backends import BACKENDS
from minigpt.report.designs import Design, group
from minigpt.report.runs import Run, find_runs
from minigpt.report.statistics import CONFIDENCE, Seeds, holm, interval, paired
from minigpt.report.tables import Cell, Column, Table, to_markdown

HOLDS, FAILS, OPEN = "holds", "does not hold", "cannot tell"
ALIKE = 0.02  # nats a token: a difference below it is called none
LENGTHS = (64, 256, 1024, 2048)  # of backends
TOKENS, REPEATS = 4096, 7
INPUT_ONLY = ("learned", "sinusoidal")

EFFECT = (
    Column("comparison", "comparison"),
    Column("difference", "difference", sign="+"),
    Column("p", "p (Holm)", is_p=True),
)


@dataclass(frozen=True)
class Finding:
    """What a claim came to: a verdict, why, and the numbers behind it."""

    verdict: str
    reason: str
    tables: list[Table]


# ---- runs ----


class Runs:
    """The runs of one folder, grouped into designs by keys of their config."""

    def __init__(self, folder: Path, *keys: str) -> None:
        self.found: list[Run] = find_runs([str(folder)]).runs
        self.designs: dict[tuple[str, ...], Design] = {}
        for design in group(self.found, []):
            self.designs[tuple(str(design.config.get(key)) for key in keys)] = design

    def seeds(self, *values: str, key: str = "val_loss") -> Seeds:
        """A number of result.json of one design, by seed."""
        return self.designs[values].seeds(key)

    def at_length(self, length: int, *values: str) -> Seeds:
        """The validation loss of one design with windows of a length, by seed."""
        found = {}
        for run in self.designs[values].runs:
            entry = run.evaluations["last"]["lengths"].get(str(length), {})
            if run.seed is not None and entry.get("loss") is not None:
                found[run.seed] = float(entry["loss"])
        return found

    def number(self, key: str, *values: str) -> int:
        """A number that all runs of one design share."""
        (number,) = {run.number(key) for run in self.designs[values].runs}
        assert number is not None
        return int(number)


@dataclass(frozen=True)
class Effect:
    """One thing minus another, by seed."""

    name: str
    one: Seeds
    other: Seeds


def tested(name: str, title: str, effects: Sequence[Effect]) -> tuple[Table, list[str]]:
    """A table of differences, and of each whether it is 'below', 'above', 'alike' or 'open'."""
    found = [paired(effect.one, effect.other) for effect in effects]
    adjusted = holm([None if d is None else d.p for d in found])
    rows: list[list[Cell]] = []
    signs = []
    for effect, difference, p in zip(effects, found, adjusted, strict=True):
        if difference is None or p is None:
            rows.append([effect.name, None, None])
            signs.append("open")
            continue
        found_interval = difference.interval
        rows.append([effect.name, found_interval, p])
        if abs(found_interval.low) < ALIKE and abs(found_interval.high) < ALIKE:
            sign = "alike"
        elif p >= 1 - CONFIDENCE:
            sign = "open"
        else:
            sign = "below" if found_interval.mean < 0 else "above"
        signs.append(sign)
    return Table(name, title, list(EFFECT), rows), signs


def all_are(wanted: str, signs: Sequence[str], against: Sequence[str]) -> str:
    """`holds` where every sign is the wanted one, `does not` where one is against it."""
    if all(sign == wanted for sign in signs):
        return HOLDS
    return FAILS if any(sign in against for sign in signs) else OPEN


def levels(name: str, title: str, word: str, seeds: dict[str, Seeds], unit: str) -> Table:
    """The mean of each design."""
    columns = [Column(word, word), Column("value", unit)]
    rows: list[list[Cell]] = [[label, interval([*s.values()])] for label, s in seeds.items() if s]
    return Table(name, title, columns, rows)


# ---- claims ----


def inside_blocks(folder: Path) -> Finding:
    runs = Runs(folder / "positional", "model.positional.name")
    inside = sorted(name for (name,) in runs.designs if name not in INPUT_ONLY)
    losses = {name: runs.seeds(name) for name in (*INPUT_ONLY, *inside)}
    effects = [
        Effect(f"{one} minus {other}", losses[one], losses[other])
        for one in inside
        for other in INPUT_ONLY
    ]
    table, signs = tested("inside", "Inside every block minus at the input alone", effects)
    better = sum(sign == "below" for sign in signs)
    return Finding(
        all_are("below", signs, ["above"]),
        f"{better} of {len(signs)} differences are improvements.",
        [levels("levels", "Validation loss", "positional", losses, "nats a token"), table],
    )


def alike(folder: Path) -> Finding:
    runs = Runs(folder / "positional", "model.positional.name")
    pairs = (("relative_bias", "alibi"), ("relative_bias", "rope"), ("alibi", "rope"))
    effects = [Effect(f"{a} minus {b}", runs.seeds(a), runs.seeds(b)) for a, b in pairs]
    table, signs = tested("alike", "Paired differences", effects)
    return Finding(
        all_are("alike", signs, ["below", "above"]),
        f"Alike means that the whole interval lies within {ALIKE} nats of 0.",
        [table],
    )


def parameters(folder: Path) -> Finding:
    runs = Runs(folder / "positional", "model.positional.name")
    counts = {name: runs.number("parameters.positional", name) for (name,) in runs.designs}
    order = sorted(counts, key=lambda name: (counts[name], name))
    columns = [Column("positional", "positional"), Column("n", "parameters of the scheme")]
    none = [name for name in order if counts[name] == 0]
    return Finding(
        HOLDS if counts["alibi"] == 0 and none == ["alibi"] else FAILS,
        f"{', '.join(none)} have none at all, so ALiBi is among the fewest but not alone.",
        [Table("parameters", "Parameters", columns, [[name, counts[name]] for name in order])],
    )


def beyond(folder: Path) -> Finding:
    runs = Runs(folder / "positional", "model.positional.name")
    names = ("alibi", "rope", "sinusoidal", "t5")
    (block,) = {int(run.config["model.block_size"]) for run in runs.found}
    lengths = [block, 2 * block, 4 * block, 8 * block]
    columns = [Column("positional", "positional"), *(Column(str(n), str(n)) for n in lengths)]
    rows: list[list[Cell]] = [
        [name, *(interval([*runs.at_length(n, name).values()]) for n in lengths)] for name in names
    ]
    effects = [
        Effect(
            f"{name} at {n} minus at {block}", runs.at_length(n, name), runs.at_length(block, name)
        )
        for name in names
        for n in lengths[1:]
    ]
    table, signs = tested("growth", "What a longer context changes", effects)
    step = len(lengths) - 1
    own, others = signs[:step], signs[step:]
    worse = [
        name for i, name in enumerate(names[1:]) if "above" in others[i * step : (i + 1) * step]
    ]
    if "above" in own:
        verdict = FAILS
    else:
        verdict = HOLDS if len(worse) == len(names) - 1 else OPEN if not worse else FAILS
    return Finding(
        verdict,
        f"ALiBi gets worse at {own.count('above')} of {step} lengths; worse at some length: "
        f"{', '.join(worse) or 'no other scheme'}.",
        [Table("lengths", "Validation loss by context length", columns, rows), table],
    )


def learned_sinusoidal(folder: Path) -> Finding:
    runs = Runs(folder / "positional", "model.positional.name")
    effect = Effect("learned minus sinusoidal", runs.seeds("learned"), runs.seeds("sinusoidal"))
    table, (sign,) = tested("learned", "Paired difference", [effect])
    verdicts = {"below": FAILS, "above": HOLDS, "alike": HOLDS, "open": OPEN}
    return Finding(verdicts[sign], f"No better: not below, or within {ALIKE} nats.", [table])


def tying(folder: Path) -> Finding:
    runs = Runs(folder / "tying", "tokenizer.name", "model.embedding.name")
    tokenizers = sorted({name for name, _ in runs.designs})
    effects = [
        Effect(f"{name}: tied minus untied", runs.seeds(name, "tied"), runs.seeds(name, "untied"))
        for name in tokenizers
    ]
    table, signs = tested("tying", "Paired differences, nats a token", effects)
    columns = [Column("tokenizer", "tokenizer"), Column("tied", "tied"), Column("untied", "untied")]
    rows: list[list[Cell]] = [
        [name, *(runs.number("parameters.total", name, kind) for kind in ("tied", "untied"))]
        for name in tokenizers
    ]
    no_worse = ["alike" if sign == "below" else sign for sign in signs]
    return Finding(
        all_are("alike", no_worse, ["above"]),
        f"No cost: tied is better, or within {ALIKE} nats.",
        [Table("parameters", "Parameters", columns, rows), table],
    )


def norm(folder: Path) -> Finding:
    runs = Runs(folder / "norm", "model.norm.placement", "optimizer.lr")
    rates = sorted({rate for _, rate in runs.designs}, key=float)
    losses = {(p, r): runs.seeds(p, r) for p in ("pre", "post") for r in rates}
    effects = [
        Effect(f"pre minus post at {rate}", losses["pre", rate], losses["post", rate])
        for rate in rates
    ]
    low, high = (
        {
            s: losses["pre", r][s] - losses["post", r][s]
            for s in losses["pre", r].keys() & losses["post", r].keys()
        }
        for r in rates
    )
    effects.append(Effect("that at the high rate minus that at the low", high, low))
    table, signs = tested("norm", "Paired differences", effects)
    ended = [
        f"{sum(not run.finished for run in runs.designs[key].all_runs)} of "
        f"{len(runs.designs[key].all_runs)} runs of {key[0]} at {key[1]}"
        for key in losses
        if any(not run.finished for run in runs.designs[key].all_runs)
    ]
    labelled = {f"{placement}, lr {rate}": seeds for (placement, rate), seeds in losses.items()}
    return Finding(
        all_are("below", signs, ["above", "alike"]),
        f"Diverged: {', '.join(ended) or 'none'}.",
        [levels("levels", "Validation loss", "norm", labelled, "nats a token"), table],
    )


def tokenizer(folder: Path) -> Finding:
    runs = Runs(folder / "tokenizer", "tokenizer.name")
    bits = {n: runs.seeds(n, key="val_bits_per_byte") for n in ("char", "bpe", "gpt2")}
    effects = [Effect(f"char minus {n}", bits["char"], bits[n]) for n in ("bpe", "gpt2")]
    table, signs = tested("tokenizer", "Paired differences, bits a byte", effects)
    return Finding(
        all_are("below", signs, ["above"]),
        "Losses a token of different tokenizers do not compare; bits a byte do.",
        [levels("levels", "Validation loss", "tokenizer", bits, "bits a byte"), table],
    )


def bigram(folder: Path) -> Finding:
    runs = Runs(folder / "positional", "model.positional.name")
    least = Runs(folder / "bigram", "model.name").seeds("bigram")
    effects = [Effect(f"bigram minus {n}", least, runs.seeds(n)) for (n,) in sorted(runs.designs)]
    table, signs = tested("bigram", "Paired differences", effects)
    smallest = min(
        row[1].low for row in table.rows if not isinstance(row[1], str | int | float | None)
    )
    return Finding(
        all_are("above", signs, ["below", "alike"]),
        f"At least {smallest:.2f} nats behind each.",
        [table],
    )


def heads(folder: Path) -> Finding:
    runs = Runs(folder / "heads", "model.n_kv_head")
    counts = sorted((int(n) for (n,) in runs.designs), reverse=True)
    most = counts[0]
    effects = [
        Effect(f"{n} minus {most} heads", runs.seeds(str(n)), runs.seeds(str(most)))
        for n in counts[1:]
    ]
    table, signs = tested("heads", "Paired differences", effects)
    config = runs.designs[(str(most),)].config
    size = int(config["model.n_embd"]) // int(config["model.n_head"])
    columns = [
        Column("heads", "heads of keys and values"),
        Column("bytes", "cache, bytes a token (fp32)"),
        Column("loss", "validation loss"),
    ]
    rows: list[list[Cell]] = [
        [
            str(n),
            2 * 4 * n * size * int(config["model.n_layer"]),
            interval([*runs.seeds(str(n)).values()]),
        ]
        for n in counts
    ]
    return Finding(
        all_are("alike", signs, ["above"]),
        f"Little: within {ALIKE} nats.",
        [Table("cache", "Loss against cache", columns, rows), table],
    )


def backend(folder: Path) -> Finding:
    """Time and memory of one layer, the two in alternation."""
    columns = [
        Column("length", "length"),
        Column("ratio", "time, sdpa over eager", digits=2),
        Column("eager", "eager keeps, MB", digits=0),
        Column("sdpa", "sdpa keeps, MB", digits=0),
    ]
    rows: list[list[Cell]] = []
    ratios = []
    for length in LENGTHS:
        chosen = ["experiment=claims/backend", f"model.block_size={length}"]
        tokens = torch.randint(65, (TOKENS // length, length), device=device_here())
        models = {}
        for name in ("eager", "sdpa"):
            model = GPT(composed_config(chosen).model, n_vocab=65).to(device_here())
            model.backend = BACKENDS[name]
            models[name] = model
        logs = []
        for repeat in range(REPEATS + 1):
            seconds = {name: _step_seconds(model, tokens) for name, model in models.items()}
            if repeat:  # the first one warms up
                logs.append(math.log(seconds["sdpa"] / seconds["eager"]))
        ratio = interval(logs).exp()
        kept = [kept_bytes(model, tokens) / 1e6 for model in models.values()]
        rows.append([str(length), ratio, *kept])
        ratios.append((ratio, kept))
    long = ratios[-1]
    falls = all(a[0].mean > b[0].mean for a, b in pairwise(ratios))
    verdict = HOLDS if long[0].high < 1 and falls and long[1][1] < long[1][0] else FAILS
    return Finding(
        verdict,
        f"One layer, {TOKENS:,} tokens in windows of each length, forward and backward in fp32 on "
        f"{device_here()}; ± over {REPEATS} repeats.",
        [Table("backend", "SDPA against eager", columns, rows)],
    )


def _step_seconds(model: GPT, tokens: torch.Tensor) -> float:
    started = time.perf_counter()
    model.loss(tokens, tokens).backward()
    if tokens.device.type == "cuda":
        torch.cuda.synchronize()
    model.zero_grad()
    return time.perf_counter() - started


def early_stopping(folder: Path) -> Finding:
    found: dict[str, dict[int, dict[str, Any]]] = {"asha": {}, "none": {}}
    for file in sorted((folder / "early_stopping").glob("*_*/tune.json")):
        scheduler, _, seed = file.parent.name.rpartition("_")
        found[scheduler][int(seed)] = tuned = json.loads(file.read_text(encoding="utf-8"))
        if tuned["status"] != "finished":
            raise SystemExit(f"{file}: not finished; run scripts/reproduce_claims.sh again")
    best = {name: {s: t["best"]["value"] for s, t in f.items()} for name, f in found.items()}
    table, (sign,) = tested(
        "best",
        "Best validation loss found",
        [Effect("asha minus full", best["asha"], best["none"])],
    )
    share = interval(
        [
            t["saving"]["steps_trained"] / t["saving"]["steps_in_full"]
            for t in found["asha"].values()
        ]
    )
    columns = [Column("what", "what"), Column("share", "share of the steps", digits=3)]
    work = Table(
        "work", "Steps trained, of those of all trials in full", columns, [["asha", share]]
    )
    good = {"alike": HOLDS, "below": HOLDS, "above": FAILS, "open": OPEN}[sign]
    return Finding(
        good if share.high < 1 else FAILS,
        f"As good: better, or within {ALIKE} nats. The same {len(best['none'])} searches, the same "
        "configs in both.",
        [table, work],
    )


CLAIMS: dict[str, Callable[[Path], Finding]] = {
    claim.__name__: claim
    for claim in (
        *(inside_blocks, alike, parameters, beyond, learned_sinusoidal, tying, norm, backend),
        *(tokenizer, bigram, heads, early_stopping),
    )
}


def sentence(name: str) -> str:
    """The claim as its experiment states it."""
    file = config_directory() / "experiment" / "claims" / f"{name}.yaml"
    line = next(
        x for x in file.read_text(encoding="utf-8").splitlines() if x.startswith("# Claim: ")
    )
    return line.removeprefix("# Claim: ")


def page(findings: dict[str, Finding], folder: Path) -> str:
    """The Markdown page."""
    runs = find_runs([str(folder)]).runs
    # Of them the deepest: the bigram has no layers.
    run = max((r for r in runs if r.finished), key=lambda r: int(r.config["model.n_layer"]))
    config, versions = run.config, run.manifest["versions"]
    seeds = len({run.seed for run in runs})
    lines = [
        "# The posts' claims, tested",
        "",
        "Written by `scripts/claims.py` from what `scripts/reproduce_claims.sh` trained: "
        f"{config['model.n_layer']} layers, {config['model.n_head']} heads, width "
        f"{config['model.n_embd']}, block {config['model.block_size']}, batch "
        f"{config['trainer.batch_size']}, {config['trainer.max_steps']} steps, {seeds} seeds a "
        "design, characters of tiny Shakespeare where nothing else is said; "
        f"{run.manifest['device']}; torch {versions['torch']}, commit "
        f"{str(run.manifest['commit'])[:8]}, {date.today()}.",
        "",
        "± is half of a 95 % t-interval over seeds. Differences are paired by seed; p is that of a",
        "paired t-test, Holm-corrected within a claim. A verdict is of this size, this text and",
        "these steps; `cannot tell` means that so many seeds do not decide it.",
        "",
        "| claim | verdict |",
        "| --- | --- |",
        *(f"| [{sentence(name)}](#{name}) | {f.verdict} |" for name, f in findings.items()),
        "",
    ]
    for name, finding in findings.items():
        lines += [f"## {name}", "", f"*{sentence(name)}*", ""]
        lines += [f"**{finding.verdict.capitalize()}.** {finding.reason}", ""]
        lines += [to_markdown(table).replace("## ", "### ", 1) for table in finding.tables]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Judge every claim, print the verdicts and write the page."""
    parser = argparse.ArgumentParser(description="Verdicts on the posts' claims.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--claims", default=",".join(CLAIMS), help="which (default: all)")
    options = parser.parse_args()
    findings = {name: CLAIMS[name](options.folder) for name in options.claims.split(",")}
    for name, finding in findings.items():
        print(f"{name}: {finding.verdict}. {finding.reason}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(page(findings, options.folder), encoding="utf-8")
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
