"""The tables of a report: which numbers stand where, and what their notes say."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence

from minigpt.report.comparison import Comparison
from minigpt.report.designs import Design, shown, varying, word
from minigpt.report.evaluations import Evaluations, at_length, lengths
from minigpt.report.runs import Run
from minigpt.report.statistics import CONFIDENCE, POWER, interval
from minigpt.report.tables import Cell, Column, Table, markdown_text, to_markdown

BEST, ALIKE = "★", "≈"
PERCENT = f"{CONFIDENCE:.0%}"


def tables(comparison: Comparison, evaluations: Evaluations | None) -> list[Table]:
    """Every table that has something to say, in the order of the page."""
    made = [leaderboard(comparison), differences(comparison)]
    if evaluations is not None:
        made.append(by_length(comparison, evaluations))
    made += [configs(comparison), runs(comparison), versions(comparison)]
    return [table for table in made if table.rows]


def summary(comparison: Comparison) -> str:
    """One line: what is compared."""
    counted = sum(len(design.runs) for design in comparison.designs)
    runs, designs = len(comparison.found.runs), len(comparison.designs)
    seeds = ", ".join(map(str, comparison.seeds)) or "none"
    base = "" if comparison.baseline is None else f"; baseline: {comparison.baseline.label}"
    return (
        f"{counted} of {_count(runs, 'run')} finished, {_count(designs, 'design')}; "
        f"seeds: {seeds}{base}; ranked by {comparison.measure.name} ({comparison.measure.unit})"
    )


def markdown(title: str, comparison: Comparison, made: Sequence[Table]) -> str:
    """All of it as one Markdown file."""
    lines = [f"# {markdown_text(title)}", "", markdown_text(summary(comparison)), ""]
    lines += [f"- **warning:** {markdown_text(line)}" for line in comparison.warnings]
    lines += [f"- {markdown_text(line)}" for line in comparison.notes]
    return "\n".join([*lines, "", *map(to_markdown, made)])


def leaderboard(comparison: Comparison) -> Table:
    """Designs from the best mean down, quality first, then cost."""
    measure = comparison.measure
    losses = [
        Column("val_loss", "val loss"),
        Column("val_perplexity", "perplexity"),
        Column("val_bits_per_byte", "bits a byte"),
        Column("train_loss", "train loss"),
    ]
    if not comparison.one_tokenizer:
        losses = [column for column in losses if column.key == measure.key]
    costs = [
        Column("parameters_total", "parameters"),
        Column("parameters_active", "active"),
        Column("parameters_positional", "positional"),
        Column("flops_per_token", "FLOPs/token", 0),
        Column("tokens_per_second", "tokens/s", 0),
        Column("peak_memory_mib", "peak MiB", 1),
    ]
    columns = [
        Column("design", "design"),
        Column("mark", "best"),
        *losses,
        Column("runs", "runs"),
        *costs,
    ]
    rows: list[list[Cell]] = []
    for design in comparison.ranked:
        found: dict[str, Cell] = {
            "design": design.label,
            "mark": mark(comparison, design),
            "runs": len(design.runs),
            "val_loss": design.interval("val_loss"),
            "val_bits_per_byte": design.interval("val_bits_per_byte"),
            "train_loss": design.interval("train_loss"),
            "tokens_per_second": design.interval("tokens_per_second"),
            "flops_per_token": _exact(design, "flops_per_token"),
            "parameters_total": _exact(design, "parameters.total"),
            "parameters_active": _exact(design, "parameters.active"),
            "parameters_positional": _exact(design, "parameters.positional"),
        }
        loss, memory = design.interval("val_loss"), design.interval("peak_memory_bytes")
        found["val_perplexity"] = None if loss is None else loss.exp()
        found["peak_memory_mib"] = None if memory is None else memory.times(2**-20)
        if found["parameters_active"] == found["parameters_total"]:
            found["parameters_active"] = None  # the column is for routed experts
        rows.append([found[column.key] for column in columns])
    kept = [p for p in range(len(columns)) if p < 2 or any(row[p] is not None for row in rows)]
    columns, rows = [columns[p] for p in kept], [[row[p] for p in kept] for row in rows]
    note = (
        f"± is half of the {PERCENT} t-interval of the mean over seeds. {BEST}: better than every "
        f"other design; {ALIKE}: has the lowest mean or is not told apart from it (paired t-tests "
        f"of {measure.name}, {measure.unit}; Holm over all pairs of designs)."
    )
    if comparison.one_tokenizer:
        note += " Perplexity is exp(mean loss), its ± to first order. Losses are nats a token."
    return Table("leaderboard", "Leaderboard", columns, rows, note)


def mark(comparison: Comparison, design: Design) -> str:
    """The sign of a design that is, or may be, the best; '' where nothing can be told."""
    counted = [other for other in comparison.designs if other.by_seed]
    if design.label not in comparison.best or len(counted) < 2:
        return ""
    if all(len(other.by_seed) < 2 for other in counted):
        return ""  # one seed tells nothing, which the notes say
    everyone = len(counted) == len(comparison.designs)
    return BEST if len(comparison.best) == 1 and everyone else ALIKE


def differences(comparison: Comparison) -> Table:
    """Each design minus the baseline, seed by seed."""
    measure, base = comparison.measure, comparison.baseline
    columns = [
        Column("design", "design"),
        Column("difference", "difference", sign="+"),
        Column("seeds", "seeds"),
        Column("p", "p", is_p=True),
        Column("p_holm", "p (Holm)", is_p=True),
        Column("detectable", "detectable"),
        Column("told_apart", "told apart"),
    ]
    rows: list[list[Cell]] = []
    for design in comparison.ranked:
        found = comparison.differences.get(design.label)
        if found is None:
            continue
        p = found.adjusted
        told = "" if p is None else "yes" if p < 1 - CONFIDENCE else "no"
        rows.append(
            [design.label, found.interval, found.interval.n, found.p, p, found.detectable, told]
        )
    name = "" if base is None else base.label
    note = (
        f"{measure.name.capitalize()} ({measure.unit}) minus that of {name} with the same seed: "
        f"below 0 is better. ± is half of the {PERCENT} t-interval of one comparison. p: two-sided "
        f"paired t-test; Holm's holds for all rows together, and told apart is below "
        f"{1 - CONFIDENCE:.2f} there. Detectable, the noise floor: the true difference that so "
        f"many seeds find with a power of {POWER:.0%} in one test (noncentral t with the standard "
        f"deviation s of the differences: P(|T| > t) = {POWER:g} at d = detectable, "
        f"noncentrality d sqrt(n) / s)."
    )
    return Table("differences", f"Differences to {name}", columns, rows, note)


def by_length(comparison: Comparison, evaluations: Evaluations) -> Table:
    """The measure at other context lengths, from minigpt eval --lengths."""
    measure = comparison.measure
    found = lengths(comparison.designs, evaluations)
    columns = [Column("design", "design"), *(Column(f"at_{n}", f"{n:,}") for n in found)]
    rows: list[list[Cell]] = []
    for design in comparison.ranked:
        row: list[Cell] = []
        for length in found:
            seeds = at_length(design, evaluations, length, measure)
            row.append(interval([*seeds.values()]) if seeds else None)
        if any(cell is not None for cell in row):
            rows.append([design.label, *row])
    note = (
        f"{measure.name.capitalize()} ({measure.unit}) with windows of so many tokens, which do "
        f"not overlap; weights: {evaluations.checkpoint}. Empty: not evaluated, or undefined there."
    )
    return Table("lengths", "By length of the context", columns, rows, note)


def configs(comparison: Comparison) -> Table:
    """What differs between the designs' configs."""
    keys = varying([design.config for design in comparison.designs])
    columns = [Column("design", "design"), *(Column(key, _heading(key)) for key in keys)]
    rows: list[list[Cell]] = [
        [design.label, *(_value(design, key) for key in keys)] for design in comparison.designs
    ]
    note = "Every value that differs between designs; empty where a design has no such option."
    if comparison.matched:
        note += f" Changed by the sweep to match: {', '.join(comparison.matched)}."
    return Table("configs", "What differs", columns, rows if keys else [], note)


