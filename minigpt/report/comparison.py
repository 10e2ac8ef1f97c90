"""Compare designs: differences to a baseline, the best, and warnings about the comparison."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from minigpt.errors import UserError, require
from minigpt.extras import install
from minigpt.loss_of import CAUSAL, NOT_COMPARED, heading
from minigpt.report.designs import (
    Design,
    by_key,
    design_config,
    find_design,
    group,
    identities_without,
    pairs_with_several_choices,
    short_labels,
    shown,
    varying,
    word,
)
from minigpt.report.hierarchical import (
    MixedDifference,
    by_condition,
    is_installed,
    mixed_differences,
)
from minigpt.report.runs import Run, RunCollection, find_runs
from minigpt.report.statistics import (
    Difference,
    corrected,
    every_pair,
    not_significantly_worse,
    paired,
)
from minigpt.run.directory import RUNNING

LISTED = 4  # maximum number of runs or pairs in a warning; tables have all


@dataclass(frozen=True)
class Measure:
    """The loss by which designs are ranked. `key`: its key in result.json and metrics.jsonl."""

    key: str
    name: str
    unit: str


LOSS = Measure("val_loss", "validation loss", "nats/token")
BITS = Measure("val_bits_per_byte", "validation loss", "bits/byte")
TEST_LOSS = Measure("test_loss", "test loss", "nats/token")
TEST_BITS = Measure("test_bits_per_byte", "test loss", "bits/byte")


@dataclass(frozen=True)
class Comparison:
    """Designs in the order in which they were started, including the `baseline`.

    `named_baseline`: whether the user chose the baseline.
    `differences`: each other design minus the baseline, by label, with Holm's correction over all.
    `equivalent`: the margin within which their equivalence is tested. `plan`: a difference, for
    which the seeds needed to detect it are shown. Both are in the unit of `measure`. `by`: the
    config keys that runs were grouped by, if they were given. `mixed`: the differences over several
    conditions, see `minigpt.report.hierarchical`.
    `pairs`: the first design minus the second, by their labels, with Holm's correction over all.
    `best`: labels of the lowest mean and of designs not significantly worse than it; empty unless
    `comparable`, which is False if losses are of different texts. `objective`: of all runs; their
    losses are `loss_of` these tokens, None if unknown. `others`: the comparisons of runs with other
    objectives, whose losses compare with none of these. `match`: the quantity that
    `sweep.match` made equal, `matched`: the keys it set. `tuned`: keys that a search chose for each
    design.
    """

    collection: RunCollection
    designs: list[Design]
    baseline: Design | None
    measure: Measure
    one_tokenizer: bool
    comparable: bool
    differences: dict[str, Difference]
    pairs: dict[tuple[str, str], Difference]
    best: set[str]
    match: str | None
    matched: list[str]
    tuned: list[str]
    equivalent: float | None = None
    plan: float | None = None
    by: list[str] = field(default_factory=list)
    mixed: dict[str, MixedDifference] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    objective: str = CAUSAL
    loss_of: str | None = None
    others: list[Comparison] = field(default_factory=list)
    is_alone: bool = True
    named_baseline: bool = False

    @property
    def groups(self) -> list[Comparison]:
        """This comparison and those of the other objectives."""
        return [self, *self.others]

    @property
    def heading(self) -> str:
        """What the losses are of; '' for causal runs alone."""
        is_plain = self.is_alone and self.objective == CAUSAL
        return "" if is_plain else heading(self.objective, self.loss_of)

    @property
    def suffix(self) -> str:
        """The end of the names of tables and plots, which the objective makes unique."""
        return "" if self.is_alone else f"_{re.sub('[^a-z0-9.]+', '_', self.objective)}"

    @property
    def has_ended(self) -> bool:
        """Whether all runs have ended, of every objective."""
        return all(group.collection.has_ended for group in self.groups)

    @property
    def ranked(self) -> list[Design]:
        """Designs by mean loss, lowest first; designs without a loss come last."""

        def rank(design: Design) -> tuple[bool, float]:
            interval = design.interval(self.measure.key)
            return interval is None, 0.0 if interval is None else interval.mean

        return sorted(self.designs, key=rank)

    @property
    def labels(self) -> list[str]:
        """The labels of the designs, in order."""
        return [design.label for design in self.designs]

    @cached_property
    def short(self) -> dict[str, str]:
        """A short name of each design, by its label."""
        return short_labels(self.labels)

    def difference(self, one: str, other: str) -> Difference | None:
        """Return one design minus another, from `pairs`; None if they share no seed."""
        pair, mirrored = self.pairs.get((one, other)), self.pairs.get((other, one))
        return mirrored.reversed if mirrored is not None else pair

    @property
    def own_keys(self) -> list[str]:
        """Keys that have a value of their own in each design, and are not a choice to compare."""
        return [*self.matched, *self.tuned]

    @property
    def validation(self) -> Measure:
        """The validation loss, which curves are of, in the unit of `measure`."""
        return LOSS if self.one_tokenizer else BITS

    @property
    def seeds(self) -> list[int]:
        """Every seed of a finished run."""
        return sorted({seed for design in self.designs for seed in design.by_seed})


def compare(
    names: Sequence[str],
    by: Sequence[str] = (),
    baseline: str | None = None,
    equivalent: float | None = None,
    plan: float | None = None,
) -> Comparison:
    """Read the runs in folders, group them into designs and compare the designs.

    `names` are folders, or `latest`. `by`: config groups or keys to group by; if empty, all keys
    except the seed. `baseline`: a label or a value in it; None is the first design started, as for
    an objective that has no such design. `equivalent`, `plan`: see Comparison. Raises UserError.
    """
    collections = find_runs(names).by_objective()
    require_one_objective(f"--by={','.join(by)}", [*collections] if by else [])
    drafts = [
        _compare(name, collection, by, len(collections) == 1, equivalent)
        for name, collection in collections.items()
    ]
    bases = _baselines(baseline, [draft.designs for draft in drafts])
    asked = {"equivalent": equivalent, "plan": plan, "named_baseline": baseline is not None}
    first, *others = [
        _with_baseline(replace(draft, baseline=base, **asked), by)
        for draft, base in zip(drafts, bases, strict=True)
    ]
    return replace(first, others=others)


def require_one_objective(what: str, objectives: Sequence[str]) -> None:
    """Raise UserError for an option of the command that would compare several objectives."""
    if len(objectives) > 1:
        named = f"the runs have objective={', '.join(objectives)}"
        raise UserError(f"{what}: {named}. {NOT_COMPARED} Give runs of one objective")


def _compare(
    objective: str,
    collection: RunCollection,
    by: Sequence[str],
    is_alone: bool,
    margin: float | None,
) -> Comparison:
    """Return the comparison of the runs of an objective, without what depends on a baseline."""
    matches = {_match_of(run).get("what") for run in collection.runs if run.config}
    match = matches.pop() if len(matches) == 1 else None
    changes = [_dict(_match_of(run), "changed") for run in collection.runs]
    matched = sorted({key for changed in changes for key in changed}) if match else []
    tuned = sorted({key for run in collection.runs for key in _dict(run.manifest, "tuned")})
    designs = group(collection.runs, by, [*matched, *tuned])
    finished = [run for design in designs for run in design.runs]
    one_tokenizer = len(_values(finished, _tokenizer)) < 2
    comparable = len(_values(finished, _text)) < 2
    measure = _measure(finished, one_tokenizer)
    seeds = [design.seeds(measure.key) for design in designs]
    pairs = every_pair(seeds, margin)
    best = not_significantly_worse(seeds, pairs)
    return Comparison(
        collection=collection,
        designs=designs,
        baseline=None,
        measure=measure,
        one_tokenizer=one_tokenizer,
        comparable=comparable,
        differences={},
        pairs={(designs[a].label, designs[b].label): pair for (a, b), pair in pairs.items()},
        best={designs[index].label for index in best} if comparable else set(),
        match=match,
        matched=matched,
        tuned=tuned,
        by=[by_key(name, [design_config(run) for run in collection.runs]) for name in by],
        objective=objective,
        loss_of=next((run.loss_of for run in collection.runs if run.loss_of), None),
        is_alone=is_alone,
    )


def _baselines(name: str | None, groups: Sequence[list[Design]]) -> list[Design | None]:
    """Return the baseline of each objective: the named design, or else the first that finished."""
    if name is not None and not any(groups):
        raise UserError(f"--baseline={name}: no run has started; wait for one, or leave it out")
    bases, errors = [], []
    for designs in groups:
        base = next((design for design in designs if design.runs), None)
        try:
            base = base if name is None else find_design(name, designs)
        except UserError as error:
            errors.append(error)
        bases.append(base)
    if len(errors) == len(groups):
        raise errors[0]
    return bases


def _with_baseline(draft: Comparison, by: Sequence[str]) -> Comparison:
    """Return the comparison with differences to its baseline, and with warnings and notes."""
    designs, base, measure = draft.designs, draft.baseline, draft.measure
    conditions = by_condition(designs, base, draft.by, measure.key)
    comparison = replace(
        draft,
        differences=_differences(designs, base, measure, draft.equivalent),
        mixed=mixed_differences(conditions) if is_installed() else {},
    )
    comparison.warnings.extend(warnings(comparison, by))
    comparison.notes.extend(notes(comparison))
    if conditions and not comparison.mixed:
        why = "a test over the conditions of each group, by a mixed model"
        comparison.notes.append(f"{why}, needs statsmodels: {install('mixed')}")
    return comparison


def _measure(finished: Sequence[Run], one_tokenizer: bool) -> Measure:
    """Return the loss to compare by: of the test split, if every run has one."""
    if finished and all(run.number(TEST_LOSS.key) is not None for run in finished):
        return TEST_LOSS if one_tokenizer else TEST_BITS
    return LOSS if one_tokenizer else BITS


def _differences(
    designs: Sequence[Design],
    baseline: Design | None,
    measure: Measure,
    margin: float | None,
) -> dict[str, Difference]:
    if baseline is None:
        return {}
    base = baseline.seeds(measure.key)
    differences = {
        design.label: difference
        for design in designs
        if design is not baseline
        and (difference := paired(design.seeds(measure.key), base, margin)) is not None
    }
    return corrected(differences)


def require_paired_seeds(comparison: Comparison) -> None:
    """Raise UserError if a test that was asked for has fewer than two seeds for every design."""
    groups = comparison.groups
    shared = max((d.interval.n for g in groups for d in g.differences.values()), default=0)
    base = comparison.baseline
    of = "" if base is None else f" with the baseline {base.label}"
    why = (
        f"needs 2 seeds of finished runs that a design shares{of}, and there is at most {shared}; "
        f"train more, such as seed=1,2,3"
    )
    for key, value in (("--equivalent", comparison.equivalent), ("--plan", comparison.plan)):
        require(value is None or shared >= 2, key, value, why)


# ---- warnings and notes ----


def warnings(comparison: Comparison, by: Sequence[str]) -> list[str]:
    """Return warnings about the validity of a comparison, one line each."""
    collection, designs = comparison.collection, comparison.designs
    finished = [run for design in designs for run in design.runs]
    texts = _counts(_values(finished, _text))
    matches = _values(finished, lambda run: _match_of(run).get("what") or "null")
    lines = []
    if not comparison.comparable:
        lines.append(
            f"losses are not comparable: runs used different texts or splits ({texts}); no design "
            f"is marked as best"
        )
    lines += [*_unfinished(collection), *collection.problems]
    lines += [f"{design.label}: {note}" for design in designs for note in design.notes]
    lines += [*_missing_seeds(comparison), *_groups(designs, by)]
    if len(matches) > 1:
        lines.append(f"sweep.match differs between runs: {_counts(matches)}")
    return [*lines, *_several_choices(comparison), *_steps(comparison), *_environments(finished)]


def notes(comparison: Comparison) -> list[str]:
    """Return notes on how to read the numbers, one line each."""
    lines = []
    if not comparison.one_tokenizer:
        lines.append(
            "Tokenizers differ, so designs are compared in bits/byte only: loss and perplexity are "
            "per token, and the tokens differ in length."
        )
    if comparison.match:
        changed = _changes_for_match(comparison)
        lines.append(f"Matched across the designs: {comparison.match}.{changed}")
    if comparison.tuned:
        keys = " and ".join(comparison.tuned)
        lines.append(f"Each design has its own {keys}, which a search chose with other seeds.")
    if comparison.collection.left_out:
        folders = _shortened([str(folder) for folder in comparison.collection.left_out])
        lines.append(f"Left out are the runs that chose these values: {folders}")
    if len(comparison.seeds) == 1:
        lines.append(
            "One seed gives no confidence interval and no test; use several, such as seed=1,2,3."
        )
    finished = [run for design in comparison.designs for run in design.runs]
    early = [str(run.path) for run in finished if run.stopped_by_patience]
    if early:
        lines.append(
            f"trainer.patience stopped {count(len(early), 'run')} early, ranked by the "
            f"{comparison.measure.name} of the best checkpoint, not of the last: "
            f"{_shortened(early)}"
        )
    averaged = [str(run.path) for run in finished if run.result.get("weights") == "ema"]
    if averaged:
        lines.append(
            f"With optimizer.ema the losses are those of the better weights by validation loss: of "
            f"the averaged ones in {count(len(averaged), 'run')} ({_shortened(averaged)})."
        )
    backends = _values(finished, _backend)
    if len(backends) > 1:
        lines.append(
            "Attention backends differ: losses are comparable, but speed and memory depend on the "
            f"backend too ({_counts(backends)})."
        )
    return lines


def _unfinished(collection: RunCollection) -> list[str]:
    def status(run: Run) -> str | None:
        if run.finished:
            return None
        error = f": {run.result['error']}" if run.result.get("error") else ""
        if run.status == "finished":
            return f"finished without a validation loss{error}"
        steps = run.number("steps")
        return f"{run.status}{'' if steps is None else f' at step {steps:,.0f}'}{error}"

    by_status = _values(collection.runs, status)
    started = {run.path.resolve() for run in collection.runs}
    waiting = [str(job.path) for job in collection.jobs if job.path.resolve() not in started]
    if waiting:
        by_status["not started"] = waiting
    lines = []
    if training := by_status.pop(RUNNING, []):
        lines = [f"{count(len(training), 'run')} {_is(training)} training: {_shortened(training)}"]
    return lines + [
        f"{count(len(paths), 'run')} did not finish and {_is(paths)} left out ({why}): "
        f"{_shortened(paths)}"
        for why, paths in by_status.items()
    ]


def _missing_seeds(comparison: Comparison) -> list[str]:
    lines = []
    for design in comparison.designs:
        missing = [str(s) for s in comparison.seeds if s not in design.by_seed]
        what = "seed" if len(missing) == 1 else "seeds"
        if not design.runs:
            lines.append(("no run finished", design.label))
        elif missing:
            lines.append((f"{what} {', '.join(missing)} {_is(missing)} missing", design.label))
    return [f"{_shortened(labels)}: {line}" for line, labels in _group(lines).items()]


def _groups(designs: Sequence[Design], by: Sequence[str]) -> list[str]:
    if not by:
        return []
    lines = []
    for design in designs:
        if len(design.configs) > 1:
            keys = ", ".join(word(key) for key in varying(design.configs))
            lines.append(
                f"{design.label}: the group has {len(design.configs)} designs, which differ in "
                f"{keys}; numbers are means over them"
            )
        fewer = [str(s) for s, runs in design.by_seed.items() if len(runs) < len(design.configs)]
        if fewer:
            lines.append(
                f"{design.label}: some designs of the group have no run with seed "
                f"{' or '.join(fewer)}, so the means of these seeds are over fewer designs"
            )
    known = [config for design in designs for config in design.configs]
    keys = [by_key(name, known) for name in by]
    if len({identities_without(keys, design.configs) for design in designs if design.runs}) > 1:
        lines.append(
            f"groups differ in more than {', '.join(by)}: they do not contain the same designs"
        )
    return lines


def _several_choices(comparison: Comparison) -> list[str]:
    designs = [design for design in comparison.designs if design.runs]
    pairs = pairs_with_several_choices(designs, comparison.baseline, comparison.own_keys)
    if not pairs:
        return []
    some = "; ".join(
        f"{one.label} and {other.label} ({', '.join(word(key) for key in keys)})"
        for one, other, keys in pairs[:LISTED]
    )
    more = f"; and {len(pairs) - LISTED} more pairs" if len(pairs) > LISTED else ""
    return [f"several choices differ at once, so their effects cannot be separated: {some}{more}"]


def _steps(comparison: Comparison) -> list[str]:
    steps = {d.label: {int(r.number("steps") or 0) for r in d.runs} for d in comparison.designs}
    values = _group((f"{n:,}", label) for label, counts in steps.items() for n in sorted(counts))
    if len(values) < 2 or any("max_steps" in key for key in comparison.own_keys):
        return []
    parts = "; ".join(f"{n} ({_shortened(labels)})" for n, labels in values.items())
    return [f"numbers of steps differ: {parts}"]


def _environments(finished: list[Run]) -> list[str]:
    """Return devices, machines, code and versions that differ between runs."""
    facts: dict[str, Callable[[Run], Any]] = {
        "devices": lambda run: run.manifest.get("device", run.result.get("device")),
        "machines": lambda run: run.manifest.get("platform"),
        "commits": lambda run: _short(run.manifest.get("commit")),
        "minigpt versions": lambda run: run.manifest.get("minigpt"),
        "Python versions": lambda run: run.manifest.get("python"),
        "precisions": lambda run: run.result.get("precision"),
    }
    packages = {name for run in finished for name in _dict(run.manifest, "versions")}
    for name in sorted(packages):
        facts[f"{name} versions"] = lambda run, name=name: _dict(run.manifest, "versions").get(name)
    values = {what: _values(finished, fact) for what, fact in facts.items()}
    lines = [f"{what} differ: {_counts(by)}" for what, by in values.items() if len(by) > 1]
    n_dirty = sum(str(run.manifest.get("commit", "")).endswith("+changes") for run in finished)
    if n_dirty:
        lines.append(f"{count(n_dirty, 'run')} used code with uncommitted changes")
    return lines


def _match_of(run: Run) -> dict[str, Any]:
    return _dict(run.manifest, "match")


def _dict(values: dict[str, Any], key: str) -> dict[str, Any]:
    value = values.get(key)
    return value if isinstance(value, dict) else {}


def _changes_for_match(comparison: Comparison) -> str:
    """Return the reference and the values that `sweep.match` set, by design."""
    matches = {design.label: _match_of(design.all_runs[0]) for design in comparison.designs}
    references = [match["reference"] for match in matches.values() if match.get("reference")]
    to = f" Reference: {' '.join(map(str, references[0]))}." if references else ""
    parts = [
        f"{label} {key} from {shown(change[0])} to {shown(change[1])}"
        for label, match in matches.items()
        for key, change in (match.get("changed") or {}).items()
        if isinstance(change, list) and len(change) == 2
    ]
    return f"{to} Changed to match: {'; '.join(parts)}." if parts else to


# ---- values of runs as text ----


def _tokenizer(run: Run) -> Any:
    return run.manifest.get("tokenizer_sha256") or run.config.get("tokenizer.name")


def _text(run: Run) -> Any:
    digest = run.manifest.get("data_sha256")
    if not isinstance(digest, str):
        return None
    # Not the training split: losses after training on a part of it (data.fraction) compare.
    held_out = {name: n for name, n in _dict(run.manifest, "characters").items() if name != "train"}
    sizes = " + ".join(f"{n:,} {name}" for name, n in held_out.items() if isinstance(n, int))
    return f"{run.config.get('data.name', 'text')} {digest[:8]}, {sizes} characters"


def comparable_runs(runs: Sequence[Run]) -> bool:
    """Whether losses of the same positions of windows are of the same tokens."""
    facts = (_text, _tokenizer, lambda run: run.config.get("model.block_size"))
    return all(len(_values(runs, fact)) < 2 for fact in facts)


def _backend(run: Run) -> Any:
    backend = run.manifest.get("backend", run.result.get("backend", ""))
    return str(backend).partition(" (")[0] or None


def _short(commit: Any) -> str | None:
    dirty = "+changes" * str(commit).endswith("+changes")
    return None if commit is None else f"{str(commit)[:8]}{dirty}"


def _values(runs: Iterable[Run], fact: Callable[[Run], Any]) -> dict[str, list[str]]:
    """Group the paths of runs by the value of a fact; runs without a value are skipped."""
    return _group((str(f), str(run.path)) for run in runs if (f := fact(run)) is not None)


def _group(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for value, name in pairs:
        groups.setdefault(value, []).append(name)
    return groups


def _counts(values: dict[str, list[str]]) -> str:
    return "; ".join(f"{value} ({count(len(paths), 'run')})" for value, paths in values.items())


def _shortened(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _is(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def count(n: int, what: str) -> str:
    """Return `1 run` or `2 runs`."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
