"""The posts' claims, tested on the runs of scripts/reproduce_claims.sh.

    python scripts/claims.py runs/claims docs/claims.md --claims "norm heads"

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
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from minigpt.bench.measure import device_here, kept_bytes
from minigpt.config.compose import composed_config
from minigpt.config.groups import config_directory
from minigpt.errors import UserError, require_one_of
from minigpt.model import GPT
from minigpt.model.backends import BACKENDS
from minigpt.report.comparison import LOSS
from minigpt.report.designs import Design, differences, group
from minigpt.report.evaluations import Evaluations, at_length
from minigpt.report.runs import Run, find_runs
from minigpt.report.statistics import CONFIDENCE, Seeds, holm, interval, paired
from minigpt.report.tables import Cell, Column, Table, to_markdown

HOLDS, FAILS, OPEN = "holds", "does not hold", "cannot tell"
ALIKE = 0.02  # nats a token: a difference below it is called none
ALIKE_BITS = ALIKE / math.log(2)  # bits a byte, of characters of one byte
LENGTHS = (64, 256, 1024, 2048)  # of backends
FAR = 0.1  # nats a token
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
    about: str = ""  # what was trained


# ---- runs ----


class Runs:
    """The runs of one folder, grouped into designs by keys of their config.

    Of runs with the same config and seed the newest counts. Raises UserError where one neither
    finished nor diverged, which would drop out of a mean unseen, and where two designs have the
    same keys.
    """

    def __init__(self, folder: Path, *keys: str) -> None:
        self.folder = folder
        self.designs: dict[tuple[str, ...], Design] = {}
        for design in group(find_runs([str(folder)]).runs, []):
            for run in design.unfinished:
                if run.result.get("diverged") is not True:
                    raise UserError(
                        f"{run.path}: {run.status}; run scripts/reproduce_claims.sh again"
                    )
            values = tuple(str(design.config.get(key)) for key in keys)
            if values in self.designs:
                what = ", ".join(differences(self.designs[values].config, design.config))
                raise UserError(
                    f"{folder}: runs of {' '.join(values)} differ in {what}; give the script "
                    f"another folder"
                )
            self.designs[values] = design

    def of(self, *values: str) -> Design:
        """The design with these values of the keys."""
        if values not in self.designs:
            raise UserError(f"{self.folder}: no run of {' '.join(values)}; run the script again")
        return self.designs[values]

    def seeds(self, *values: str, bits: bool = False) -> Seeds:
        """The validation loss of one design by seed, in nats a token or bits a byte.

        Where a run diverged it is that of guessing: ln n a token.
        """
        found = self.of(*values).seeds("val_bits_per_byte" if bits else "val_loss")
        for run in self.of(*values).unfinished:
            if bits:
                raise UserError(f"{run.path}: diverged; its bits a byte are not known")
            if run.seed is not None:
                found[run.seed] = math.log(run.manifest["vocabulary"])
        return found

    def number(self, key: str, *values: str) -> int:
        """A number that all runs of one design share."""
        (number,) = {run.number(key) for run in self.of(*values).all_runs}
        assert number is not None
        return int(number)

    @property
    def about(self) -> str:
        """What was trained: values of the config, several where they differ."""
        runs = [run for design in self.designs.values() for run in design.all_runs]

        def said(key: str) -> str:
            return ", ".join(dict.fromkeys(str(run.config.get(key)) for run in runs))

        return (
            f"{said('model.n_layer')} layers, {said('model.n_head')} heads, width "
            f"{said('model.n_embd')}, block {said('model.block_size')}, batch "
            f"{said('trainer.batch_size')}, {said('trainer.max_steps')} steps, learning rate "
            f"{said('optimizer.lr')}, {said('data.name')} as {said('tokenizer.name')} tokens, "
            f"seeds {said('seed')}."
        )


@dataclass(frozen=True)
class Effect:
    """One thing minus another, by seed."""

    name: str
    one: Seeds
    other: Seeds

    @property
    def by_seed(self) -> Seeds:
        """The difference of each seed that both have."""
        return {s: self.one[s] - self.other[s] for s in self.one.keys() & self.other.keys()}


def judged(
    name: str, title: str, effects: Sequence[Effect], alike: float = ALIKE
) -> tuple[Table, list[str]]:
    """A table of differences, and a sign of each.

    'alike': the whole interval lies within `alike` of 0. 'below', 'above': told apart from 0 and
    wholly beyond `alike`; 'a little below', 'a little above': told apart, but not wholly beyond.
    'open': all else, and all of one seed.
    """
    found = [paired(effect.one, effect.other) for effect in effects]
    adjusted = holm([None if d is None else d.p for d in found])
    rows: list[list[Cell]] = []
    signs = []
    for effect, difference, p in zip(effects, found, adjusted, strict=True):
        rows.append([effect.name, None if difference is None else difference.interval, p])
        if difference is None or p is None:
            signs.append("open")
            continue
        side = "below" if difference.interval.mean < 0 else "above"
        ends = sorted((abs(difference.interval.low), abs(difference.interval.high)))
        if ends[1] < alike:
            signs.append("alike")
        elif p >= 1 - CONFIDENCE:
            signs.append("open")
        else:
            signs.append(side if ends[0] > alike else f"a little {side}")
    return Table(name, title, list(EFFECT), rows), signs


BETTER, WORSE = {"below", "a little below"}, {"above", "a little above"}


def verdict(signs: Sequence[str], wanted: set[str], against: set[str]) -> str:
    """`holds` where every sign is a wanted one, `does not hold` where one is against it."""
    if signs and all(sign in wanted for sign in signs):
        return HOLDS
    return FAILS if any(sign in against for sign in signs) else OPEN


def no_worse(signs: Sequence[str]) -> str:
    """`holds` where every difference is an improvement or none; a little is not decided."""
    return verdict(signs, {"alike", *BETTER}, {"above"})


def levels(name: str, title: str, word: str, seeds: dict[str, Seeds], unit: str) -> Table:
    """The mean of each design."""
    columns = [Column(word, word), Column("value", unit)]
    rows: list[list[Cell]] = [[label, interval([*s.values()])] for label, s in seeds.items()]
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
    table, signs = judged("inside", "Inside every block minus at the input alone", effects)
    better = sum(sign in BETTER for sign in signs)
    return Finding(
        verdict(signs, BETTER, {"alike", *WORSE}),
        f"{better} of {len(signs)} differences are improvements.",
        [levels("levels", "Validation loss", "positional", losses, "nats a token"), table],
        runs.about,
    )


def alike(folder: Path) -> Finding:
    runs = Runs(folder / "positional", "model.positional.name")
    pairs = (("relative_bias", "alibi"), ("relative_bias", "rope"), ("alibi", "rope"))
    effects = [Effect(f"{a} minus {b}", runs.seeds(a), runs.seeds(b)) for a, b in pairs]
    table, signs = judged("alike", "Paired differences", effects)
    return Finding(
        verdict(signs, {"alike"}, {"below", "above"}),
        f"Alike means that the whole interval lies within {ALIKE} nats of 0.",
        [table],
        runs.about,
    )


def parameters(folder: Path) -> Finding:
    runs = Runs(folder / "positional", "model.positional.name")
    counts = {name: runs.number("parameters.positional", name) for (name,) in runs.designs}
    order = sorted(counts, key=lambda name: (counts[name], name))
    columns = [Column("positional", "positional"), Column("n", "parameters of the scheme")]
    fewest, then = (
        [name for name in order if counts[name] == n] for n in [*sorted({*counts.values()}), -1][:2]
    )
    return Finding(
        HOLDS if (fewest, then) == (["alibi"], ["rope"]) else FAILS,
        f"The fewest: {', '.join(fewest)}; the next: {', '.join(then) or 'none'}.",
        [Table("parameters", "Parameters", columns, [[name, counts[name]] for name in order])],
        runs.about,
    )


def beyond(folder: Path) -> Finding:
    runs = Runs(folder / "positional", "model.positional.name")
    names = ("alibi", "rope", "sinusoidal", "t5")
    (block,) = {int(design.config["model.block_size"]) for design in runs.designs.values()}
    lengths = [block, 2 * block, 4 * block, 8 * block]
    columns = [Column("positional", "positional"), *(Column(str(n), str(n)) for n in lengths)]
    losses = {
        (name, n): at_length(runs.of(name), Evaluations("last"), n, LOSS)
        for name in names
        for n in lengths
    }
    rows: list[list[Cell]] = [
        [name, *(interval([*losses[name, n].values()]) for n in lengths)] for name in names
    ]
    effects = [
        Effect(f"{name} at {n} minus at {block}", losses[name, n], losses[name, block])
        for name in names
        for n in lengths[1:]
    ]
    table, signs = judged("growth", "What a longer context changes", effects)
    step = len(lengths) - 1
    of = {name: signs[i * step : (i + 1) * step] for i, name in enumerate(names)}
    own = no_worse(of.pop("alibi"))
    others = [verdict(found, {"alike", *BETTER}, WORSE) for found in of.values()]  # no worse
    if own == HOLDS and all(other == FAILS for other in others):
        found = HOLDS
    else:
        found = FAILS if own == FAILS or HOLDS in others else OPEN
    worse = [name for name, other in zip(of, others, strict=True) if other == FAILS]
    return Finding(
        found,
        f"That ALiBi gets no worse (within {ALIKE} nats) {own}; worse at some length: "
        f"{', '.join(worse) or 'no other scheme'}.",
        [Table("lengths", "Validation loss by context length", columns, rows), table],
        runs.about,
    )


def learned_sinusoidal(folder: Path) -> Finding:
    runs = Runs(folder / "positional", "model.positional.name")
    effect = Effect("learned minus sinusoidal", runs.seeds("learned"), runs.seeds("sinusoidal"))
    table, (sign,) = judged("learned", "Paired difference", [effect])
    beats = verdict([sign], {"below"}, {"alike", *WORSE})
    return Finding(
        {HOLDS: FAILS, FAILS: HOLDS, OPEN: OPEN}[beats],
        f"No better: not below by more than {ALIKE} nats.",
        [table],
        runs.about,
    )


def tying(folder: Path) -> Finding:
    runs = Runs(folder / "tying", "tokenizer.name", "model.embedding.name")
    tokenizers = sorted({name for name, _ in runs.designs})
    effects = [
        Effect(f"{name}: tied minus untied", runs.seeds(name, "tied"), runs.seeds(name, "untied"))
        for name in tokenizers
    ]
    table, signs = judged("tying", "Paired differences, nats a token", effects)
    columns = [Column("tokenizer", "tokenizer"), Column("tied", "tied"), Column("untied", "untied")]
    rows: list[list[Cell]] = [
        [name, *(runs.number("parameters.total", name, kind) for kind in ("tied", "untied"))]
        for name in tokenizers
    ]
    return Finding(
        no_worse(signs),
        f"No cost: tied is better, or within {ALIKE} nats.",
        [Table("parameters", "Parameters", columns, rows), table],
        runs.about,
    )


def norm(folder: Path) -> Finding:
    runs = Runs(folder / "norm", "model.norm.placement", "optimizer.lr")
    rates = sorted({rate for _, rate in runs.designs}, key=float)
    losses = {(p, r): runs.seeds(p, r) for p in ("pre", "post") for r in rates}
    low, high = (
        Effect(f"pre minus post at {r}", losses["pre", r], losses["post", r]) for r in rates
    )
    more = Effect("that at the high rate minus that at the low", high.by_seed, low.by_seed)
    table, signs = judged("norm", "Paired differences", [low, high, more])
    diverged = [
        f"{len(design.unfinished)} of {len(design.all_runs)} runs of {placement} at {rate}"
        for (placement, rate), design in runs.designs.items()
        if design.unfinished
    ]
    labelled = {f"{placement}, lr {rate}": seeds for (placement, rate), seeds in losses.items()}
    return Finding(
        verdict(signs, BETTER, {"alike", *WORSE}),
        f"Diverged: {', '.join(diverged) or 'none'}; such a run counts with the loss of guessing.",
        [levels("levels", "Validation loss", "norm", labelled, "nats a token"), table],
        runs.about,
    )


def tokenizer(folder: Path) -> Finding:
    runs = Runs(folder / "tokenizer", "tokenizer.name")
    bits = {n: runs.seeds(n, bits=True) for n in ("char", "bpe", "gpt2")}
    effects = [Effect(f"char minus {n}", bits["char"], bits[n]) for n in ("bpe", "gpt2")]
    table, signs = judged("tokenizer", "Paired differences, bits a byte", effects, ALIKE_BITS)
    return Finding(
        verdict(signs, BETTER, {"alike", *WORSE}),
        "Losses a token of different tokenizers do not compare; bits a byte do. Steps are the "
        "same, so larger tokens read more text.",
        [levels("levels", "Validation loss", "tokenizer", bits, "bits a byte"), table],
        runs.about,
    )


def bigram(folder: Path) -> Finding:
    runs = Runs(folder / "positional", "model.positional.name")
    least = Runs(folder / "bigram", "model.name").seeds("bigram")
    effects = [Effect(f"bigram minus {n}", least, runs.seeds(n)) for (n,) in sorted(runs.designs)]
    table, signs = judged("bigram", "Paired differences", effects)
    behind = [interval([*effect.by_seed.values()]) for effect in effects]
    far = HOLDS if min(b.low for b in behind) > FAR else FAILS
    return Finding(
        OPEN if "open" in signs else far,
        f"Far: by more than {FAR} nats, the whole interval; the smallest difference is "
        f"{min(b.mean for b in behind):.2f}.",
        [table],
        runs.about,
    )


def heads(folder: Path) -> Finding:
    runs = Runs(folder / "heads", "model.n_kv_head")
    counts = sorted((int(n) for (n,) in runs.designs), reverse=True)
    most = counts[0]
    effects = [
        Effect(f"{n} minus {most} heads", runs.seeds(str(n)), runs.seeds(str(most)))
        for n in counts[1:]
    ]
    table, signs = judged("heads", "Paired differences", effects)
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
        no_worse(signs),
        f"Little: better, or within {ALIKE} nats.",
        [Table("cache", "Loss against cache", columns, rows), table],
        runs.about,
    )


def backend(folder: Path, overrides: Sequence[str] = ()) -> Finding:
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
        chosen = ["experiment=claims/backend", *overrides, f"model.block_size={length}"]
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
    return Finding(
        HOLDS if long[0].high < 1 and falls and long[1][1] < long[1][0] else FAILS,
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
            raise UserError(f"{file}: not finished; run scripts/reproduce_claims.sh again")
    if not found["asha"]:
        raise UserError(f"{folder}: no search that stops early; run scripts/reproduce_claims.sh")
    max_steps = max(t["max_steps"] for t in found["asha"].values())
    best = {name: {s: t["best"]["value"] for s, t in f.items()} for name, f in found.items()}
    table, (sign,) = judged(
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
    n_trials = sum(len(t["trials"]) for t in found["asha"].values())
    return Finding(
        no_worse([sign]) if share.high < 1 else FAILS,
        f"As good: better, or within {ALIKE} nats. The same {len(best['none'])} searches, the same "
        "configs in both.",
        [table, work],
        f"{n_trials} trials in all of {max_steps} steps at most.",
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


def trained(folder: Path) -> str:
    """Where runs were trained, and by which code; empty where a claim needed no training."""
    runs = find_runs([str(folder)]).runs if folder.is_dir() else []

    def said(fact: Callable[[Run], object]) -> str:
        return ", ".join(dict.fromkeys(str(fact(run)) for run in runs if run.finished))

    return (
        f"{said(lambda run: run.manifest['device'])}; torch "
        f"{said(lambda run: run.manifest['versions']['torch'])}, commit "
        f"{said(lambda run: str(run.manifest['commit'])[:8])}."
        if runs
        else ""
    )


def page(findings: dict[str, Finding], folder: Path) -> str:
    """The Markdown page."""
    lines = [
        "# The posts' claims, tested",
        "",
        f"Written by `scripts/claims.py`, {date.today()}, from what `scripts/reproduce_claims.sh` "
        f"trained. {trained(folder)}".rstrip(),
        "",
        "± is half of a 95 % t-interval over seeds. Differences are paired by seed; p is that of a",
        "paired t-test, Holm-corrected within a claim. A verdict is of this size, this text and",
        "these steps; `cannot tell` means that so many seeds do not decide it. A run that diverged",
        "counts with the loss of guessing.",
        "",
        "| claim | verdict |",
        "| --- | --- |",
        *(f"| [{sentence(name)}](#{name}) | {f.verdict} |" for name, f in findings.items()),
        "",
    ]
    for name, finding in findings.items():
        lines += [f"## {name}", "", f"*{sentence(name)}*", ""]
        lines += [f"**{finding.verdict.capitalize()}.** {finding.reason}", ""]
        lines += [finding.about, ""] if finding.about else []
        lines += [to_markdown(table).replace("## ", "### ", 1) for table in finding.tables]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Judge every claim, print the verdicts and write the page."""
    parser = argparse.ArgumentParser(description="Verdicts on the posts' claims.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("overrides", nargs="*", help="what all runs were trained with")
    parser.add_argument("--claims", default=" ".join(CLAIMS), help="which (default: all)")
    options = parser.parse_args()
    if not options.claims.split():
        parser.exit(2, "--claims: names none; leave it out for all\n")
    judges = CLAIMS | {"backend": partial(backend, overrides=options.overrides)}
    findings = {}
    for name in options.claims.split():
        try:
            require_one_of("--claims", name, CLAIMS)
            findings[name] = judges[name](options.folder)
        except UserError as error:
            parser.exit(2, f"{name}: {error}\n")
        print(f"{name}: {findings[name].verdict}. {findings[name].reason}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(page(findings, options.folder), encoding="utf-8")
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
