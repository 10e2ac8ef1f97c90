"""Differences over several conditions, such as texts or sizes, by a mixed model.

A group of `--by` has runs of several conditions: all that differs besides the keys it is grouped
by. Its difference to the baseline may vary between them: d_ks = delta + u_k + e_ks is that in
condition k with seed s, where u_k is the condition's own and e_ks is noise, both normal (Laird &
Ware 1982). The interval of delta is about other such conditions, not about these alone.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec

import numpy as np

from minigpt.report.designs import Design, condition
from minigpt.report.statistics import Interval, Seeds, holm, minus, paired_p, quantile, t_test_p

NEGLIGIBLE = 1e-6  # noise between seeds, relative to all, that statsmodels cannot resolve


@dataclass(frozen=True)
class MixedDifference:
    """A group minus the baseline, over the conditions that both have.

    `interval`: of delta, with (conditions - 1) degrees of freedom. `between`, `within`: standard
    deviations of u and e; `within` is None for one seed per condition.
    """

    interval: Interval
    p: float
    between: float
    within: float | None
    n_pairs: int
    p_holm: float | None = None


def is_installed() -> bool:
    """Return whether the package that fits mixed models is installed."""
    return find_spec("statsmodels") is not None


def by_condition(
    designs: Sequence[Design], baseline: Design | None, by: Sequence[str], measure: str
) -> dict[str, list[Seeds]]:
    """Return each group minus the baseline, by label: by seed, for each condition of both.

    `by`: the config keys of the groups. Groups with fewer than two conditions are left out.
    """
    if baseline is None or not by:
        return {}
    base = _losses(baseline, by, measure)
    found: dict[str, list[Seeds]] = {}
    for design in designs:
        own = _losses(design, by, measure)
        each = [minus(own[key], base[key]) for key in own if key in base]
        known = [by_seed for by_seed in each if by_seed]
        if design is not baseline and len(known) > 1:
            found[design.label] = known
    return found


def _losses(design: Design, by: Sequence[str], measure: str) -> dict[str, Seeds]:
    """Return the losses of a group by condition and seed."""
    losses: dict[str, Seeds] = {}
    for run in design.runs:
        loss = run.number(measure)
        if run.seed is not None and loss is not None:
            losses.setdefault(condition(run, by), {})[run.seed] = loss
    return losses


def mixed_differences(found: dict[str, list[Seeds]]) -> dict[str, MixedDifference]:
    """Fit the mixed model to each group of `by_condition`, with Holm's correction over all."""
    fitted = {label: fit(conditions) for label, conditions in found.items()}
    corrected = holm([difference.p for difference in fitted.values()])
    return {
        label: replace(difference, p_holm=p)
        for (label, difference), p in zip(fitted.items(), corrected, strict=True)
    }


def fit(differences: Sequence[Seeds]) -> MixedDifference:
    """Fit the mixed model by REML to differences of two conditions or more.

    With one seed per condition it is the t-test over conditions, which is also its result for
    equal numbers of seeds unless the conditions vary less than their noise.
    """
    n, sizes = len(differences), np.array([len(by_seed) for by_seed in differences])
    values = np.array([d for by_seed in differences for d in by_seed.values()])
    means = np.array([np.mean([*by_seed.values()]) for by_seed in differences])
    unit, noise = float(values.std()), float((values - means.repeat(sizes)).std())
    if noise <= NEGLIGIBLE * unit:
        deviation, p = float(means.std(ddof=1)), paired_p([*means])
        assert p is not None
        half = quantile(n - 1) * deviation / math.sqrt(n)
        within = None if sizes.max() == 1 else 0.0
        return MixedDifference(
            Interval(float(means.mean()), half, n), p, deviation, within, len(values)
        )
    from statsmodels.regression.mixed_linear_model import MixedLM

    model = MixedLM(values / unit, np.ones((len(values), 1)), np.repeat(np.arange(n), sizes))
    with warnings.catch_warnings():  # of a variance of 0, which is a valid estimate
        warnings.simplefilter("ignore")
        result = model.fit(reml=True, method="powell")  # gradients vanish where a variance is small
    between, within = float(result.cov_re[0, 0]), float(result.scale)  # variances
    error = unit / math.sqrt(float(np.sum(sizes / (within + sizes * between))))
    mean = unit * float(result.fe_params[0])
    return MixedDifference(
        Interval(mean, quantile(n - 1) * error, n),
        p=t_test_p(mean / error, n - 1),
        between=unit * math.sqrt(max(0.0, between)),
        within=unit * math.sqrt(within),
        n_pairs=len(values),
    )
