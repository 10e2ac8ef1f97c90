"""Power laws with an irreducible term, fitted to losses, with bootstrap intervals over seeds.

L(N, D) = E + A / N^alpha + B / D^beta, its compute-optimal line and the fit (least Huber loss of
log residuals, from many starts) are those of Hoffmann et al. 2022 (arXiv:2203.15556, section 3.3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from minigpt.report.statistics import CONFIDENCE, Seeds, Spread

DELTA = 1e-3  # log residuals above it count linearly
RESAMPLES = 200
EXPONENTS = (0.02, 3.0)  # bounds
IRREDUCIBLE = (1e-3, 1.0)  # bounds, as a part of the lowest and of the highest loss
START_EXPONENTS = (0.1, 0.3, 0.8, 1.5)
START_PARTS = (0.3, 0.7, 0.95)  # of the lowest loss that is irreducible
MAX_STEPS = 200  # of the optimizer: more only where the points do not determine a law
NEAR = 1e-3  # a parameter this near to its bound, relative to the range, is at it


@dataclass(frozen=True)
class PowerLaw:
    """loss = irreducible + sum of scale * x^-exponent over axes; `terms`: (scale, exponent)."""

    irreducible: float
    terms: Mapping[str, tuple[float, float]]

    def loss(self, x: Mapping[str, float]) -> float:
        """Return the loss at one value of each axis."""
        return self.irreducible + sum(a * x[axis] ** -b for axis, (a, b) in self.terms.items())

    def optimum(self, flops: float, flops_per_pair: float) -> tuple[float, float]:
        """Return the N and D of the lowest loss where flops = flops_per_pair * N * D."""
        (a, alpha), (b, beta) = self.terms["N"], self.terms["D"]
        product = flops / flops_per_pair
        ratio = (alpha * a / (beta * b)) ** (1 / (alpha + beta))
        n = ratio * product ** (beta / (alpha + beta))
        return n, product / n

    @property
    def optimal_exponents(self) -> tuple[float, float]:
        """The exponents of FLOPs in the N and D of the lowest loss, which add up to 1."""
        alpha, beta = self.terms["N"][1], self.terms["D"][1]
        return beta / (alpha + beta), alpha / (alpha + beta)


@dataclass(frozen=True)
class Point:
    """A value of each axis, and the losses there by seed."""

    label: str
    x: Mapping[str, float]
    losses: Seeds

    @property
    def mean(self) -> float:
        """The mean loss over seeds."""
        return float(np.mean([loss for _, loss in sorted(self.losses.items())]))


@dataclass(frozen=True)
class Fit:
    """A law fitted to the means of points, and to those of each bootstrap sample.

    `undetermined`: axes whose exponent is at its bound, and E if the irreducible loss is. `samples`
    is empty if no point has several seeds.
    """

    axes: tuple[str, ...]
    points: Sequence[Point]
    law: PowerLaw
    samples: Sequence[PowerLaw]
    undetermined: Sequence[str]

    def estimate(self, value: Callable[[PowerLaw], float]) -> Spread:
        """Return a number of the law with its percentile interval over the bootstrap samples."""
        number = value(self.law)
        if not self.samples:
            return Spread(number, number, number, 1)
        tail = 50 * (1 - CONFIDENCE)
        low, high = np.percentile([value(law) for law in self.samples], (tail, 100 - tail))
        return Spread(number, float(low), float(high), len(self.samples))

    def residual(self, point: Point) -> float:
        """Return the measured minus the predicted loss."""
        return point.mean - self.law.loss(point.x)

    @property
    def worst(self) -> Point:
        """The point with the largest residual."""
        return max(self.points, key=lambda point: abs(self.residual(point)))


def fit_law(points: Sequence[Point], axes: tuple[str, ...]) -> Fit:
    """Fit a law of these axes to points, in any order; `Fit.points` are sorted.

    A bootstrap sample draws the seeds of each point with replacement. Deviations of its means are
    scaled by sqrt(n / (n - 1)), without which those of n = 3 seeds would be 18 % too small.
    """
    points = sorted(points, key=lambda p: ([p.x[axis] for axis in axes], p.label, p.mean))
    problem = _Problem(np.log([[point.x[axis] for axis in axes] for point in points]))
    means = np.array([point.mean for point in points])
    best = problem.solve(means, problem.starts(means))
    laws = []
    if any(len(point.losses) > 1 for point in points):
        generator = np.random.default_rng(0)
        for _ in range(RESAMPLES):
            resampled = np.array([_resampled_mean(point, generator) for point in points])
            laws.append(problem.law(problem.solve(resampled, [best]), axes))
    undetermined = problem.at_bounds(best, means, axes)
    return Fit(axes, points, problem.law(best, axes), laws, undetermined)


def _resampled_mean(point: Point, generator: np.random.Generator) -> float:
    losses = np.array([loss for _, loss in sorted(point.losses.items())])
    n = len(losses)
    if n == 1:
        return float(losses[0])
    drawn = losses[generator.integers(n, size=n)].mean()
    return float(losses.mean() + (drawn - losses.mean()) * math.sqrt(n / (n - 1)))


class _Problem:
    """The fit for one matrix of log x (points, axes).

    Parameters: log E, then for each axis the log of its term at the mean log x, then the exponents.
    """

    def __init__(self, logs: np.ndarray) -> None:
        self.centre = logs.mean(axis=0)
        self.logs = logs - self.centre
        self.n_axes = logs.shape[1]

    def solve(self, losses: np.ndarray, starts: Sequence[np.ndarray]) -> np.ndarray:
        """Return the parameters with the least Huber loss of log residuals."""
        from scipy.optimize import least_squares

        target, bounds = np.log(losses), self.bounds(losses)
        jacobian: Any = self.jacobian  # scipy's types know names of methods only
        margin = 1e-9 * (bounds[1] - bounds[0])
        solutions = [
            least_squares(
                lambda p: self.predicted(p) - target,
                np.clip(start, bounds[0] + margin, bounds[1] - margin),
                jacobian,
                bounds,
                method="dogbox",  # twice as fast as the default
                loss="huber",
                f_scale=DELTA,
                xtol=1e-10,
                ftol=1e-10,
                gtol=1e-12,
                max_nfev=MAX_STEPS,
            )
            for start in starts
        ]
        return min(solutions, key=lambda solution: solution.cost).x

    def starts(self, losses: np.ndarray) -> list[np.ndarray]:
        """Return the grid of starts."""
        starts = []
        for part in START_PARTS:
            irreducible = part * losses.min()
            term = math.log((losses.mean() - irreducible) / self.n_axes)
            for exponents in product(START_EXPONENTS, repeat=self.n_axes):
                first = [math.log(irreducible), *[term] * self.n_axes]
                starts.append(np.array([*first, *exponents]))
        return starts

    def bounds(self, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        low, high = math.log(losses.min()), math.log(losses.max())
        lower = [low + math.log(IRREDUCIBLE[0]), *[low - 12] * self.n_axes]
        upper = [high + math.log(IRREDUCIBLE[1]), *[high + 2] * self.n_axes]
        lower += [EXPONENTS[0]] * self.n_axes
        upper += [EXPONENTS[1]] * self.n_axes
        return np.array(lower), np.array(upper)

    def at_bounds(
        self, parameters: np.ndarray, losses: np.ndarray, axes: Sequence[str]
    ) -> list[str]:
        """Return the axes whose exponent is at a bound, and E if the irreducible loss is."""
        lower, upper = self.bounds(losses)
        near = NEAR * (upper - lower)
        names = ["E", *[""] * self.n_axes, *axes]
        at = (parameters - lower < near) | (upper - parameters < near)
        return [name for name, is_at in zip(names, at, strict=True) if is_at and name]

    def law(self, parameters: np.ndarray, axes: Sequence[str]) -> PowerLaw:
        """Return the law of parameters."""
        exponents = parameters[1 + self.n_axes :]
        scales = np.exp(parameters[1 : 1 + self.n_axes] + exponents * self.centre)
        pairs = zip(map(float, scales), map(float, exponents), strict=True)
        return PowerLaw(math.exp(parameters[0]), dict(zip(axes, pairs, strict=True)))

    def predicted(self, parameters: np.ndarray) -> np.ndarray:
        """Return the log losses."""
        return np.logaddexp.reduce(self._log_terms(parameters), axis=1)

    def jacobian(self, parameters: np.ndarray) -> np.ndarray:
        """Return the derivatives (points, parameters) of the log losses."""
        terms = self._log_terms(parameters)
        parts = np.exp(terms - np.logaddexp.reduce(terms, axis=1, keepdims=True))
        return np.concatenate([parts, -parts[:, 1:] * self.logs], axis=1)

    def _log_terms(self, parameters: np.ndarray) -> np.ndarray:
        """Return the logs (points, 1 + axes) of the irreducible loss and of each term."""
        amounts, exponents = parameters[1 : 1 + self.n_axes], parameters[1 + self.n_axes :]
        irreducible = np.full((len(self.logs), 1), parameters[0])
        return np.concatenate([irreducible, amounts - exponents * self.logs], axis=1)
