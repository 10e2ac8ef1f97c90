"""Power laws: known ones are recovered, intervals cover, the compute-optimal line is optimal."""

from __future__ import annotations

import math
from itertools import product
from random import Random

import numpy as np
import pytest
from scipy.optimize import check_grad, curve_fit, minimize, minimize_scalar

from minigpt.report.power_law import DELTA, Point, PowerLaw, _Problem, _resampled_mean, fit_law

CHINCHILLA = PowerLaw(1.69, {"N": (406.4, 0.34), "D": (410.7, 0.28)})
TRUE = PowerLaw(1.3, {"N": (30.0, 0.42), "D": (400.0, 0.5)})
SIZES, LENGTHS = (6e3, 12e3, 25e3, 49e3, 98e3, 197e3), (256e3, 512e3, 1.02e6, 2.05e6)


def grid(noise: float = 0.0, n_seeds: int = 3, seed: int = 0) -> list[Point]:
    """Return points on TRUE, with normal noise for each seed."""
    generator = np.random.default_rng(seed)
    points = []
    for n, d in product(SIZES, LENGTHS):
        x = {"N": n, "D": d}
        losses = {s: TRUE.loss(x) + generator.normal(0, noise) for s in range(1, n_seeds + 1)}
        points.append(Point(f"{n:g} {d:g}", x, losses))
    return points


def along_n(noise: float = 0.0, n_seeds: int = 3, seed: int = 0) -> list[Point]:
    """Return the points of the grid with the most tokens."""
    return [point for point in grid(noise, n_seeds, seed) if point.x["D"] == max(LENGTHS)]


def test_a_law_without_noise_is_recovered_exactly() -> None:
    fit = fit_law(grid(n_seeds=1), ("N", "D"))
    assert fit.samples == [] and fit.undetermined == []
    assert fit.law.irreducible == pytest.approx(TRUE.irreducible, rel=1e-4)
    for axis, term in TRUE.terms.items():
        assert fit.law.terms[axis] == pytest.approx(term, rel=1e-3)
    assert abs(fit.residual(fit.worst)) < 1e-6
    estimate = fit.estimate(lambda law: law.irreducible)
    assert estimate.low == estimate.high == fit.law.irreducible and estimate.n == 1


def test_one_axis_agrees_with_least_squares_where_no_residual_is_large() -> None:
    points = along_n(1e-5)
    fit = fit_law(points, ("N",))
    logs = np.log([point.mean for point in fit.points])
    sizes = np.array([point.x["N"] for point in fit.points])
    (e, a, alpha), _ = curve_fit(
        lambda n, e, a, alpha: np.log(e + a * n**-alpha), sizes, logs, (1.5, 20, 0.4)
    )
    found = (fit.law.irreducible, *fit.law.terms["N"])
    assert max(abs(fit.residual(p)) for p in points) < DELTA
    assert found == pytest.approx((e, a, alpha), rel=1e-4)


def test_the_fit_has_the_least_huber_loss() -> None:
    """Another optimizer, from the optimum and from beside it, finds no better parameters."""
    noisy = grid(0.005)
    points = sorted(noisy, key=lambda point: (point.x["N"], point.x["D"]))
    problem = _Problem(np.log([[point.x["N"], point.x["D"]] for point in points]))
    losses = np.array([point.mean for point in points])
    best = problem.solve(losses, problem.starts(losses))

    def huber(parameters: np.ndarray) -> float:
        residuals = np.abs(problem.predicted(parameters) - np.log(losses))
        linear = residuals - DELTA / 2
        return float(np.where(residuals < DELTA, residuals**2 / (2 * DELTA), linear).sum())

    for start in (best, best + 0.05, best - 0.02):
        assert minimize(huber, start, method="Nelder-Mead").fun > huber(best) - 1e-6


def test_derivatives() -> None:
    problem = _Problem(np.log([[point.x["N"], point.x["D"]] for point in grid()]))
    at = np.array([0.3, -1.0, -0.7, 0.4, 0.6])
    for row in (0, 7, 23):
        error = check_grad(
            lambda p, row=row: problem.predicted(p)[row],
            lambda p, row=row: problem.jacobian(p)[row],
            at,
        )
        assert error < 1e-6


