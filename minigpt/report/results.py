"""The tables of a report: their columns, rows and notes."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from minigpt.report.comparison import LOSS, Comparison, count
from minigpt.report.designs import Design, shown, varying, word
from minigpt.report.evaluations import LENGTH_CURVES, at_length, lengths
from minigpt.report.runs import Run
from minigpt.report.statistics import (
    ALPHA,
    CONFIDENCE,
    MAX_SEEDS,
    POWER,
    interval,
    seeds_to_detect,
)
from minigpt.report.tables import Cell, Column, Table, markdown_text, to_markdown
from minigpt.run.directory import NOT_STARTED

BEST, NOT_WORSE = "★", "≈"
PERCENT = f"{CONFIDENCE:.0%}"
MEANING = (  # of the words of a verdict, and of a click
    f"Beats: paired t-test over seeds, p below {ALPHA:.2f} after Holm's correction over all pairs "
    f"of designs. Detect: with a power of {POWER:.0%}. A click on a name beside a line hides the "
    f"design in all plots."
)
YES = {None: "", True: "yes", False: "no"}


def tables(comparison: Comparison, checkpoint: str | None) -> list[Table]:
    """Return the tables that have rows, in the order of the page."""
    drafts = [leaderboard(comparison), differences(comparison), mixed(comparison)]
    drafts.append(plan(comparison))
    if checkpoint is not None:
        drafts += [by_length(comparison, checkpoint, curve) for curve in LENGTH_CURVES]
    drafts += [configs(comparison), runs(comparison), versions(comparison)]
    named = "" if comparison.is_alone else f", {comparison.objective}"
    return [replace(table, title=f"{table.title}{named}") for table in drafts if table.rows]


def summary(comparison: Comparison) -> str:
    """Return one line: the number of runs and designs, seeds, baseline and measure."""
    finished = sum(len(design.runs) for design in comparison.designs)
    runs, designs = len(comparison.collection.runs), len(comparison.designs)
    seeds = ", ".join(map(str, comparison.seeds)) or "none"
    base = "" if comparison.baseline is None else f"; baseline: {comparison.baseline.label}"
    return (
        f"{finished} of {count(runs, 'run')} finished, {count(designs, 'design')}; "
        f"seeds: {seeds}{base}; ranked by {comparison.measure.name} ({comparison.measure.unit})"
    )


def markdown(comparison: Comparison, tables: Sequence[Table]) -> str:
    """Return the results of an objective as Markdown, without a title."""
    heading = [f"# {markdown_text(comparison.heading)}", ""] if comparison.heading else []
    lines = [*heading, markdown_text(summary(comparison)), ""]
    lines += [f"- **warning:** {markdown_text(line)}" for line in comparison.warnings]
    lines += [f"- {markdown_text(line)}" for line in comparison.notes]
    return "\n".join([*lines, "", *map(to_markdown, tables)])


def leaderboard(comparison: Comparison) -> Table:
    """Return designs by mean loss, with their losses, then their costs."""
    measure = comparison.measure
    losses = [
        Column("val_loss", "val loss"),
        Column("val_perplexity", "perplexity"),
        Column("val_bits_per_byte", "bits/byte"),
        Column("test_loss", "test loss"),
        Column("test_bits_per_byte", "test bits/byte"),
        Column("train_loss", "train loss"),
    ]
    columns = [
        Column("design"),
        Column("mark", f"{BEST} best, {NOT_WORSE} n.s."),
        *(c for c in losses if comparison.one_tokenizer or c.key == measure.key),
        Column("runs"),
        Column("parameters_total", "parameters"),
        Column("parameters_active", "active parameters"),
        Column("parameters_positional", "positional parameters"),
        Column("flops_per_token", "FLOPs/token", 0),
        Column("tokens_per_second", "tokens/s", 0),
        Column("peak_memory_mib", "peak memory, MiB", 1),
    ]
    rows: list[list[Cell]] = []
    for design in comparison.ranked:
        loss, memory = design.interval("val_loss"), design.interval("peak_memory_bytes")
        total, active = (_exact(design, f"parameters.{kind}") for kind in ("total", "active"))
        cells: dict[str, Cell] = {
            "design": design.label,
            "mark": mark(comparison, design),
            "runs": len(design.runs),
            "val_perplexity": None if loss is None else loss.exp(),
            "parameters_total": total,
            "parameters_active": None if active == total else active,  # less with ffn=moe
            "parameters_positional": _exact(design, "parameters.positional"),
            "flops_per_token": _exact(design, "flops_per_token"),
            "peak_memory_mib": None if memory is None else memory.times(2**-20),
        }
        cells["tokens_per_second"] = design.spread("tokens_per_second")
        others = [column.key for column in columns if column.key not in cells]
        cells |= {key: design.interval(key) for key in others}
        rows.append([cells[column.key] for column in columns])
    kept = [p for p in range(len(columns)) if p < 2 or any(row[p] is not None for row in rows)]
    columns, rows = [columns[p] for p in kept], [[row[p] for p in kept] for row in rows]
    note = (
        f"±: half-width of the {PERCENT} confidence interval of the mean over seeds (Student's t). "
        f"{BEST}: significantly better than every other design. {NOT_WORSE}: lowest mean, or not "
        f"significantly different (n.s.) from it (paired t-tests of {measure.name}, "
        f"{measure.unit}; Holm correction over all pairs of designs). tokens/s: median over seeds "
        f"(lowest to highest)."
    )
    if comparison.one_tokenizer:
        note += f" Losses are in {LOSS.unit}. Perplexity is exp(mean loss), its ± to first order."
    return Table("leaderboard", "Leaderboard", columns, rows, note)


def mark(comparison: Comparison, design: Design) -> str:
    """Return the mark of the best design and of those not significantly different from it.

    '' if there is only one seed.
    """
    finished = [other for other in comparison.designs if other.by_seed]
    if design.label not in comparison.best or len(finished) < 2:
        return ""
    if all(len(other.by_seed) < 2 for other in finished):
        return ""  # one seed gives no test
    is_complete = len(finished) == len(comparison.designs)
    return BEST if len(comparison.best) == 1 and is_complete else NOT_WORSE


def differences(comparison: Comparison) -> Table:
    """Return each design minus the baseline, paired by seed."""
    measure, margin = comparison.measure, comparison.equivalent
    columns = [
        Column("design"),
        Column("difference", sign="+"),
        Column("seeds"),
        Column("p", is_p=True),
        Column("p_holm", "p (Holm)", is_p=True),
        Column("detectable", "minimum detectable effect"),
        Column("significant"),
    ]
    if margin is not None:
        columns += [
            Column("p_tost", "p (TOST)", is_p=True),
            Column("p_tost_holm", "p (TOST, Holm)", is_p=True),
            Column("equivalent", f"equivalent within {margin:g}"),
        ]
    rows: list[list[Cell]] = []
    for design in comparison.ranked:
        difference = comparison.differences.get(design.label)
        if difference is None:
            continue
        row: list[Cell] = [design.label, difference.interval, difference.interval.n]
        row += [difference.p, difference.p_holm, difference.minimum_detectable_effect]
        row += [YES[difference.significant]]
        row += [difference.p_tost, difference.p_tost_holm, YES[difference.equivalent]]
        rows.append(row[: len(columns)])
    name = _baseline(comparison)
    note = (
        f"{measure.name.capitalize()} ({measure.unit}) minus that of {name} with the same seed: "
        f"below 0 is better. ±: half-width of the {PERCENT} confidence interval. p: two-sided "
        f"paired t-test; p (Holm): corrected over all rows; significant: p (Holm) below "
        f"{ALPHA:.2f}. Minimum detectable effect: the true difference d that one test "
        f"with these seeds detects with a power of {POWER:.0%} (noncentral t with noncentrality "
        f"d sqrt(n) / s, where s is the standard deviation of the differences)."
    )
    if margin is not None:
        note += (
            f" p (TOST): the larger p of two one-sided paired t-tests that the difference is above "
            f"-{margin:g} and below {margin:g} {measure.unit}, which is below {ALPHA:.2f} if its "
            f"{1 - 2 * ALPHA:.0%} confidence interval lies within them; equivalent within "
            f"{margin:g}: p (TOST, Holm), corrected over all rows, is below {ALPHA:.2f}. A "
            f"difference that is neither significant nor equivalent needs more seeds."
        )
    return Table("differences", f"Differences to {name}", columns, rows, note)


def mixed(comparison: Comparison) -> Table:
    """Return each group of `--by` minus the baseline, over conditions that vary, if there are."""
    name, measure = _baseline(comparison), comparison.measure
    columns = [
        Column("design"),
        Column("difference", sign="+"),
        Column("conditions"),
        Column("pairs"),
        Column("p", is_p=True),
        Column("p_holm", "p (Holm)", is_p=True),
        Column("between", "deviation between conditions"),
        Column("within", "deviation between seeds"),
    ]
    found = comparison.mixed
    rows: list[list[Cell]] = []
    for label in (design.label for design in comparison.ranked if design.label in found):
        one = found[label]
        row: list[Cell] = [label, one.interval, one.interval.n, one.n_pairs]
        rows.append([*row, one.p, one.p_holm, one.between, one.within])
    note = (
        f"{measure.name.capitalize()} ({measure.unit}) minus that of {name} with the same seed in "
        f"the same condition (all that differs besides {', '.join(map(word, comparison.by))}). A "
        f"mixed model: the difference has a mean, a normal deviation of each condition, and noise "
        f"between seeds (REML by statsmodels; t with as many degrees of freedom as conditions, "
        f"less one). Its interval is about other such conditions too; that of the table above is "
        f"about these conditions."
    )
    return Table("mixed", f"Differences to {name} over conditions", columns, rows, note)


def plan(comparison: Comparison) -> Table:
    """Return how many seeds would detect a difference of `comparison.plan`."""
    effect, measure, name = comparison.plan, comparison.measure, _baseline(comparison)
    if effect is None:
        return Table("plan", "", [], [])
    columns = [
        Column("design"),
        Column("seeds", "seeds so far"),
        Column("deviation", "standard deviation of the differences", 6),
        Column("needed", f"seeds to detect {effect:g}"),
    ]
    rows: list[list[Cell]] = []
    for design in comparison.ranked:
        if design is comparison.baseline:
            continue
        difference = comparison.differences.get(design.label)
        n = 0 if difference is None else difference.interval.n
        deviation = None if difference is None else difference.deviation
        rows.append([design.label, n, deviation, _seeds(effect, deviation)])
    note = (
        f"How many seeds, shared with {name}, one two-sided paired t-test at {ALPHA:.2f} needs to "
        f"detect a true difference of {effect:g} {measure.unit} with a power of {POWER:.0%}, if "
        f"the differences by seed have the standard deviation seen so far; after few seeds that is "
        f"a rough estimate itself. Empty: fewer than 2 shared seeds."
    )
    return Table("plan", f"Seeds to detect {effect:g} {measure.unit}", columns, rows, note)


def _seeds(effect: float, deviation: float | None) -> Cell:
    if deviation is None:
        return None
    needed = seeds_to_detect(effect, deviation)
    return f"more than {MAX_SEEDS:,}" if needed is None else needed


def _baseline(comparison: Comparison) -> str:
    return "" if comparison.baseline is None else comparison.baseline.label


def by_length(comparison: Comparison, checkpoint: str, curve: str) -> Table:
    """Return the measure by context length, from `minigpt eval --lengths` or `--contexts`."""
    measure = comparison.validation
    sizes = lengths(comparison.designs, checkpoint, curve)
    columns = [Column("design"), *(Column(f"at_{n}", f"{n:,}") for n in sizes)]
    rows: list[list[Cell]] = []
    for design in comparison.ranked:
        by_size = [at_length(design, checkpoint, size, measure, curve) for size in sizes]
        if any(by_size):
            cells = (interval([*seeds.values()]) if seeds else None for seeds in by_size)
            rows.append([design.label, *cells])
    title, protocol = LENGTH_CURVES[curve]
    note = (
        f"{measure.name.capitalize()} ({measure.unit}) by context length in tokens. {protocol}; "
        f"weights: {checkpoint}. Empty: no value."
    )
    return Table(curve, title, columns, rows, note)


def configs(comparison: Comparison) -> Table:
    """Return the config values that differ between designs."""
    keys = varying([design.config for design in comparison.designs])
    columns = [
        Column("design"),
        *(Column(key, word(key) if key.endswith(".name") else key) for key in keys),
    ]
    rows: list[list[Cell]] = [
        [design.label, *(_value(design, key) for key in keys)] for design in comparison.designs
    ]
    note = "Every value that differs between designs; empty: the design has no such option."
    if comparison.matched:
        note += f" Set by sweep.match: {', '.join(comparison.matched)}."
    if comparison.tuned:
        note += f" Chosen by a search: {', '.join(comparison.tuned)}."
    return Table("configs", "Configuration differences", columns, rows if keys else [], note)


def runs(comparison: Comparison) -> Table:
    """Return each run with its directory, status, command and commit."""
    labels = {id(run): design.label for design in comparison.designs for run in design.all_runs}
    measure = comparison.measure
    columns = [
        *map(Column, ("run", "design", "seed", "status", "steps")),
        Column(measure.key, f"{measure.name}, {measure.unit}"),
        Column("seconds", digits=1),
        *map(Column, ("device", "commit", "command")),
    ]
    rows: list[list[Cell]] = []
    for run in comparison.collection.runs:
        steps = run.number("steps")
        label = labels.get(id(run), "left out: a newer run has the same design and seed")
        rows.append(
            [
                str(run.path),
                label if run.config else "",
                "" if run.seed is None else str(run.seed),  # as text, without thousands separators
                run.status,
                None if steps is None else int(steps),
                run.number(measure.key),
                run.number("seconds"),
                str(run.result.get("device", "")),
                str(run.manifest.get("commit") or ""),
                _command(run),
            ]
        )
    return Table("runs", "Runs", columns, rows)


def unended(comparison: Comparison) -> Table:
    """Return the progress of runs that train now or were killed, without a result."""
    losses = {key: f"{key.replace('_', ' ')}, nats/token" for key in ("train_loss", "val_loss")}
    columns = [*map(Column, ("run", "status", "step")), Column("steps", "of")]
    columns += [Column(key, title) for key, title in losses.items()]
    rows: list[list[Cell]] = []
    for run in comparison.collection.runs:
        if not run.has_ended and run.status != NOT_STARTED:
            steps = run.config.get("trainer.max_steps")
            of = steps if isinstance(steps, int) else None
            step = run.metrics[-1]["step"] if run.metrics else None
            last = [next(reversed(run.logged(key).values()), None) for key in losses]
            rows.append([run.path.name, run.status, step, of, *last])
    return Table("unended", "Runs that have not ended", columns, rows)


def versions(comparison: Comparison) -> Table:
    """Return the versions of packages, Python and platform, with the number of runs."""
    counts: Counter[tuple[str, str]] = Counter()
    for run in comparison.collection.runs:
        facts = {key: run.manifest.get(key) for key in ("minigpt", "python", "platform", "device")}
        packages = run.manifest.get("versions")
        facts |= packages if isinstance(packages, dict) else {}
        counts.update((name, str(value)) for name, value in facts.items() if value is not None)
    rows: list[list[Cell]] = [[name, version, n] for (name, version), n in counts.items()]
    return Table("versions", "Versions", [*map(Column, ("what", "version", "runs"))], rows)


def _exact(design: Design, key: str) -> Cell:
    """Return a count that is equal for all seeds; for a group, its mean and interval."""
    values = [*design.seeds(key).values()]
    if not values:
        return None
    same = len({*values}) == 1 and values[0].is_integer()
    return int(values[0]) if same else interval(values)


def _value(design: Design, key: str) -> str:
    values = {shown(c[key]) if key in c else "" for c in design.configs}
    return ", ".join(sorted(values))


def commands(comparison: Comparison) -> dict[str, str]:
    """Return the command of each design without the seed, by label; none of groups of designs."""
    single = [design for design in comparison.designs if len(design.configs) == 1]
    found = {design.label: _command(design.all_runs[0], ("seed=", "--seed=")) for design in single}
    return {label: command for label, command in found.items() if command}


def _command(run: Run, without: tuple[str, ...] = ()) -> str:
    """Return the command of a run without the words that begin so."""
    words = run.manifest.get("command")
    known = [*map(str, words)] if isinstance(words, list) else []
    return shlex.join(word for word in known if not (without and word.startswith(without)))
