"""Judge the blog posts' claims from the runs that run.py trained.

A claim is the sentence in configs/experiment/claims/NAME.yaml. Its finding is a verdict with tables
of differences: paired by seed, 95 % t-intervals, p-values Holm-corrected within the claim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from minigpt.bench.attention import one_layer, random_windows, time_layers
from minigpt.bench.measure import device_here, kept_bytes
from minigpt.errors import UserError
from minigpt.files import read_json
from minigpt.report.comparison import LOSS
from minigpt.report.designs import Design, differences, group
from minigpt.report.evaluations import at_length
from minigpt.report.runs import find_runs
from minigpt.report.statistics import CONFIDENCE, Seeds, holm, interval, minus, paired_p
from minigpt.report.tables import Cell, Column, Table

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
TOLERANCE = 0.02  # nats/token; losses that differ by less count as equivalent
BITS_TOLERANCE = TOLERANCE / math.log(2)  # bits/byte, for characters of one byte
FAR = 0.1  # nats/token
LENGTHS = (64, 256, 1024, 2048)  # lengths for the comparison of backends
TOKENS, REPEATS = 4096, 7
INPUT_ONLY = ("learned", "sinusoidal")
EXTRAPOLATING = ("alibi", "rope", "sinusoidal", "t5")  # judged beyond the training length

EFFECT = [Column("comparison"), Column("difference", sign="+"), Column("p", "p (Holm)", is_p=True)]


@dataclass(frozen=True)
class Finding:
    """The verdict on a claim, the reason and the numbers. `about`: what was trained."""

    verdict: str
    reason: str
    tables: list[Table]
    about: str = ""


# ---- runs ----


class Runs:
    """The runs in a folder, grouped into designs by keys of their config.

    Raises UserError if a run neither finished nor diverged, which would silently change a mean, and
    if two designs have the same keys.
    """

    def __init__(self, folder: Path, *keys: str) -> None:
        self.folder = folder
        self.designs: dict[tuple[str, ...], Design] = {}
        for design in group(find_runs([str(folder)]).runs, []):
            for run in design.unfinished:
                if run.result.get("diverged") is not True:
                    raise UserError(f"{run.path}: {run.status}; run studies/claims/run.py again")
            values = tuple(str(design.config.get(key)) for key in keys)
            if values in self.designs:
                what = ", ".join(differences(self.designs[values].config, design.config))
                raise UserError(
                    f"{folder}: runs of {' '.join(values)} differ in {what}; use another folder"
                )
            self.designs[values] = design

    def __getitem__(self, values: tuple[str, ...]) -> Design:
        """Return the design with these values of the keys."""
        if values not in self.designs:
            raise UserError(f"{self.folder}: no run of {' '.join(values)}; run run.py again")
        return self.designs[values]

    def losses(self, *values: str, bits: bool = False) -> Seeds:
        """Return the validation loss of a design by seed, in nats/token or bits/byte.

        A diverged run counts with the loss of uniform guessing: ln n per token.
        """
        seeds = self[values].seeds("val_bits_per_byte" if bits else "val_loss")
        for run in self[values].unfinished:
            if bits:
                raise UserError(f"{run.path}: diverged, so its bits/byte are unknown")
            if run.seed is not None:
                seeds[run.seed] = math.log(run.manifest["vocabulary"])
        return seeds

    def number(self, key: str, *values: str) -> int:
        """Return a number that all runs of a design share."""
        (number,) = {run.number(key) for run in self[values].all_runs}
        assert number is not None
        return int(number)

    def finding(self, verdict: str, reason: str, *tables: Table) -> Finding:
        """Return a finding with a sentence about the design that was trained."""
        runs = [run for design in self.designs.values() for run in design.all_runs]

        def shown(key: str) -> str:
            return listed(run.config.get(key) for run in runs)

        about = (
            f"{shown('model.n_layer')} layers, {shown('model.n_head')} heads, width "
            f"{shown('model.n_embd')}, block {shown('model.block_size')}, batch "
            f"{shown('trainer.batch_size')}, {shown('trainer.max_steps')} steps, learning rate "
            f"{shown('optimizer.lr')}, {shown('data.name')} as {shown('tokenizer.name')} tokens, "
            f"seeds {shown('seed')}."
        )
        return Finding(verdict, reason, [*tables], about)


def listed(values: Iterable[object]) -> str:
    """Return the different values, separated by commas."""
    return ", ".join(dict.fromkeys(map(str, values)))


def positional_runs(folder: Path) -> Runs:
    """Return the runs shared by the claims about positions."""
    return Runs(folder / "positional", "model.positional.name")


# ---- statistics ----


def compare(losses: Callable[[str], Seeds], pairs: Iterable[tuple[str, str]]) -> dict[str, Seeds]:
    """Return the differences of pairs of designs by seed, under the name `one minus other`."""
    return {f"{one} minus {other}": minus(losses(one), losses(other)) for one, other in pairs}


def judge(
    name: str, title: str, effects: dict[str, Seeds], tolerance: float = TOLERANCE
) -> tuple[Table, list[str]]:
    """Return a table of differences, and a sign for each.

    equivalent: the whole interval lies within `tolerance` of 0. below, above: significantly
    different from 0, and the whole interval beyond `tolerance`. slightly below, slightly above:
    significantly different, but not wholly beyond. undecided: all others, and those of one seed.
    """
    differences = [[*by_seed.values()] for by_seed in effects.values()]
    adjusted = holm([paired_p(values) for values in differences])
    rows: list[list[Cell]] = []
    signs = []
    for effect, values, p in zip(effects, differences, adjusted, strict=True):
        mean = interval(values) if values else None
        rows.append([effect, mean, p])
        if mean is None or p is None:
            signs.append("undecided")
            continue
        side = "below" if mean.mean < 0 else "above"
        near, far = sorted((abs(mean.low), abs(mean.high)))
        if far < tolerance:
            signs.append("equivalent")
        elif p >= 1 - CONFIDENCE:
            signs.append("undecided")
        else:
            signs.append(side if near > tolerance else f"slightly {side}")
    return Table(name, title, EFFECT, rows), signs


BETTER, WORSE = {"below", "slightly below"}, {"above", "slightly above"}


def verdict(signs: Sequence[str], supporting: set[str], opposing: set[str]) -> str:
    """Return HOLDS if every sign supports the claim, FAILS if one opposes it."""
    if signs and all(sign in supporting for sign in signs):
        return HOLDS
    return FAILS if any(sign in opposing for sign in signs) else UNDECIDED


def no_worse(signs: Sequence[str]) -> str:
    """Return HOLDS if no design is worse; slightly worse is undecided."""
    return verdict(signs, {"equivalent", *BETTER}, {"above"})


def better(signs: Sequence[str]) -> str:
    """Return HOLDS if every design is better."""
    return verdict(signs, BETTER, {"equivalent", *WORSE})


def means(title: str, heading: str, losses: dict[str, Seeds], unit: str) -> Table:
    """Return the mean loss of each design."""
    rows: list[list[Cell]] = [[label, interval([*s.values()])] for label, s in losses.items()]
    return Table("means", title, [Column(heading), Column("value", unit)], rows)


# ---- claims ----


def inside_blocks(folder: Path) -> Finding:
    runs = positional_runs(folder)
    inside = sorted(name for (name,) in runs.designs if name not in INPUT_ONLY)
    effects = compare(runs.losses, ((one, other) for one in inside for other in INPUT_ONLY))
    table, signs = judge("inside", "In every block minus at the input only", effects)
    losses = {name: runs.losses(name) for name in (*INPUT_ONLY, *inside)}
    reason = (
        f"{sum(sign in BETTER for sign in signs)} of {len(signs)} differences are improvements."
    )
    return runs.finding(
        better(signs), reason, means("Validation loss", "positional", losses, "nats/token"), table
    )


def alike(folder: Path) -> Finding:
    runs = positional_runs(folder)
    pairs = (("relative_bias", "alibi"), ("relative_bias", "rope"), ("alibi", "rope"))
    table, signs = judge("alike", "Paired differences", compare(runs.losses, pairs))
    reason = f"The same: the whole interval lies within {TOLERANCE} nats of 0."
    return runs.finding(verdict(signs, {"equivalent"}, {"below", "above"}), reason, table)


def parameters(folder: Path) -> Finding:
    runs = positional_runs(folder)
    counts = {name: runs.number("parameters.positional", name) for (name,) in runs.designs}
    order = sorted(counts, key=lambda name: (counts[name], name))
    columns = [Column("positional"), Column("n", "parameters of the scheme")]
    fewest, second = (
        [name for name in order if counts[name] == n] for n in [*sorted({*counts.values()}), -1][:2]
    )
    reason = f"The fewest: {', '.join(fewest)}; the next: {', '.join(second) or 'no other'}."
    return runs.finding(
        HOLDS if (fewest, second) == (["alibi"], ["rope"]) else FAILS,
        reason,
        Table("parameters", "Parameters", columns, [[name, counts[name]] for name in order]),
    )


def beyond(folder: Path) -> Finding:
    runs = positional_runs(folder)
    (block,) = {int(design.config["model.block_size"]) for design in runs.designs.values()}
    lengths = [block, 2 * block, 4 * block, 8 * block]
    columns = [Column("positional"), *(Column(str(n)) for n in lengths)]
    losses = {
        (name, n): at_length(runs[(name,)], "last", n, LOSS)
        for name in EXTRAPOLATING
        for n in lengths
    }
    rows: list[list[Cell]] = [
        [name, *(interval([*losses[name, n].values()]) for n in lengths)] for name in EXTRAPOLATING
    ]
    effects = {
        f"{name} at {n} minus at {block}": minus(losses[name, n], losses[name, block])
        for name in EXTRAPOLATING
        for n in lengths[1:]
    }
    table, signs = judge("growth", "Effect of a longer context", effects)
    longer = len(lengths) - 1
    by_name = {n: signs[i * longer : (i + 1) * longer] for i, n in enumerate(EXTRAPOLATING)}
    alibi = no_worse(by_name.pop("alibi"))
    others = {n: verdict(s, {"equivalent", *BETTER}, WORSE) for n, s in by_name.items()}
    worse = [name for name, is_no_worse in others.items() if is_no_worse == FAILS]
    if alibi == HOLDS and len(worse) == len(others):
        answer = HOLDS
    else:
        answer = FAILS if alibi == FAILS or HOLDS in others.values() else UNDECIDED
    reason = (
        f"That ALiBi gets no worse (within {TOLERANCE} nats): {alibi}. Worse at some length: "
        f"{', '.join(worse) or 'no other scheme'}."
    )
    return runs.finding(
        answer, reason, Table("lengths", "Validation loss by context length", columns, rows), table
    )


def learned_sinusoidal(folder: Path) -> Finding:
    runs = positional_runs(folder)
    effect = compare(runs.losses, [("learned", "sinusoidal")])
    table, (sign,) = judge("learned", "Paired difference", effect)
    is_better = verdict([sign], {"below"}, {"equivalent", *WORSE})
    reason = f"No better: not lower by more than {TOLERANCE} nats."
    return runs.finding(
        {HOLDS: FAILS, FAILS: HOLDS, UNDECIDED: UNDECIDED}[is_better], reason, table
    )


def tying(folder: Path) -> Finding:
    runs = Runs(folder / "tying", "tokenizer.name", "model.embedding.name")
    tokenizers = sorted({name for name, _ in runs.designs})
    kinds = ("tied", "untied")
    effects = {
        f"{name}: tied minus untied": minus(*(runs.losses(name, kind) for kind in kinds))
        for name in tokenizers
    }
    table, signs = judge("tying", "Paired differences, nats/token", effects)
    columns = [Column(heading) for heading in ("tokenizer", *kinds)]
    rows: list[list[Cell]] = [
        [name, *(runs.number("parameters.total", name, kind) for kind in kinds)]
        for name in tokenizers
    ]
    reason = f"No cost: tied is better, or within {TOLERANCE} nats."
    return runs.finding(
        no_worse(signs), reason, Table("parameters", "Parameters", columns, rows), table
    )


def norm(folder: Path) -> Finding:
    runs = Runs(folder / "norm", "model.norm.placement", "optimizer.lr")
    rates = sorted({rate for _, rate in runs.designs}, key=float)
    losses = {(p, rate): runs.losses(p, rate) for p in ("pre", "post") for rate in rates}
    effects = {f"pre minus post at {r}": minus(losses["pre", r], losses["post", r]) for r in rates}
    low, high = effects.values()
    effects |= {"difference at the high rate minus at the low": minus(high, low)}
    table, signs = judge("norm", "Paired differences", effects)
    diverged = [
        f"{len(design.unfinished)} of {len(design.all_runs)} runs of {placement} at {rate}"
        for (placement, rate), design in runs.designs.items()
        if design.unfinished
    ]
    labelled = {f"{placement}, lr {rate}": seeds for (placement, rate), seeds in losses.items()}
    reason = f"Diverged: {', '.join(diverged) or 'no run'}; a diverged run counts as guessing."
    return runs.finding(
        better(signs), reason, means("Validation loss", "norm", labelled, "nats/token"), table
    )


def tokenizer(folder: Path) -> Finding:
    runs = Runs(folder / "tokenizer", "tokenizer.name")
    bits = {n: runs.losses(n, bits=True) for n in ("char", "bpe", "gpt2")}
    effects = compare(bits.__getitem__, [("char", "bpe"), ("char", "gpt2")])
    table, signs = judge("tokenizer", "Paired differences, bits/byte", effects, BITS_TOLERANCE)
    reason = (
        "Losses per token of different tokenizers are not comparable; bits/byte are. The number of "
        "steps is the same, so larger tokens read more text."
    )
    return runs.finding(
        better(signs), reason, means("Validation loss", "tokenizer", bits, "bits/byte"), table
    )


def bigram(folder: Path) -> Finding:
    runs = positional_runs(folder)
    losses = Runs(folder / "bigram", "model.name").losses("bigram")
    names = sorted(name for (name,) in runs.designs)
    effects = {f"bigram minus {name}": minus(losses, runs.losses(name)) for name in names}
    table, signs = judge("bigram", "Paired differences", effects)
    gaps = [interval([*by_seed.values()]) for by_seed in effects.values()]
    far = HOLDS if min(gap.low for gap in gaps) > FAR else FAILS
    reason = (
        f"Far: the whole interval is beyond {FAR} nats; the smallest difference is "
        f"{min(gap.mean for gap in gaps):.2f}."
    )
    return runs.finding(UNDECIDED if "undecided" in signs else far, reason, table)


def heads(folder: Path) -> Finding:
    runs = Runs(folder / "heads", "model.n_kv_head")
    counts = sorted((int(n) for (n,) in runs.designs), reverse=True)
    most, *fewer = counts
    losses = {f"{n}": runs.losses(f"{n}") for n in counts}
    effects = {f"{n} minus {most} heads": minus(losses[f"{n}"], losses[f"{most}"]) for n in fewer}
    table, signs = judge("heads", "Paired differences", effects)
    config = runs[(str(most),)].config
    head_size = int(config["model.n_embd"]) // int(config["model.n_head"])
    titles = ("key-value heads", "cache, bytes/token (fp32)", "validation loss")
    columns = [*map(Column, ("heads", "bytes", "loss"), titles)]
    head_bytes = 2 * 4 * head_size * int(config["model.n_layer"])
    rows: list[list[Cell]] = [
        [str(n), n * head_bytes, interval([*losses[f"{n}"].values()])] for n in counts
    ]
    reason = f"Little: better, or within {TOLERANCE} nats."
    return runs.finding(
        no_worse(signs), reason, Table("cache", "Loss against cache", columns, rows), table
    )


def backend(_folder: Path, overrides: Sequence[str] = ()) -> Finding:
    """Measure time and memory of one layer with both backends, interleaved."""
    columns = [
        Column("length"),
        Column("ratio", "time, sdpa over eager", digits=2),
        Column("eager", "eager saves, MB", digits=0),
        Column("sdpa", "sdpa saves, MB", digits=0),
    ]
    rows: list[list[Cell]] = []
    ratios, device = [], device_here()
    eager = sdpa = 0.0  # MB at the longest length
    for length in LENGTHS:
        chosen = ["experiment=claims/backend", *overrides]
        layers = {name: one_layer(chosen, length, name, device) for name in ("eager", "sdpa")}
        models = {name: model for name, model in layers.items() if model is not None}
        tokens = random_windows(TOKENS, length, device)
        times = time_layers(models, tokens, REPEATS, device)
        pairs = zip(times["sdpa"].seconds, times["eager"].seconds, strict=True)
        ratios.append(interval([math.log(a / b) for a, b in pairs]).exp())
        eager, sdpa = (kept_bytes(model, tokens) / 1e6 for model in models.values())
        rows.append([str(length), ratios[-1], eager, sdpa])
    falls = all(a.mean > b.mean for a, b in pairwise(ratios))
    reason = (
        f"One layer, {TOKENS:,} tokens in windows of each length, forward and backward in fp32 on "
        f"{device}; ± over {REPEATS} repeats."
    )
    answer = HOLDS if ratios[-1].high < 1 and falls and sdpa < eager else FAILS
    return Finding(answer, reason, [Table("backend", "SDPA against eager", columns, rows)])


def early_stopping(folder: Path) -> Finding:
    searches: dict[str, dict[int, dict[str, Any]]] = {"asha": {}, "none": {}}
    for file in sorted((folder / "early_stopping").glob("*_*/tune.json")):
        scheduler, _, seed = file.parent.name.rpartition("_")
        search = searches[scheduler][int(seed)] = read_json(file)
        if search["status"] != "finished":
            raise UserError(f"{file}: not finished; run studies/claims/run.py again")
    if not searches["asha"]:
        raise UserError(f"{folder}: no search with early stopping; run studies/claims/run.py")
    early, full = (
        {seed: search["best"]["value"] for seed, search in searches[name].items()}
        for name in ("asha", "none")
    )
    effect = {"asha minus full": minus(early, full)}
    table, (sign,) = judge("best", "Best validation loss found", effect)
    savings = [search["saving"] for search in searches["asha"].values()]
    share = interval([saving["steps_trained"] / saving["steps_in_full"] for saving in savings])
    columns = [Column("scheduler"), Column("share", "share of the steps", digits=3)]
    work = Table(
        "work", "Steps trained, of the steps of all trials in full", columns, [["asha", share]]
    )
    n_trials = sum(len(search["trials"]) for search in searches["asha"].values())
    max_steps = max(search["max_steps"] for search in searches["asha"].values())
    reason = (
        f"As good: better, or within {TOLERANCE} nats. The same {len(full)} searches with the same "
        "configs for both."
    )
    return Finding(
        no_worse([sign]) if share.high < 1 else FAILS,
        reason,
        [table, work],
        f"{n_trials} trials of at most {max_steps} steps.",
    )


CLAIMS: dict[str, Callable[[Path], Finding]] = {
    claim.__name__: claim
    for claim in (
        *(inside_blocks, alike, parameters, beyond, learned_sinusoidal, tying, norm, backend),
        *(tokenizer, bigram, heads, early_stopping),
    )
}
