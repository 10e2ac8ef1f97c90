"""The search space of a comparison: a grid, the same for every design."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from minigpt.config.overrides import Interval, parse_values
from minigpt.config.pairs import flat, is_below, parse_override
from minigpt.config.schema import Config
from minigpt.errors import UserError, require

LR, DECAY = "optimizer.lr", "optimizer.weight_decay"
LR_RATIO = 2.0  # of neighbouring learning rates, or less
LR_SPAN = 2.0**8  # the highest learning rate over the lowest, at most
DECAYS = (1.0, 4.0)  # times the configured weight decay
WIDER = 2  # values that widening adds, or more
POINTS = 4  # of an interval, if the budget does not set them
MIN_POINTS = 3  # of an interval, so that the best one can lie inside
# What all designs of a comparison share, so that a search must not choose it.
NOT_SEARCHED = ("seed", "data", "tokenizer", "trainer.max_steps", "trainer.eval_every", "resume")


@dataclass(frozen=True)
class Axis:
    """A searched option with its values. `relative`: numbers that multiply the configured value.

    `ratio`: of neighbouring values, of an axis that can be widened; otherwise None.
    `continuous`: any number between the first and the last value may be tried.
    """

    key: str
    points: tuple[Any, ...]
    relative: bool = False
    ratio: float | None = None
    continuous: bool = False

    def values(self, config: Config) -> list[Any]:
        """Return the values for a design. Raises UserError if there is nothing to multiply."""
        if not self.relative:
            return [*self.points]
        configured = flat(config.to_dict()).get(self.key)
        why = f"cannot be multiplied; give values to search: --space {self.key}=0,0.1"
        require(bool(configured), self.key, configured, why)
        assert configured is not None
        return [float(f"{configured * point:.3g}") for point in self.points]

    def edge(self, index: int) -> str | None:
        """Return 'lowest' or 'highest' for an end of several numbers, otherwise None."""
        n = len(self.points)
        if n < 2 or not all(_is_number(point) for point in self.points):
            return None
        return {0: "lowest", n - 1: "highest"}.get(index)

    def widened(self, edges: set[str | None]) -> Axis:
        """Return the axis with WIDER, or half as many values again, beyond each of the edges."""
        if self.ratio is None:
            return self
        powers = [self.ratio**n for n in range(1, max(WIDER, len(self.points) // 2) + 1)]
        lowest, highest = self.points[0], self.points[-1]
        below = [lowest / power for power in reversed(powers)] if "lowest" in edges else []
        above = [highest * power for power in powers] if "highest" in edges else []
        return replace(self, points=(*below, *self.points, *above))


def axes_of(space: Sequence[str], budget: int | None) -> list[Axis]:
    """Return the axes of at most `budget` points: learning rate, weight decay, and those given.

    `space`: overrides with several values, or with an interval, of which there are as many values
    as the budget allows. `budget` None: POINTS of each interval, for a search that needs no grid.
    Raises UserError.
    """
    given = dict(map(parse_axis, space))
    if len(given) < len(space):
        raise UserError(f"--space {' '.join(space)}: gives a key twice; leave one of them out")
    lists = {key: values for key, values in given.items() if not isinstance(values, Interval)}
    intervals: dict[str, Interval | None] = {LR: None} if LR not in given else {}
    intervals |= {key: v for key, v in given.items() if isinstance(v, Interval)}
    size = math.prod(len(values) for values in lists.values())
    unlimited = size * len(DECAYS) * POINTS ** len(intervals)
    limit = unlimited if budget is None else budget
    with_decays = size * len(DECAYS) * MIN_POINTS ** len(intervals) <= limit
    decays = DECAYS if with_decays else DECAYS[:1]
    if DECAY not in given:
        size *= len(decays)
    needed = size * MIN_POINTS ** len(intervals)
    why = f"needs {needed} or more for {MIN_POINTS} values of {' and '.join(intervals) or LR}"
    require(limit >= needed, "--budget", budget, why)
    n = int((limit // size) ** (1 / len(intervals)) + 1e-9) if intervals else 0
    axes = [_interval_axis(key, interval, n) for key, interval in intervals.items()]
    if DECAY not in given:
        axes.append(Axis(DECAY, decays, relative=True))
    return [*axes, *(Axis(key, tuple(values)) for key, values in lists.items())]


def parse_axis(text: str) -> tuple[str, list[Any] | Interval]:
    """Return the key and the values of a --space. Raises UserError."""
    if "=" not in text:
        raise UserError(f"--space {text}: write KEY=VALUE,VALUE")
    try:
        key, values = parse_values(text)
    except UserError as error:
        raise UserError(f"--space {error}") from None
    plain = parse_override(text).key
    if is_below(plain, ("hydra", *NOT_SEARCHED)):
        raise UserError(f"--space {text}: is the same for all designs of a comparison")
    if values is None or (isinstance(values, list) and len(values) < 2):
        raise UserError(f"--space {text}: has one value; give that as an override")
    if isinstance(values, list) and len(set(values)) < len(values):
        raise UserError(f"--space {text}: contains a value twice; leave one of them out")
    if isinstance(values, list) and all(_is_number(value) for value in values):
        values = sorted(values)
    return key, values


def _interval_axis(key: str, interval: Interval | None, n: int) -> Axis:
    """Return n values of an interval; None: multiples of the configured value.

    Their ratio is LR_RATIO, or less if n values would span more than LR_SPAN.
    """
    if interval is None:
        ratio = min(LR_RATIO, LR_SPAN ** (1 / (n - 1)))
        points = tuple(ratio ** (i - (n - 1) // 2) for i in range(n))
        return Axis(key, points, relative=True, ratio=ratio, continuous=True)
    low, high = interval.low, interval.high
    parts = [i / (n - 1) for i in range(n)]
    if "log" not in interval.tags:
        points = [low + part * (high - low) for part in parts]
        ratio = None
    else:
        points = [low * (high / low) ** part for part in parts]
        ratio = (high / low) ** (1 / (n - 1))
    if interval.whole:
        return Axis(key, tuple(sorted({round(point) for point in points})), continuous=True)
    rounded = tuple(float(f"{point:.4g}") for point in points)
    return Axis(key, rounded, ratio=ratio, continuous=True)


def grid(axes: Sequence[Axis]) -> list[tuple[int, ...]]:
    """Return every combination, as indices of the values of each axis."""
    return [*itertools.product(*(range(len(axis.points)) for axis in axes))]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
