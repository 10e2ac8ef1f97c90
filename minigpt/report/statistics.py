"""Statistics over seeds: t-intervals, medians, paired tests, Holm's correction, effects, power.

Uses the distribution functions in `scipy.special`, which imports in a third of the time of
`scipy.stats`, and only where they are used. Tests compare the results with `scipy.stats`.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from typing import TypeVar

import numpy as np

CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE
POWER = 0.8  # power of the paired t-test, for the minimum detectable effect and seeds to plan
MAX_SEEDS = 10**6
Seeds = dict[int, float]  # a number for each seed


@dataclass(frozen=True)
class Interval:
    """The mean of `n` numbers and half the width of its confidence interval, None for n = 1."""

    mean: float
    half: float | None
    n: int

    @property
    def low(self) -> float:
        """The lower end; the mean if there is no interval."""
        return self.mean - (self.half or 0.0)

    @property
    def high(self) -> float:
        """The upper end; the mean if there is no interval."""
        return self.mean + (self.half or 0.0)

    def times(self, factor: float) -> Interval:
        """Return the interval scaled to another unit."""
        half = None if self.half is None else self.half * abs(factor)
        return Interval(self.mean * factor, half, self.n)

    def exp(self) -> Interval:
        """Return exp(mean) with the interval to first order: exp(mean) * half."""
        mean = math.inf if self.mean > 700 else math.exp(self.mean)
        return Interval(mean, None if self.half is None else mean * self.half, self.n)


@dataclass(frozen=True)
class Spread:
    """The median of `n` numbers, the lowest and the highest: for times, which are not normal."""

    median: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Difference:
    """One design minus another, over the seeds that both have.

    `deviation`: standard deviation of the differences by seed. `p`: two-sided paired t-test.
    `p_tost`: test of equivalence within a margin, if one was asked for. All are None for one seed.
    `p_holm`, `p_tost_holm`: corrected for the family of tests.
    """

    interval: Interval
    deviation: float | None
    p: float | None
    minimum_detectable_effect: float | None
    p_tost: float | None = None
    p_holm: float | None = None
    p_tost_holm: float | None = None

    @property
    def significant(self) -> bool | None:
        """Whether the corrected p is below ALPHA; None without a p."""
        return None if self.p_holm is None else self.p_holm < ALPHA

    @property
    def equivalent(self) -> bool | None:
        """Whether the corrected p of the equivalence test is below ALPHA."""
        return None if self.p_tost_holm is None else self.p_tost_holm < ALPHA

    @property
    def reversed(self) -> Difference:
        """The other design minus the one."""
        return replace(self, interval=self.interval.times(-1))


def quantile(df: float, alpha: float = ALPHA) -> float:
    """Return t such that 1 - alpha of Student's distribution lies within [-t, t]."""
    from scipy import special

    return float(special.stdtrit(df, 1 - alpha / 2))


def half_intervals(values: np.ndarray) -> np.ndarray:
    """Return half the t-interval of the mean over the last axis, of 2 numbers or more."""
    n = values.shape[-1]
    return quantile(n - 1) * values.std(axis=-1, ddof=1) / math.sqrt(n)


def interval(values: Sequence[float]) -> Interval:
    """Return the mean of one number or more with its t-interval."""
    numbers = np.asarray(values, dtype=np.float64)
    half = float(half_intervals(numbers)) if len(numbers) > 1 else None
    return Interval(float(numbers.mean()), half, len(numbers))


def spread(values: Sequence[float]) -> Spread:
    """Return the median and the range of one number or more."""
    return Spread(float(np.median(values)), min(values), max(values), len(values))


def minus(one: Seeds, other: Seeds) -> Seeds:
    """Return one minus the other for each shared seed, in ascending order of seeds."""
    return {seed: one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())}


def paired(one: Seeds, other: Seeds, margin: float | None = None) -> Difference | None:
    """Return one minus the other over the seeds that both have, None if they share no seed.

    `margin`: also test for equivalence within it.
    """
    by_seed = [*minus(one, other).values()]
    if not by_seed:
        return None
    return Difference(
        interval(by_seed),
        deviation=float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else None,
        p=paired_p(by_seed),
        minimum_detectable_effect=minimum_detectable_effect(by_seed),
        p_tost=None if margin is None else equivalence_p(by_seed, margin),
    )


def paired_p(differences: Sequence[float]) -> float | None:
    """Return the two-sided p of a t-test that differences have mean 0; None for one difference.

    If all differences are equal, p is 1 for 0 and else 0.
    """
    n = len(differences)
    if n < 2:
        return None
    mean, deviation = float(np.mean(differences)), float(np.std(differences, ddof=1))
    if deviation == 0:
        return 1.0 if mean == 0 else 0.0
    return t_test_p(mean / deviation * math.sqrt(n), n - 1)