def runs(comparison: Comparison) -> Table:
    """Each run: where it is, how it ended, what was typed, which code."""
    labels = {id(run): design.label for design in comparison.designs for run in design.all_runs}
    columns = [
        Column("run", "run"),
        Column("design", "design"),
        Column("seed", "seed"),
        Column("status", "status"),
        Column("steps", "steps"),
        Column(comparison.measure.key, f"{comparison.measure.name}, {comparison.measure.unit}", 4),
        Column("seconds", "seconds", 1),
        Column("device", "device"),
        Column("commit", "commit"),
        Column("command", "command"),
    ]
    rows: list[list[Cell]] = []
    for run in comparison.found.runs:
        steps = run.number("steps")
        label = labels.get(id(run), "left out: a newer run has its design and seed")
        rows.append(
            [
                str(run.path),
                label if run.config else "",
                "" if run.seed is None else str(run.seed),  # a name, not an amount
                run.status,
                None if steps is None else int(steps),
                run.number(comparison.measure.key),
                run.number("seconds"),
                str(run.result.get("device", "")),
                str(run.manifest.get("commit") or ""),
                _command(run),
            ]
        )
    return Table("runs", "Runs", columns, rows)


def running(comparison: Comparison) -> Table:
    """How far the runs are that have no result yet."""
    columns = [
        Column("run", "running"),
        Column("step", "step"),
        Column("steps", "of"),
        Column("train_loss", "train loss"),
        Column("val_loss", "val loss"),
    ]
    rows: list[list[Cell]] = []
    for run in comparison.found.runs:
        if run.metrics and "status" not in run.result:
            steps = run.config.get("trainer.max_steps")
            rows.append(
                [
                    run.path.name,
                    run.metrics[-1]["step"],
                    steps if isinstance(steps, int) else None,
                    *(_last(run, key) for key in ("train_loss", "val_loss")),
                ]
            )
    return Table("running", "Running", columns, rows)