def test_an_outlier_moves_the_fit_little() -> None:
    points = grid(0.001, n_seeds=1)
    clean = fit_law(points, ("N", "D")).law
    bad = points[0]
    points[0] = Point(bad.label, bad.x, {seed: loss + 1 for seed, loss in bad.losses.items()})
    fit = fit_law(points, ("N", "D"))
    assert fit.worst.label == bad.label and fit.residual(fit.worst) == pytest.approx(1, abs=0.02)
    assert fit.law.irreducible == pytest.approx(clean.irreducible, abs=0.03)


def test_the_order_of_points_and_seeds_changes_nothing() -> None:
    points = along_n(0.005)
    shuffled = [Point(p.label, p.x, dict(reversed(p.losses.items()))) for p in points]
    Random(3).shuffle(shuffled)
    assert [p.label for p in shuffled] != [p.label for p in points]
    one, other = fit_law(points, ("N",)), fit_law(shuffled, ("N",))
    assert one.law == other.law and one.samples == other.samples


def test_the_intervals_contain_the_truth_as_often_as_they_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of 95 % intervals of three numbers in 15 experiments at least 80 % do."""
    monkeypatch.setattr("minigpt.report.power_law.RESAMPLES", 60)
    numbers = {
        "E": (
            lambda law: law.irreducible,
            TRUE.irreducible + TRUE.terms["D"][0] * max(LENGTHS) ** -0.5,
        ),
        "alpha": (lambda law: law.terms["N"][1], 0.42),
        "loss": (lambda law: law.loss({"N": 5e5}), TRUE.loss({"N": 5e5, "D": max(LENGTHS)})),
    }
    covered = []
    for seed in range(15):
        fit = fit_law(along_n(0.005, seed=seed), ("N",))
        for value, truth in numbers.values():
            estimate = fit.estimate(value)
            covered.append(estimate.low <= truth <= estimate.high)
    assert sum(covered) / len(covered) >= 0.8


def test_resampled_means_have_the_variance_of_a_mean() -> None:
    losses = {1: 1.0, 2: 1.3, 3: 2.0}
    generator = np.random.default_rng(1)
    means = [_resampled_mean(Point("", {}, losses), generator) for _ in range(20_000)]
    expected = np.std([*losses.values()], ddof=1) / math.sqrt(3)
    assert np.mean(means) == pytest.approx(1.4333, abs=0.01)
    assert np.std(means) == pytest.approx(expected, rel=0.02)
    assert _resampled_mean(Point("", {}, {1: 1.7}), generator) == 1.7


def test_the_optimum_is_the_lowest_loss_of_its_flops() -> None:
    """The exponents of Hoffmann et al. 2022, and their optimum against a search."""
    a, b = CHINCHILLA.optimal_exponents
    assert (a, b) == pytest.approx((0.4516, 0.5484), abs=1e-4)
    for flops in (1e18, 5.76e23):
        n, d = CHINCHILLA.optimum(flops, 6)
        assert 6 * n * d == pytest.approx(flops)

        def loss(log_n: float, flops: float = flops) -> float:
            return CHINCHILLA.loss({"N": math.exp(log_n), "D": flops / 6 / math.exp(log_n)})

        best = minimize_scalar(loss, bounds=(5, 40), method="bounded")
        assert math.exp(best.x) == pytest.approx(n, rel=1e-3)
    larger = CHINCHILLA.optimum(1e20, 6)[0] / CHINCHILLA.optimum(1e18, 6)[0]
    assert larger == pytest.approx(100**a)


def test_what_the_points_do_not_determine_is_named() -> None:
    flat = [Point(f"{n:g}", {"N": n}, {1: 2.0}) for n in SIZES]
    assert fit_law(flat, ("N",)).undetermined
    # A straight line in logs has no irreducible loss.
    straight = [Point(f"{n:g}", {"N": n}, {1: 40 * n**-0.2}) for n in SIZES]
    assert "E" in fit_law(straight, ("N",)).undetermined
