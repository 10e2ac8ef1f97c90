"""From differences by seed to the sign of each effect, and from signs to a verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from minigpt.report.statistics import (
    CONFIDENCE,
    Interval,
    Seeds,
    equivalence_p,
    holm,
    interval,
    paired_p,
)
from minigpt.report.tables import Table

HOLDS, PARTLY, UNSUPPORTED = "holds", "holds in part", "not supported"
FAILS, UNDECIDED = "does not hold", "undecided"
TOLERANCE = 0.02  # nats/token; losses that differ by less count as equal
BITS_TOLERANCE = TOLERANCE / math.log(2)  # bits/byte, for characters of one byte
ALPHA = 1 - CONFIDENCE


@dataclass(frozen=True)
class Effect:
    """A difference with its interval, its tests and its sign, see `effects_of`.

    `not_above`: whether it is below the tolerance, by a one-sided test at ALPHA (non-inferiority);
    `not_below`: whether it is above minus the tolerance.
    """

    name: str
    interval: Interval
    p: float | None
    p_tost: float | None
    sign: str
    not_above: bool = False
    not_below: bool = False

    @property
    def described_sign(self) -> str:
        """The sign, and of an undecided effect on which side it is not beyond the tolerance."""
        sides = [side for side in ("above", "below") if getattr(self, f"not_{side}")]
        return f"not {' or '.join(sides)}" if self.sign == UNDECIDED and sides else self.sign


@dataclass(frozen=True)
class Finding:
    """The verdict on a claim in one setting. `tolerance`: in the unit of the effects."""

    verdict: str
    reason: str
    effects: list[Effect] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    tolerance: float = TOLERANCE
    unit: str = "nats/token"


def effects_of(differences: Mapping[str, Seeds], tolerance: float = TOLERANCE) -> list[Effect]:
    """Return the effects of a claim, with p-values corrected for all of them (Holm).

    equivalent: within `tolerance` of 0 by TOST. below, above: beyond `tolerance` by a one-sided
    test. slightly below, slightly above: significant, but not shown to be beyond. undecided: all
    others, and those of one seed.
    """
    values = [[*by_seed.values()] for by_seed in differences.values()]
    ps = holm([paired_p(numbers) for numbers in values])
    ps_tost = holm([equivalence_p(numbers, tolerance) for numbers in values])
    ps_beyond = holm([beyond_p(numbers, tolerance) for numbers in values])
    effects = []
    rows = zip(differences, values, ps, ps_tost, ps_beyond, strict=True)
    for name, numbers, p, p_tost, p_beyond in rows:
        mean = interval(numbers)
        within = [above_p([side * x for x in numbers], -tolerance) for side in (-1, 1)]
        bounds = [p_one is not None and p_one < ALPHA for p_one in within]
        effects.append(Effect(name, mean, p, p_tost, sign(mean, p, p_tost, p_beyond), *bounds))
    return effects


def beyond_p(differences: Sequence[float], tolerance: float) -> float | None:
    """Return the one-sided p that the mean is farther from 0 than `tolerance`, on its side."""
    side = 1 if sum(differences) >= 0 else -1
    return above_p([side * difference for difference in differences], tolerance)


def above_p(differences: Sequence[float], bound: float) -> float | None:
    """Return the p of a one-sided t-test that the mean is above `bound`; None for one difference.

    If all differences are equal, p is 0 above the bound and else 1.
    """
    p = paired_p([difference - bound for difference in differences])
    if p is None:
        return None
    return p / 2 if sum(differences) / len(differences) > bound else 1 - p / 2


def sign(mean: Interval, p: float | None, p_tost: float | None, p_beyond: float | None) -> str:
    """Return the sign of an effect, see `effects_of`."""
    if p is None or p_tost is None or p_beyond is None:
        return UNDECIDED
    if p_tost < ALPHA:
        return "equivalent"
    side = "below" if mean.mean < 0 else "above"
    if p_beyond < ALPHA:
        return side
    return f"slightly {side}" if p < ALPHA else UNDECIDED


BETTER, WORSE = {"below", "slightly below"}, {"above", "slightly above"}


def verdict(
    effects: Sequence[Effect],
    supports: Callable[[Effect], bool],
    opposing: set[str],
    neutral: frozenset[str] = frozenset(),
) -> str:
    """Return HOLDS if every effect supports a claim, FAILS if the sign of one opposes it.

    If neither, and the others have `neutral` signs, which are known to be too small: PARTLY if some
    support it, UNSUPPORTED if none does. Else UNDECIDED.
    """
    supported = [supports(effect) for effect in effects]
    if effects and all(supported):
        return HOLDS
    if any(effect.sign in opposing for effect in effects):
        return FAILS
    others = [effect.sign for effect in effects if not supports(effect)]
    if not effects or not neutral.issuperset(others):
        return UNDECIDED
    return PARTLY if any(supported) else UNSUPPORTED


def no_worse(effects: Sequence[Effect]) -> str:
    """Return HOLDS if no design is worse by more than the tolerance, FAILS if one is.

    Every effect must be shown to be not worse, so that the single tests need no correction (an
    intersection-union test; Berger 1982).
    """
    return verdict(effects, lambda effect: effect.not_above, {"above"})


def better(effects: Sequence[Effect]) -> str:
    """Return HOLDS if every design is better, FAILS if one is worse by more than the tolerance."""
    neutral = frozenset({"equivalent", "slightly above"})
    return verdict(effects, lambda effect: effect.sign in BETTER, {"above"}, neutral)


def overall(verdicts: Mapping[str, str]) -> str:
    """Return the verdict of all settings: theirs if they agree, else that of each by its name.

    `verdicts`: by setting.
    """
    each = {*verdicts.values()}
    if len(each) == 1:
        return each.pop()
    by_setting = ", ".join(f"{verdict} in {name}" for name, verdict in verdicts.items())
    if FAILS in each and each & {HOLDS, PARTLY}:
        return f"depends on the setting: {by_setting}"
    return by_setting
