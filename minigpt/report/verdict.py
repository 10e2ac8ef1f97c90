"""The verdict of a comparison: a sentence or two, from paired tests of every two designs.

A design beats another if their difference is significant after Holm's correction over all pairs.
Significance is not transitive: of three designs, the first may beat the third while the second
differs significantly from neither. So designs are named together as a tier, and a tier beats the
next only if each of its designs beats each of the next.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import combinations, pairwise, product

from minigpt.report.comparison import Comparison, count
from minigpt.report.statistics import ALPHA, Difference, detectable, seeds_to_detect
from minigpt.report.tables import Column, Table

NAMED = 4  # maximum number of designs in a list of names
TIERS = 3  # named one by one; those below are named together
CLAUSES = 2  # maximum number of lists of who beats whom inside a tier
MORE_SEEDS = 100  # a larger number of seeds is no plan


def verdict(comparison: Comparison) -> str:
    """Return which designs are better by the measure, which do not differ, and what is unknown."""
    text = _verdict(comparison)
    return text if comparison.collection.has_ended else f"{text} Some runs have not ended."


def _verdict(comparison: Comparison) -> str:
    measure = comparison.measure
    known = [d for d in comparison.ranked if d.interval(measure.key) is not None]
    if not known:
        return "No run has finished, so there is no verdict yet."
    if len(known) == 1:
        value = _value(comparison, known[0].label)
        return f"One design, so nothing to compare: {known[0].label}, {measure.name} {value}."
    if not comparison.comparable:
        return _of_different_texts(comparison)
    labels = [design.label for design in known]
    tested = [a for a in labels if any(_is_tested(comparison, a, b) for b in labels)]
    if not tested:
        best = comparison.short[labels[0]]
        begin = f"{best} has the lowest {measure.name}, {_value(comparison, labels[0])}, but"
        if len(comparison.seeds) == 1:
            return f"{begin} one seed cannot show a difference: train several, as seed=1,2,3."
        return f"{begin} no two designs share 2 seeds, so no difference is tested."
    tiers = _tiers(comparison, tested)
    parts = [_within(comparison, tier) for tier in tiers[:TIERS] if len(tier) > 1]
    if len(tiers) > 1:
        parts.insert(0, _chain(comparison, tiers))
    others = [label for label in labels if label not in tested]
    if others:
        parts.append(
            f"{_names(comparison, others)} {'is' if len(others) == 1 else 'are'} not tested, for "
            f"want of 2 seeds shared with another design"
        )
    return f"{'; '.join(parts)}."


def _of_different_texts(comparison: Comparison) -> str:
    """Return the verdict over several texts: of the mixed model, if there is one."""
    mixed, base = comparison.mixed, comparison.baseline
    if not mixed or base is None:
        return "The runs used different texts or splits, so no design can be called better."
    name = comparison.short[base.label]
    differing = [k for k, one in mixed.items() if one.p_holm is not None and one.p_holm < ALPHA]
    better = [label for label in differing if mixed[label].interval.mean < 0]
    worse = [label for label in differing if label not in better]
    others = [label for label in mixed if label not in differing]
    parts = []
    if better:
        parts.append(f"{_names(comparison, better)} {_verb('beat', better)} {name}")
    if worse:
        parts.append(f"{name} beats {_names(comparison, worse)}")
    if others:
        named = f"{_names(comparison, others)} {'does' if len(others) == 1 else 'do'}"
        parts.append(f"{named} not differ significantly from {name}")
    return f"Over several texts or sizes (mixed model): {'; '.join(parts)}."


# ---- who beats whom ----


def _is_tested(comparison: Comparison, one: str, other: str) -> bool:
    difference = comparison.difference(one, other)
    return difference is not None and difference.p is not None


def _beats(comparison: Comparison, one: str, other: str) -> bool:
    difference = comparison.difference(one, other)
    return bool(difference and difference.significant and difference.interval.mean < 0)


def _tiers(comparison: Comparison, labels: Sequence[str]) -> list[list[str]]:
    """Cut ranked designs wherever every design above beats every design below."""
    beaten = {(a, b) for a in labels for b in labels if _beats(comparison, a, b)}
    tiers: list[list[str]] = [[]]
    for place, label in enumerate(labels):
        pairs = product(labels[:place], labels[place:])
        if place > 0 and all(pair in beaten for pair in pairs):
            tiers.append([])
        tiers[-1].append(label)
    return tiers


def _chain(comparison: Comparison, tiers: Sequence[list[str]]) -> str:
    """Return `a beats b (by 0.1 nats/token), which beats c (by 0.2)`."""
    if len(tiers) > TIERS:
        tiers = [*tiers[:TIERS], [label for tier in tiers[TIERS:] for label in tier]]
    text, unit = _names(comparison, tiers[0]), f" {comparison.measure.unit}"
    for place, (above, below) in enumerate(pairwise(tiers)):
        pairs = _between(comparison, product(above, below))
        sizes = [abs(pair.interval.mean) for pair in pairs]
        by = " to ".join(dict.fromkeys(_rounded(size) for size in (min(sizes), max(sizes))))
        beat = f"{', which' if place else ''} {_verb('beat', above)}"
        text += f"{beat} {_names(comparison, below)} (by {by}{unit})"
        unit = ""
    return text


def _within(comparison: Comparison, tier: Sequence[str]) -> str:
    """Return what is known of the differences between the designs of a tier."""
    pairs, names = _between(comparison, combinations(tier, 2)), _names(comparison, tier)
    if not pairs:
        return f"{names} are not compared, for want of 2 shared seeds"
    margin, n = comparison.equivalent, _seeds(pairs)
    if len(pairs) < math.comb(len(tier), 2):
        names += ", where they share 2 seeds"
    beaten = {a: [b for b in tier if _beats(comparison, a, b)] for a in tier}
    n_significant = sum(map(len, beaten.values()))
    if n_significant == 0 and margin is not None and all(pair.equivalent for pair in pairs):
        return f"{names} are equivalent within {margin:g} {comparison.measure.unit} ({n})"
    if n_significant == 0:
        return f"{n} show no significant difference between {names}{_power(comparison, pairs)}"
    winners = [a for a in tier if beaten[a]]
    clauses = [f"{comparison.short[a]} beats {_names(comparison, beaten[a])}" for a in winners]
    if len(clauses) <= CLAUSES:
        only = "the only significant difference" + "s" * (n_significant > 1)
        return f"{' and '.join(clauses)}, {only} between {names} with {n}"
    best = tier[0]
    equal = [b for b in tier[1:] if b not in beaten[best]]
    wins = f"beats {_names(comparison, beaten[best])}, but " if beaten[best] else ""
    return (
        f"{comparison.short[best]}, the best mean of these {len(tier)} designs, {wins}does not "
        f"differ significantly from {_names(comparison, equal)} with {n} ({n_significant} of their "
        f"{len(pairs)} differences are significant)"
    )


def _between(comparison: Comparison, pairs: Iterable[tuple[str, str]]) -> list[Difference]:
    found = [comparison.difference(a, b) for a, b in pairs]
    return [pair for pair in found if pair is not None and pair.p is not None]


def _power(comparison: Comparison, pairs: Sequence[Difference]) -> str:
    """Return how many more seeds would detect a difference with a power of POWER.

    The difference is `comparison.plan`, or else the largest one seen. The level is ALPHA divided by
    the number of tests, the strictest that Holm's correction uses.
    """
    tests = [pair for pair in comparison.pairs.values() if pair.p is not None]
    alpha, unit = ALPHA / len(tests), comparison.measure.unit
    n = min(pair.interval.n for pair in pairs)
    largest = max(pairs, key=lambda pair: abs(pair.interval.mean))
    widest = max(pair.deviation or 0.0 for pair in pairs)
    effect, deviation = comparison.plan, widest
    if effect is None:
        effect, deviation = _floor(abs(largest.interval.mean)), largest.deviation or 0.0
    if effect == 0 or widest == 0:
        return ""
    needed = seeds_to_detect(effect, deviation, alpha)
    if needed is not None and n < needed <= n + MORE_SEEDS:
        return f" ({needed - n} more would detect {_rounded(effect)} {unit})"
    least = effect if needed is not None and needed <= n else detectable(n, alpha) * widest
    return f" (they would detect {_rounded(least)} {unit})" if math.isfinite(least) else ""


# ---- words ----


def _names(comparison: Comparison, labels: Sequence[str]) -> str:
    """Return `a`, `a and b`, `a, b and c`, or three names and a number."""
    names = [comparison.short[label] for label in labels]
    if len(names) > NAMED:
        names = [*names[: NAMED - 1], f"{len(names) - NAMED + 1} others"]
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def _verb(verb: str, subjects: Sequence[str]) -> str:
    return f"{verb}s" if len(subjects) == 1 else verb


def _seeds(pairs: Sequence[Difference]) -> str:
    numbers = [pair.interval.n for pair in pairs]
    low, high = min(numbers), max(numbers)
    return count(low, "seed") if low == high else f"{low} to {high} seeds"


def _value(comparison: Comparison, label: str) -> str:
    """Return the measure of a design with its interval, as tables show it."""
    (design,) = (design for design in comparison.designs if design.label == label)
    found = design.interval(comparison.measure.key)
    assert found is not None, "of a design with a loss"
    ((text,),) = Table("", "", [Column("")], [[found]]).texts()
    return f"{text} {comparison.measure.unit} ({count(found.n, 'seed')})"


def _floor(value: float) -> float:
    """Round down to two significant digits, or to the number itself if it has no more."""
    if value == 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.floor(value / unit + 1e-6) * unit


def _rounded(value: float) -> str:
    """Return a positive number with two significant digits."""
    exponent = int(f"{value:.1e}".partition("e")[2])
    return f"{value:.{max(0, 1 - exponent)}f}"