def t_test_p(t: float, df: int) -> float:
    """Return the two-sided p of a value of Student's t."""
    from scipy import special

    return float(2 * special.stdtr(df, -abs(t)))


def equivalence_p(differences: Sequence[float], margin: float) -> float | None:
    """Return the p of two one-sided t-tests that the mean is within (-margin, margin).

    The larger p of the two (TOST; Schuirmann 1987): below alpha exactly if the interval with
    confidence 1 - 2 alpha lies within the margin. None for one difference. If all differences are
    equal, p is 0 within the margin and else 1.
    """
    n = len(differences)
    if n < 2:
        return None
    mean, deviation = float(np.mean(differences)), float(np.std(differences, ddof=1))
    if deviation == 0:
        return 0.0 if abs(mean) < margin else 1.0
    from scipy import special

    return float(special.stdtr(n - 1, (abs(mean) - margin) / deviation * math.sqrt(n)))


def minimum_detectable_effect(differences: Sequence[float]) -> float | None:
    """Return the smallest true difference that one paired t-test detects with POWER.

    None for one seed.
    """
    n = len(differences)
    return None if n < 2 else detectable(n) * float(np.std(differences, ddof=1))


@cache
def detectable(n: int, alpha: float = ALPHA) -> float:
    """Return the minimum detectable effect of n >= 2 differences of standard deviation 1.

    d with P(|T| > t) = POWER, where T is noncentral t with n - 1 degrees of freedom and
    noncentrality d sqrt(n), and t is that of a test at level alpha. It may be nan for 2 differences
    and a small alpha.
    """
    from scipy import special

    # P(T < -t) is negligible where P(T > t) = POWER.
    return float(special.nctdtrinc(n - 1, 1 - POWER, quantile(n - 1, alpha))) / math.sqrt(n)


def seeds_to_detect(effect: float, deviation: float, alpha: float = ALPHA) -> int | None:
    """Return the fewest seeds with which one paired t-test detects an effect with POWER.

    `deviation`: standard deviation of the differences by seed. `alpha`: the level of the test.
    None for more than MAX_SEEDS.
    """
    counts = range(2, MAX_SEEDS + 1)
    place = bisect_left(counts, True, key=lambda n: detectable(n, alpha) * deviation <= effect)
    return counts[place] if place < len(counts) else None


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Return Holm's step-down p-values of a family of tests; None stays None.

    The i-th smallest of m (from 0) is multiplied by m - i, and is at least the one before.
    """
    known = sorted((p, index) for index, p in enumerate(ps) if p is not None)
    adjusted: list[float | None] = [None] * len(ps)
    largest = 0.0
    for rank, (p, index) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        adjusted[index] = largest
    return adjusted


Key = TypeVar("Key")


def corrected(differences: Mapping[Key, Difference]) -> dict[Key, Difference]:
    """Return the differences with Holm's correction over all of them."""
    ps = holm([difference.p for difference in differences.values()])
    equivalence = holm([difference.p_tost for difference in differences.values()])
    return {
        key: replace(difference, p_holm=p, p_tost_holm=p_tost)
        for (key, difference), p, p_tost in zip(differences.items(), ps, equivalence, strict=True)
    }


def every_pair(
    designs: Sequence[Seeds], margin: float | None = None
) -> dict[tuple[int, int], Difference]:
    """Return the first minus the second of every two designs that share a seed.

    Holm's correction is over all of these pairs. `margin`: as in `paired`.
    """
    pairs = combinations(range(len(designs)), 2)
    drafts = {(a, b): paired(designs[a], designs[b], margin) for a, b in pairs}
    return corrected({pair: draft for pair, draft in drafts.items() if draft is not None})


def not_significantly_worse(
    designs: Sequence[Seeds], pairs: Mapping[tuple[int, int], Difference]
) -> set[int]:
    """Return the indices of the lowest mean and of all designs not significantly worse than it.

    `pairs`: from `every_pair`; the family of tests is all of them, since the lowest mean was chosen
    among all designs. A pair with fewer than two shared seeds is never significant.
    """
    known = [index for index, seeds in enumerate(designs) if seeds]
    if not known:
        return set()
    best = min(known, key=lambda index: float(np.mean([*designs[index].values()])))
    worse = set()
    for (a, b), difference in pairs.items():
        if best in (a, b) and difference.significant:
            other, rise = (
                (b, -difference.interval.mean) if a == best else (a, difference.interval.mean)
            )
            if rise > 0:  # the lowest mean may be over other seeds
                worse.add(other)
    return {*known} - worse
