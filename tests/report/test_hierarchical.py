"""The mixed model over conditions, against the t-test over conditions and simulation."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from minigpt.report import comparison as comparison_module
from minigpt.report.comparison import compare
from minigpt.report.hierarchical import fit
from tests.conftest import Cli
from tests.report.synthetic import config, make_run


def drawn(
    rng: np.random.Generator, n: int, sizes: list[int], between: float, within: float
) -> list[dict[int, float]]:
    """Draw differences with mean 0.1 in n conditions."""
    effects = 0.1 + between * rng.standard_normal(n)
    return [
        {seed: effect + within * rng.standard_normal() for seed in range(size)}
        for effect, size in zip(effects, sizes, strict=True)
    ]


def test_equal_numbers_of_seeds_give_the_t_test_over_conditions() -> None:
    differences = drawn(np.random.default_rng(0), 4, [5] * 4, between=0.05, within=0.01)
    means = [np.mean([*by_seed.values()]) for by_seed in differences]
    _, p = stats.ttest_1samp(means, 0)
    found = fit(differences)
    assert found.interval.mean == pytest.approx(np.mean(means))
    assert found.p == pytest.approx(p, rel=1e-3)
    half = stats.t.ppf(0.975, 3) * stats.sem(means)
    assert found.interval.half == pytest.approx(half, rel=1e-3)
    assert found.n_pairs == 20 and found.interval.n == 4


def test_variances_are_estimated() -> None:
    differences = drawn(np.random.default_rng(1), 40, [20] * 40, between=0.05, within=0.02)
    found = fit(differences)
    assert found.within == pytest.approx(0.02, rel=0.1)
    assert found.between == pytest.approx(0.05, rel=0.3)


def test_conditions_that_do_not_vary() -> None:
    """The mean of all pairs, with the few degrees of freedom of the conditions."""
    differences = [{1: 0.1, 2: 0.2}, {1: 0.2, 2: 0.1}, {1: 0.15, 2: 0.15}]
    found = fit(differences)
    assert found.within is not None and found.between < 0.2 * found.within
    assert found.interval.mean == pytest.approx(0.15)
    equal = fit([{1: 0.5, 2: 0.5}, {1: 0.5}])
    assert equal.interval.mean == 0.5 and equal.interval.half == 0 == equal.p


def test_one_seed_of_each_condition_is_a_t_test() -> None:
    values = [0.1, 0.3, 0.2]
    found = fit([{seed: value} for seed, value in enumerate(values)])
    _, p = stats.ttest_1samp(values, 0)
    assert found.p == pytest.approx(p)
    assert found.within is None


@pytest.mark.parametrize("sizes", [[3] * 5, [1, 2, 3, 4, 5]])
def test_the_interval_covers(sizes: list[int]) -> None:
    """Of 100 draws, 95 % within four standard errors, or more."""
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(100):
        interval = fit(drawn(rng, 5, sizes, between=0.03, within=0.02)).interval
        covered += interval.low <= 0.1 <= interval.high
    assert covered / 100 > 0.95 - 4 * math.sqrt(0.95 * 0.05 / 100)


def write(folder: Path) -> None:
    """Write runs of two schemes at three widths: rope is better by 0.1, 0.2 and 0.3."""
    for width, gain in ((16, 0.1), (32, 0.2), (64, 0.3)):
        for seed in (1, 2, 3):
            for name, loss in (("learned", 2.0), ("rope", 2.0 - gain)):
                settings = config(seed=seed, positional=name, model__n_embd=width)
                noise = 0.001 * ((seed * width) % 7)
                make_run(folder / f"{name}_{width}_{seed}", settings, loss + noise)


def test_a_report_by_scheme_tests_over_widths(cli: Cli) -> None:
    write(Path("runs"))
    done = cli("report", "runs", "--by", "positional", "--out", "page.html")
    assert done.code == 0, done.err
    (row,) = csv.DictReader(Path("page_mixed.csv").read_text().splitlines())
    assert row["design"] == "positional=rope"
    assert row["conditions"] == "3" and row["pairs"] == "9"
    _, p = stats.ttest_1samp([-0.1, -0.2, -0.3], 0)
    assert float(row["difference"]) == pytest.approx(-0.2)
    assert float(row["p"]) == pytest.approx(p, rel=1e-3)
    assert "Differences to positional=learned over conditions" in done.out
    assert '<section id="mixed">' in Path("page.html").read_text()
    assert not Path("other_mixed.csv").exists()
    assert cli("report", "runs", "--out", "other.html").code == 0
    assert not Path("other_mixed.csv").exists()  # every design is a condition of its own


def test_without_statsmodels_a_note_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path)
    monkeypatch.setattr(comparison_module, "is_installed", lambda: False)
    found = compare([str(tmp_path)], by=["positional"])
    assert not found.mixed and any("needs statsmodels" in note for note in found.notes)
