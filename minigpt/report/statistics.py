"""Statistics over seeds: t-intervals, medians, paired t-tests, Holm's correction, effects.

Uses the distribution functions in `scipy.special`, which imports in a third of the time of
`scipy.stats`, and only where they are used. Tests compare the results with `scipy.stats`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

CONFIDENCE = 0.95
POWER = 0.8  # power of the paired t-test, for the minimum detectable effect
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

    `p`: two-sided paired t-test. `p` and `minimum_detectable_effect` are None for one seed.
    `p_holm`: corrected for the family of tests.
    """

    interval: Interval
    p: float | None
    minimum_detectable_effect: float | None
    p_holm: float | None = None

    @property
    def significant(self) -> bool | None:
        """Whether the corrected p is below 1 - CONFIDENCE; None without a p."""
        return None if self.p_holm is None else self.p_holm < 1 - CONFIDENCE


def quantile(df: float) -> float:
    """Return t such that CONFIDENCE of Student's distribution lies within [-t, t]."""
    from scipy import special

    return float(special.stdtrit(df, (1 + CONFIDENCE) / 2))


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


def paired(one: Seeds, other: Seeds) -> Difference | None:
    """Return one minus the other over the seeds that both have, None if they share no seed."""
    by_seed = [*minus(one, other).values()]
    if not by_seed:
        return None
    return Difference(interval(by_seed), paired_p(by_seed), minimum_detectable_effect(by_seed))


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
    from scipy import special

    return float(2 * special.stdtr(n - 1, -abs(mean) / deviation * math.sqrt(n)))


def minimum_detectable_effect(differences: Sequence[float]) -> float | None:
    """Return the smallest true difference that one paired t-test detects with POWER.

    d with P(|T| > t) = POWER, where T is noncentral t with n - 1 degrees of freedom and
    noncentrality d sqrt(n) / s; s is the standard deviation of the differences. None for one seed.
    """
    n = len(differences)
    if n < 2:
        return None
    from scipy import special

    # P(T < -t) is negligible where P(T > t) = POWER.
    noncentrality = float(special.nctdtrinc(n - 1, 1 - POWER, quantile(n - 1)))
    return noncentrality * float(np.std(differences, ddof=1)) / math.sqrt(n)


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


def not_significantly_worse(designs: Sequence[Seeds]) -> set[int]:
    """Return the indices of the lowest mean and of all designs not significantly worse than it.

    The family of tests is every pair of designs, since the lowest mean was chosen among all of
    them. A pair with fewer than two shared seeds is never significant.
    """
    known = [index for index, seeds in enumerate(designs) if seeds]
    if not known:
        return set()
    best = min(known, key=lambda index: float(np.mean([*designs[index].values()])))
    pairs = list(combinations(known, 2))
    ps = holm([paired_p([*minus(designs[a], designs[b]).values()]) for a, b in pairs])
    worse = set()
    for (a, b), p in zip(pairs, ps, strict=True):
        if best in (a, b) and p is not None and p < 1 - CONFIDENCE:
            other = b if a == best else a
            # The lowest mean may be over other seeds.
            if sum(minus(designs[other], designs[best]).values()) > 0:
                worse.add(other)
    return {*known} - worse
