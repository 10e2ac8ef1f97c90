"""Designs compared: what with what, by which measure, and what to beware of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from minigpt.errors import UserError
from minigpt.report.designs import (
    Design,
    by_key,
    find_design,
    group,
    in_several_ways,
    others,
    shown,
    varying,
    word,
)
from minigpt.report.runs import Found, Run, find_runs
from minigpt.report.statistics import Difference, holm, not_told_apart, paired

MENTIONED = 4  # runs or pairs that one warning names; the tables have all


@dataclass(frozen=True)
class Measure:
    """What designs are ranked by: its key in result.json and in metrics.jsonl, and its name."""

    key: str
    name: str
    unit: str


LOSS = Measure("val_loss", "validation loss", "nats/token")
BITS = Measure("val_bits_per_byte", "validation loss", "bits/byte")


@dataclass(frozen=True)
class Comparison:
    """Designs in the order in which they were started, `baseline` among them.

    `differences` are those of each other design to the baseline, by label, corrected together.
    `best` are the labels of the lowest mean and of what is not told apart from it. `comparable` is
    False where losses are of different texts: then nothing is marked.
    """

    found: Found
    designs: list[Design]
    baseline: Design | None
    measure: Measure
    one_tokenizer: bool
    comparable: bool
    differences: dict[str, Difference]
    best: set[str]
    match: list[str]
    matched: list[str]
    warnings: list[str]
    notes: list[str]

    @property
    def ranked(self) -> list[Design]:
        """Designs from the lowest mean up; those without a number come last."""

        def rank(design: Design) -> tuple[bool, float]:
            found = design.interval(self.measure.key)
            return found is None, 0.0 if found is None else found.mean

        return sorted(self.designs, key=rank)

    @property
    def seeds(self) -> list[int]:
        """Every seed that a counted run has."""
        return sorted({seed for design in self.designs for seed in design.by_seed})


def compare(names: Sequence[str], by: Sequence[str], baseline: str | None) -> Comparison:
    """Read runs, group them into designs and compare those. Raises UserError."""
    found = find_runs(names)
    matches = {_match_of(run).get("what") for run in found.runs if run.config}
    changed = _changed(found.runs) if len(matches) == 1 else []
    designs = group(found.runs, by, changed)
    if baseline is not None and not designs:
        raise UserError(f"--baseline={baseline}: no run has begun; wait for one, or leave it out")
    if baseline is not None:
        base = find_design(baseline, designs)
    else:  # the first one started: the order in which a sweep names them
        base = next((design for design in designs if design.runs), None)
    counted = [run for design in designs for run in design.runs]
    one_tokenizer = len(_values(counted, _tokenizer)) < 2
    comparable = len(_values(counted, _text)) < 2
    measure = LOSS if one_tokenizer else BITS
    numbers = [design.seeds(measure.key) for design in designs]
    best = {designs[place].label for place in not_told_apart(numbers)} if comparable else set()
    match = sorted({str(what) for what in matches if what} if len(matches) == 1 else ())
    comparison = Comparison(
        found=found,
        designs=designs,
        baseline=base,
        measure=measure,
        one_tokenizer=one_tokenizer,
        comparable=comparable,
        differences=_differences(designs, base, measure),
        best=best,
        match=match,
        matched=changed,
        warnings=[],
        notes=[],
    )
    comparison.warnings.extend(warnings(comparison, by))
    comparison.notes.extend(notes(comparison))
    return comparison


def _differences(
    designs: Sequence[Design], baseline: Design | None, measure: Measure
) -> dict[str, Difference]:
    if baseline is None:
        return {}
    base = baseline.seeds(measure.key)
    found = {d.label: paired(d.seeds(measure.key), base) for d in designs if d is not baseline}
    known = {label: difference for label, difference in found.items() if difference is not None}
    adjusted = holm([difference.p for difference in known.values()])
    return {
        label: Difference(d.interval, d.p, d.detectable, p)
        for (label, d), p in zip(known.items(), adjusted, strict=True)
    }


# ---- what to beware of ----


def warnings(comparison: Comparison, by: Sequence[str]) -> list[str]:
    """What may make a difference mean something else than it seems, one line each."""
    found, designs = comparison.found, comparison.designs
    counted = [run for design in designs for run in design.runs]
    return [
        *_texts(comparison, counted),
        *_unfinished(found),
        *found.problems,
        *(f"{design.label}: {note}" for design in designs for note in design.notes),
        *_missing_seeds(comparison),
        *_inside_groups(designs, by),
        *_matches(counted),
        *_several_things(comparison),
        *_steps(comparison),
        *_circumstances(counted),
    ]


def notes(comparison: Comparison) -> list[str]:
    """What holds of all numbers, one line each."""
    lines = []
    if not comparison.one_tokenizer:
        lines.append(
            "Tokenizers differ, so designs are compared by bits per byte only: a loss or a "
            "perplexity is per token, and their tokens are of different length. Bits per byte "
            "counts the same text whatever it was cut into."
        )
    for match in comparison.match:
        lines.append(f"Matched across the designs: {match}.{_adjusted(comparison)}")
    if len(comparison.seeds) == 1:
        lines.append("One seed gives no interval and no test: train more, as seed=1,2,3.")
    backends = _values([r for d in comparison.designs for r in d.runs], _backend)
    if len(backends) > 1:
        lines.append(
            "Attention was computed in different ways: losses compare, speed and memory are of the "
            f"design and its backend together ({_counts(backends)})."
        )
    return lines


def _texts(comparison: Comparison, counted: list[Run]) -> list[str]:
    if comparison.comparable:
        return []
    texts = _values(counted, _text)
    return [
        f"losses are not comparable: runs were trained and measured on different texts or splits "
        f"({_counts(texts)}); nothing is marked as best"
    ]


def _unfinished(found: Found) -> list[str]:
    by_status: dict[str, list[str]] = {}
    for run in found.runs:
        if not run.finished:
            status = run.status
            if status == "finished":
                status = "finished without a validation loss"
            elif (steps := run.number("steps")) is not None:
                status += f" at step {steps:,.0f}"
            error = run.result.get("error")
            by_status.setdefault(f"{status}: {error}" if error else status, []).append(
                str(run.path)
            )
    started = {run.path.resolve() for run in found.runs}
    waiting = [str(job.path) for job in found.jobs if job.path.resolve() not in started]
    if waiting:
        by_status["not started"] = waiting
    return [
        f"{_runs(len(paths))} did not finish and {'is' if len(paths) == 1 else 'are'} left out "
        f"({status}): {_some(paths)}"
        for status, paths in by_status.items()
    ]


def _missing_seeds(comparison: Comparison) -> list[str]:
    lines: dict[str, list[str]] = {}
    for design in comparison.designs:
        missing = [str(s) for s in comparison.seeds if s not in design.by_seed]
        if missing and design.runs:
            seeds = "seed" if len(missing) == 1 else "seeds"
            lines.setdefault(f"without {seeds} {', '.join(missing)}", []).append(design.label)
        elif not design.runs:
            lines.setdefault("no run finished", []).append(design.label)
    return [f"{_some(labels)}: {what}" for what, labels in lines.items()]


def _inside_groups(designs: Sequence[Design], by: Sequence[str]) -> list[str]:
    if not by:
        return []
    lines = []
    for design in designs:
        if len(design.configs) > 1:
            keys = ", ".join(word(key) for key in varying(design.configs))
            lines.append(
                f"{design.label}: {len(design.configs)} designs in one group, which differ in "
                f"{keys}; numbers are means over them"
            )
        fewer = [str(s) for s, runs in design.by_seed.items() if len(runs) < len(design.configs)]
        if fewer:
            lines.append(
                f"{design.label}: of seeds {', '.join(fewer)} not every design of the group is "
                f"there, so their means are of others"
            )
    known = [config for design in designs for config in design.configs]
    keys = [by_key(name, known) for name in by]
    if len({others(design.configs, keys) for design in designs if design.runs}) > 1:
        lines.append(
            f"more than {', '.join(by)} differs between groups: they do not hold the same designs"
        )
    return lines


def _matches(counted: list[Run]) -> list[str]:
    """That sweeps matched in different ways are compared."""
    seen = _values(counted, lambda run: _match_of(run).get("what") or "nothing")
    return [f"designs are matched in different ways: {_counts(seen)}"] if len(seen) > 1 else []


def _several_things(comparison: Comparison) -> list[str]:
    designs = [design for design in comparison.designs if design.runs]
    pairs = in_several_ways(designs, comparison.baseline, comparison.matched)
    if not pairs:
        return []
    some = "; ".join(
        f"{one.label} and {other.label} ({', '.join(word(key) for key in keys)})"
        for one, other, keys in pairs[:MENTIONED]
    )
    more = f"; and {len(pairs) - MENTIONED} more pairs" if len(pairs) > MENTIONED else ""
    return [
        f"more than one thing differs, so a difference has no single cause, between {some}{more}"
    ]


def _steps(comparison: Comparison) -> list[str]:
    steps = {d.label: {int(r.number("steps") or 0) for r in d.runs} for d in comparison.designs}
    seen = _values_of((f"{n:,}", label) for label, found in steps.items() for n in sorted(found))
    if len(seen) < 2 or any("max_steps" in key for key in comparison.matched):
        return []
    return [f"steps differ: {_grouped(seen)}"]


def _circumstances(counted: list[Run]) -> list[str]:
    """Devices, machines, code and versions that differ between runs."""
    facts: dict[str, Callable[[Run], Any]] = {
        "devices": lambda run: run.manifest.get("device", run.result.get("device")),
        "machines": lambda run: run.manifest.get("platform"),
        "commits": lambda run: _short(run.manifest.get("commit")),
        "minigpt versions": lambda run: run.manifest.get("minigpt"),
        "Python versions": lambda run: run.manifest.get("python"),
        "precisions": lambda run: run.result.get("precision"),
    }
    packages = {name for run in counted for name in _dict(run.manifest, "versions")}
    for name in sorted(packages):
        facts[f"{name} versions"] = lambda run, name=name: _dict(run.manifest, "versions").get(name)
    lines = []
    for what, fact in facts.items():
        seen = _values(counted, fact)
        if len(seen) > 1:
            lines.append(f"{what} differ: {_counts(seen)}")
    dirty = [r for r in counted if str(r.manifest.get("commit", "")).endswith("+changes")]
    if dirty:
        lines.append(f"{_runs(len(dirty))} of code with changes that no commit holds")
    return lines


def _changed(runs: Iterable[Run]) -> list[str]:
    """Keys that a sweep changed to make a quantity equal."""
    found = (_match_of(run).get("changed") for run in runs)
    return sorted({key for changed in found if isinstance(changed, dict) for key in changed})


def _match_of(run: Run) -> dict[str, Any]:
    return _dict(run.manifest, "match")


def _dict(values: dict[str, Any], key: str) -> dict[str, Any]:
    found = values.get(key)
    return found if isinstance(found, dict) else {}


def _adjusted(comparison: Comparison) -> str:
    """What was changed for the match, by design, and the reference."""
    parts = []
    reference: list[str] = []
    for design in comparison.designs:
        for run in design.all_runs[:1]:
            match = _match_of(run)
            reference = reference or [str(word) for word in match.get("reference") or []]
            for key, change in (match.get("changed") or {}).items():
                if isinstance(change, list) and len(change) == 2:
                    parts.append(
                        f"{design.label} {key} from {shown(change[0])} to {shown(change[1])}"
                    )
    to = f" Reference: {' '.join(reference)}." if reference else ""
    return f"{to} Changed for it: {'; '.join(parts)}." if parts else to


# ---- values of runs, as words ----


def _tokenizer(run: Run) -> Any:
    return run.manifest.get("tokenizer_sha256") or run.config.get("tokenizer.name")


def _text(run: Run) -> Any:
    digest = run.manifest.get("data_sha256")
    if not isinstance(digest, str):
        return None
    characters = _dict(run.manifest, "characters").items()
    sizes = " + ".join(f"{n:,} {name}" for name, n in characters if isinstance(n, int))
    return f"{run.config.get('data.name', 'text')} {digest[:8]}, {sizes} characters"


def _backend(run: Run) -> Any:
    return (
        str(run.manifest.get("backend", run.result.get("backend", ""))).partition(" (")[0] or None
    )


def _short(commit: Any) -> str | None:
    return (
        None if commit is None else str(commit)[:8] + "+changes" * str(commit).endswith("+changes")
    )


def _values(runs: Iterable[Run], fact: Callable[[Run], Any]) -> dict[str, list[str]]:
    """What each run says, where it says anything, and who says it."""
    return _values_of((str(f), str(run.path)) for run in runs if (f := fact(run)) is not None)


def _values_of(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for value, who in pairs:
        found.setdefault(value, []).append(who)
    return found


def _counts(values: dict[str, list[str]]) -> str:
    return "; ".join(f"{value} ({_runs(len(who))})" for value, who in values.items())


def _grouped(values: dict[str, list[str]]) -> str:
    return "; ".join(f"{value} ({_some(who)})" for value, who in values.items())


def _some(words: Sequence[str]) -> str:
    more = f" and {len(words) - MENTIONED} more" if len(words) > MENTIONED else ""
    return ", ".join(words[:MENTIONED]) + more


def _runs(n: int) -> str:
    return "1 run" if n == 1 else f"{n} runs"
