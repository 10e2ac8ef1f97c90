"""What seeds can tell: intervals, paired differences, corrections, the noise floor.

Every function takes plain numbers. Student's t throughout; `scipy.special` holds its distribution
functions and imports in a third of the time of `scipy.stats`, which the tests compare with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import special

CONFIDENCE = 0.95
POWER = 0.8  # of a paired test, at which a difference counts as one these seeds can see
Seeds = dict[int, float]  # a number of each seed


@dataclass(frozen=True)
class Interval:
    """A mean over `n` numbers and half of its t-interval; None where one number has none."""

    mean: float
    half: float | None
    n: int

    @property
    def low(self) -> float:
        """The lower end, the mean itself where there is no interval."""
        return self.mean - (self.half or 0.0)

    @property
    def high(self) -> float:
        """The upper end, the mean itself where there is no interval."""
        return self.mean + (self.half or 0.0)

    def times(self, factor: float) -> Interval:
        """The same in another unit."""
        half = None if self.half is None else self.half * abs(factor)
        return Interval(self.mean * factor, half, self.n)

    def exp(self) -> Interval:
        """exp of the mean, with the interval to first order: exp(mean) times its half."""
        mean = math.inf if self.mean > 700 else math.exp(self.mean)
        return Interval(mean, None if self.half is None else mean * self.half, self.n)


@dataclass(frozen=True)
class Difference:
    """One design minus another over the seeds both have.

    `p` of the two-sided paired t-test and `detectable` are None where one pair has none. `adjusted`
    is Holm's p over the family it was tested in.
    """

    interval: Interval
    p: float | None
    detectable: float | None
    adjusted: float | None = None


def quantile(df: float) -> float:
    """The t that CONFIDENCE of Student's distribution lies within, on both sides of 0."""
    return float(special.stdtrit(df, (1 + CONFIDENCE) / 2))


def half_intervals(values: np.ndarray) -> np.ndarray:
    """Half of the t-interval of the mean over the last axis, which holds two numbers or more."""
    n = values.shape[-1]
    return quantile(n - 1) * values.std(axis=-1, ddof=1) / math.sqrt(n)


def interval(values: Sequence[float]) -> Interval:
    """The mean of one number or more, and half of its t-interval."""
    numbers = np.asarray(values, dtype=np.float64)
    half = float(half_intervals(numbers)) if len(numbers) > 1 else None
    return Interval(float(numbers.mean()), half, len(numbers))


def paired(one: Seeds, other: Seeds) -> Difference | None:
    """One minus the other over the seeds both have; None where there is none."""
    shared = sorted(one.keys() & other.keys())
    if not shared:
        return None
    differences = [one[seed] - other[seed] for seed in shared]
    return Difference(interval(differences), paired_p(differences), detectable(differences))


def paired_p(differences: Sequence[float]) -> float | None:
    """The two-sided p of a t-test that differences have mean 0; None for one difference.

    Differences that are all the same leave no doubt: 1 where they are 0, else 0.
    """
    n = len(differences)
    if n < 2:
        return None
    mean, deviation = float(np.mean(differences)), float(np.std(differences, ddof=1))
    if deviation == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * special.stdtr(n - 1, -abs(mean) / deviation * math.sqrt(n)))


def detectable(differences: Sequence[float]) -> float | None:
    """The smallest true difference that a paired test of so many seeds finds with POWER.

    d with P(|T| > t) = POWER, T noncentral t of n - 1 degrees and noncentrality d sqrt(n) / s,
    where s is the differences' own standard deviation; of one comparison at a time. None for one
    seed.
    """
    n = len(differences)
    if n < 2:
        return None
    # T beyond -t has no weight left where T beyond t has that much: one side is exact enough.
    noncentrality = float(special.nctdtrinc(n - 1, 1 - POWER, quantile(n - 1)))
    return noncentrality * float(np.std(differences, ddof=1)) / math.sqrt(n)


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down p-values, which hold over the whole family; None stays None.

    The i-th smallest of m is multiplied by m - i, counted from 0, and is at least the one before.
    """
    known = sorted((p, place) for place, p in enumerate(ps) if p is not None)
    adjusted: list[float | None] = [None] * len(ps)
    largest = 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        adjusted[place] = largest
    return adjusted


def not_told_apart(designs: Sequence[Seeds]) -> set[int]:
    """The places of the lowest mean and of all designs it is not told apart from.

    The family is every pair of designs: the best was chosen by looking at all of them. Alone in the
    set is a design that beats each other one; a pair without two shared seeds tells nothing.
    """
    known = [place for place, seeds in enumerate(designs) if seeds]
    if not known:
        return set()
    best = min(known, key=lambda place: float(np.mean([*designs[place].values()])))
    pairs = list(combinations(known, 2))
    ps = []
    for a, b in pairs:
        shared = designs[a].keys() & designs[b].keys()
        ps.append(paired_p([designs[a][seed] - designs[b][seed] for seed in sorted(shared)]))
    told = {
        pair
        for pair, p in zip(pairs, holm(ps), strict=True)
        if p is not None and p < 1 - CONFIDENCE
    }
    return {
        place
        for place in known
        if (min(place, best), max(place, best)) not in told
        or not _worse(designs[place], designs[best])  # the best mean may be over other seeds
    }


def _worse(one: Seeds, other: Seeds) -> bool:
    return sum(one[seed] - other[seed] for seed in one.keys() & other.keys()) > 0
