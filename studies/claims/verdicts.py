"""From differences by seed to the sign of each effect, and from signs to a verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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

HOLDS, PARTLY, FAILS, UNDECIDED = "holds", "holds in part", "does not hold", "undecided"
TOLERANCE = 0.02  # nats/token; losses that differ by less count as equal
BITS_TOLERANCE = TOLERANCE / math.log(2)  # bits/byte, for characters of one byte
ALPHA = 1 - CONFIDENCE


@dataclass(frozen=True)
class Effect:
    """A difference with its interval, its tests and its sign, see `signs`."""

    name: str
    interval: Interval
    p: float | None
    p_tost: float | None
    sign: str


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
    """Return the effects of a claim, with p-values corrected for all of them.

    equivalent: within `tolerance` of 0 by TOST. below, above: significant, and the whole interval
    beyond `tolerance`. slightly below, slightly above: significant, but not wholly beyond.
    undecided: all others, and those of one seed.
    """
    values = [[*by_seed.values()] for by_seed in differences.values()]
    ps = holm([paired_p(numbers) for numbers in values])
    ps_tost = holm([equivalence_p(numbers, tolerance) for numbers in values])
    effects = []
    for name, numbers, p, p_tost in zip(differences, values, ps, ps_tost, strict=True):
        mean = interval(numbers)
        effects.append(Effect(name, mean, p, p_tost, sign(mean, p, p_tost, tolerance)))
    return effects


def sign(mean: Interval, p: float | None, p_tost: float | None, tolerance: float) -> str:
    """Return the sign of an effect, see `effects_of`."""
    if p is None or p_tost is None:
        return UNDECIDED
    if p_tost < ALPHA:
        return "equivalent"
    if p >= ALPHA:
        return UNDECIDED
    side, near = ("below", -mean.high) if mean.mean < 0 else ("above", mean.low)
    return side if near > tolerance else f"slightly {side}"


BETTER, WORSE = {"below", "slightly below"}, {"above", "slightly above"}


def verdict(effects: Sequence[Effect], supporting: set[str], opposing: set[str]) -> str:
    """Return HOLDS if every effect supports a claim, FAILS if one opposes it.

    Else PARTLY if at least one supports it and none is undecided, and UNDECIDED if not.
    """
    signs = [effect.sign for effect in effects]
    if signs and all(sign in supporting for sign in signs):
        return HOLDS
    if any(sign in opposing for sign in signs):
        return FAILS
    is_known = UNDECIDED not in signs and any(sign in supporting for sign in signs)
    return PARTLY if is_known else UNDECIDED


def no_worse(effects: Sequence[Effect]) -> str:
    """Return HOLDS if no design is worse, FAILS if one is worse by more than the tolerance."""
    return verdict(effects, {"equivalent", *BETTER}, {"above"})


def better(effects: Sequence[Effect]) -> str:
    """Return HOLDS if every design is better, FAILS if one is worse by more than the tolerance."""
    return verdict(effects, BETTER, {"above"})


def overall(verdicts: Sequence[str]) -> str:
    """Return the verdict of all settings: theirs if they agree, else that it depends on them."""
    return verdicts[0] if len({*verdicts}) == 1 else "depends on the setting"