def versions(comparison: Comparison) -> Table:
    """Packages, Python and platform by version, and how many runs had it."""
    seen: Counter[tuple[str, str]] = Counter()
    for run in comparison.found.runs:
        facts = {key: run.manifest.get(key) for key in ("minigpt", "python", "platform", "device")}
        packages = run.manifest.get("versions")
        facts |= packages if isinstance(packages, dict) else {}
        seen.update((name, str(value)) for name, value in facts.items() if value is not None)
    columns = [Column("what", "what"), Column("version", "version"), Column("runs", "runs")]
    rows: list[list[Cell]] = [[name, version, n] for (name, version), n in seen.items()]
    return Table("versions", "Versions", columns, rows)


def _exact(design: Design, key: str) -> Cell:
    """A count that seeds do not change, or in a group of designs its mean and interval."""
    values = [*design.seeds(key).values()]
    if not values:
        return None
    same = len({*values}) == 1 and values[0].is_integer()
    return int(values[0]) if same else interval(values)


def _last(run: Run, key: str) -> float | None:
    return next(reversed(run.logged(key).values()), None)


def _count(n: int, what: str) -> str:
    return f"1 {what}" if n == 1 else f"{n} {what}s"


def _heading(key: str) -> str:
    return word(key) if key.endswith(".name") else key


def _value(design: Design, key: str) -> str:
    seen = {shown(c[key]) if key in c else "" for c in design.configs}
    return ", ".join(sorted(seen))


def _command(run: Run) -> str:
    words = run.manifest.get("command")
    return shlex.join(map(str, words)) if isinstance(words, list) else ""
