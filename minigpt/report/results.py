"""The tables of a report: their columns, rows and notes."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence

from minigpt.report.comparison import LOSS, Comparison
from minigpt.report.designs import Design, shown, varying, word
from minigpt.report.evaluations import Evaluations, at_length, lengths
from minigpt.report.runs import Run
from minigpt.report.statistics import CONFIDENCE, POWER, interval
from minigpt.report.tables import Cell, Column, Table, markdown_text, to_markdown

BEST, NOT_WORSE = "★", "≈"
PERCENT = f"{CONFIDENCE:.0%}"


def tables(comparison: Comparison, evaluations: Evaluations | None) -> list[Table]:
    """Return the tables that have rows, in the order of the page."""
    drafts = [leaderboard(comparison), differences(comparison)]
    if evaluations is not None:
        drafts.append(by_length(comparison, evaluations))
    drafts += [configs(comparison), runs(comparison), versions(comparison)]
    return [table for table in drafts if table.rows]


def summary(comparison: Comparison) -> str:
    """Return one line: the number of runs and designs, seeds, baseline and measure."""
    finished = sum(len(design.runs) for design in comparison.designs)
    runs, designs = len(comparison.collection.runs), len(comparison.designs)
    seeds = ", ".join(map(str, comparison.seeds)) or "none"
    base = "" if comparison.baseline is None else f"; baseline: {comparison.baseline.label}"
    return (
        f"{finished} of {_count(runs, 'run')} finished, {_count(designs, 'design')}; "
        f"seeds: {seeds}{base}; ranked by {comparison.measure.name} ({comparison.measure.unit})"
    )


def markdown(title: str, comparison: Comparison, tables: Sequence[Table]) -> str:
    """Return the report as one Markdown file."""
    lines = [f"# {markdown_text(title)}", "", markdown_text(summary(comparison)), ""]
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
        cells: dict[str, Cell] = {
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
        cells["val_perplexity"] = None if loss is None else loss.exp()
        cells["peak_memory_mib"] = None if memory is None else memory.times(2**-20)
        if cells["parameters_active"] == cells["parameters_total"]:
            cells["parameters_active"] = None  # the column is for mixtures of experts
        rows.append([cells[column.key] for column in columns])
    kept = [p for p in range(len(columns)) if p < 2 or any(row[p] is not None for row in rows)]
    columns, rows = [columns[p] for p in kept], [[row[p] for p in kept] for row in rows]
    note = (
        f"±: half-width of the {PERCENT} confidence interval of the mean over seeds (Student's t). "
        f"{BEST}: significantly better than every other design. {NOT_WORSE}: lowest mean, or not "
        f"significantly different from it (paired t-tests of {measure.name}, {measure.unit}; Holm "
        f"correction over all pairs of designs)."
    )
    if comparison.one_tokenizer:
        note += f" Losses are in {LOSS.unit}. Perplexity is exp(mean loss), its ± to first order."
    return Table("leaderboard", "Leaderboard", columns, rows, note)


def mark(comparison: Comparison, design: Design) -> str:
    """Return the mark of a design that is or may be the best; '' without several seeds."""
    finished = [other for other in comparison.designs if other.by_seed]
    if design.label not in comparison.best or len(finished) < 2:
        return ""
    if all(len(other.by_seed) < 2 for other in finished):
        return ""  # one seed gives no test
    is_complete = len(finished) == len(comparison.designs)
    return BEST if len(comparison.best) == 1 and is_complete else NOT_WORSE


def differences(comparison: Comparison) -> Table:
    """Return each design minus the baseline, paired by seed."""
    measure, base = comparison.measure, comparison.baseline
    columns = [
        Column("design", "design"),
        Column("difference", "difference", sign="+"),
        Column("seeds", "seeds"),
        Column("p", "p", is_p=True),
        Column("p_holm", "p (Holm)", is_p=True),
        Column("detectable", "minimum detectable effect"),
        Column("significant", "significant"),
    ]
    rows: list[list[Cell]] = []
    for design in comparison.ranked:
        difference = comparison.differences.get(design.label)
        if difference is None:
            continue
        rows.append(
            [
                design.label,
                difference.interval,
                difference.interval.n,
                difference.p,
                difference.p_holm,
                difference.minimum_detectable_effect,
                {None: "", True: "yes", False: "no"}[difference.significant],
            ]
        )
    name = "" if base is None else base.label
    note = (
        f"{measure.name.capitalize()} ({measure.unit}) minus that of {name} with the same seed: "
        f"below 0 is better. ±: half-width of the {PERCENT} confidence interval. p: two-sided "
        f"paired t-test; p (Holm): corrected over all rows; significant: p (Holm) below "
        f"{1 - CONFIDENCE:.2f}. Minimum detectable effect: the true difference d that one test "
        f"with these seeds detects with a power of {POWER:.0%} (noncentral t with noncentrality "
        f"d sqrt(n) / s, where s is the standard deviation of the differences)."
    )
    return Table("differences", f"Differences to {name}", columns, rows, note)


def by_length(comparison: Comparison, evaluations: Evaluations) -> Table:
    """Return the measure by context length, from `minigpt eval --lengths`."""
    measure = comparison.measure
    sizes = lengths(comparison.designs, evaluations)
    columns = [Column("design", "design"), *(Column(f"at_{n}", f"{n:,}") for n in sizes)]
    rows: list[list[Cell]] = []
    for design in comparison.ranked:
        row: list[Cell] = []
        for length in sizes:
            seeds = at_length(design, evaluations, length, measure)
            row.append(interval([*seeds.values()]) if seeds else None)
        if any(cell is not None for cell in row):
            rows.append([design.label, *row])
    note = (
        f"{measure.name.capitalize()} ({measure.unit}) by context length in tokens, over windows "
        f"that do not overlap; weights: {evaluations.checkpoint}. Empty: no value."
    )
    return Table("lengths", "By context length", columns, rows, note)


def configs(comparison: Comparison) -> Table:
    """Return the config values that differ between designs."""
    keys = varying([design.config for design in comparison.designs])
    columns = [Column("design", "design"), *(Column(key, _heading(key)) for key in keys)]
    rows: list[list[Cell]] = [
        [design.label, *(_value(design, key) for key in keys)] for design in comparison.designs
    ]
    note = "Every value that differs between designs; empty: the design has no such option."
    if comparison.matched:
        note += f" Set by sweep.match: {', '.join(comparison.matched)}."
    return Table("configs", "Configuration differences", columns, rows if keys else [], note)


def runs(comparison: Comparison) -> Table:
    """Return each run with its directory, status, command and commit."""
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
    for run in comparison.collection.runs:
        steps = run.number("steps")
        label = labels.get(id(run), "left out: a newer run has the same design and seed")
        rows.append(
            [
                str(run.path),
                label if run.config else "",
                "" if run.seed is None else str(run.seed),  # text: without thousands separators
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
    """Return the progress of runs without a result."""
    columns = [
        Column("run", "running"),
        Column("step", "step"),
        Column("steps", "of"),
        Column("train_loss", "train loss"),
        Column("val_loss", "val loss"),
    ]
    rows: list[list[Cell]] = []
    for run in comparison.collection.runs:
        if run.metrics and not run.has_ended:
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
    """Return the versions of packages, Python and platform, with the number of runs."""
    counts: Counter[tuple[str, str]] = Counter()
    for run in comparison.collection.runs:
        facts = {key: run.manifest.get(key) for key in ("minigpt", "python", "platform", "device")}
        packages = run.manifest.get("versions")
        facts |= packages if isinstance(packages, dict) else {}
        counts.update((name, str(value)) for name, value in facts.items() if value is not None)
    columns = [Column("what", "what"), Column("version", "version"), Column("runs", "runs")]
    rows: list[list[Cell]] = [[name, version, n] for (name, version), n in counts.items()]
    return Table("versions", "Versions", columns, rows)


def _exact(design: Design, key: str) -> Cell:
    """Return a count that is the same for all seeds; in a group of designs mean and interval."""
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
    values = {shown(c[key]) if key in c else "" for c in design.configs}
    return ", ".join(sorted(values))


def _command(run: Run) -> str:
    words = run.manifest.get("command")
    return shlex.join(map(str, words)) if isinstance(words, list) else ""
