"""The search space: Hydra overrides, some of which stand for several values."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ray import tune
from ray.tune.search.sample import Categorical, Domain

from minigpt.config.compose import composed_config
from minigpt.config.overrides import (
    EXAMPLE,
    Interval,
    compose_overrides,
    parse_values,
    quoted,
)
from minigpt.config.schema import Config
from minigpt.errors import UserError, require
from minigpt.tune.options import TuneOptions

Values = dict[str, Any]  # by override key: str (as typed), int, float, bool or None
BUDGET = ("trainer.max_steps", "trainer.eval_every")  # what schedulers count in


@dataclass(frozen=True)
class Space:
    """Overrides that hold for every trial, and what is searched, by key."""

    fixed: list[str]
    domains: dict[str, Domain]

    def overrides(self, values: Values) -> list[str]:
        """The command-line overrides of one trial."""
        return [*self.fixed, *(f"{key}={as_typed(value)}" for key, value in values.items())]

    def fixes(self, key: str) -> bool:
        """Whether the command line gives this key a value."""
        return any(override.lstrip("+").partition("=")[0] == key for override in self.fixed)

    def all_of_it(self, options: TuneOptions) -> bool:
        """Whether to try every combination: as asked for, or as there are no more than trials."""
        lists = [d for d in self.domains.values() if isinstance(d, Categorical)]
        few = len(lists) == len(self.domains) and (
            math.prod(len(d.categories) for d in lists) <= options.count
        )
        return options.search == "grid" or (few and options.scheduler != "pbt")

    def grid(self) -> list[Values]:
        """Every combination. Raises UserError for an interval, which has no end of values."""
        for key, domain in self.domains.items():
            if not isinstance(domain, Categorical):
                raise UserError(
                    f"{key}: --search grid needs a list of values; use {key}=choice(...), "
                    f"or --search tpe"
                )
        columns = [_extremes(domain) for domain in self.domains.values()]
        return [dict(zip(self.domains, row, strict=True)) for row in itertools.product(*columns)]


def parse_space(overrides: list[str]) -> Space:
    """Sort overrides into fixed ones and domains. Raises UserError for what cannot be searched."""
    fixed, domains = [], {}
    seen: set[str] = set()
    for text in overrides:
        key, values = parse_values(text)
        plain = key.lstrip("+~")
        if plain == "resume" or plain.startswith(("hydra.", "hydra/", "sweep")):
            raise UserError(f"{text}: a search starts runs of its own; leave it out")
        if plain in seen:
            raise UserError(f"{text}: {plain} is given twice; leave one of them out")
        seen.add(plain)
        if values is not None:
            domains[key] = _domain(text, key, values)
        else:
            fixed.append(quoted(text))
    if not domains:
        raise UserError(f"nothing to search: give a key several values, as {EXAMPLE}")
    return Space(fixed, domains)


def _domain(text: str, key: str, values: list[Any] | Interval) -> Domain:
    if isinstance(values, Interval):
        return _interval(text, values)
    require(len(values) > 1, key, values[0] if values else "", "has one value; leave choice() out")
    if len(set(values)) < len(values):
        raise UserError(f"{text}: holds a value twice; leave one of them out")
    return tune.choice(values)


def _interval(text: str, interval: Interval) -> Domain:
    low, high, tags = interval.low, interval.high, interval.tags
    for tag in tags - {"log", "int"}:
        raise UserError(f"{text}: no such tag: {tag}; use log or int")
    whole = "int" in tags or (isinstance(low, int) and isinstance(high, int))
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UserError(f"{text}: the second bound must be above the first, and both finite")
    if "log" in tags and low <= 0:
        raise UserError(f"{text}: log needs bounds above 0")
    if whole:
        draw = tune.lograndint if "log" in tags else tune.randint
        return draw(int(low), int(high) + 1)  # their upper bound is exclusive, Hydra's is not
    return (tune.loguniform if "log" in tags else tune.uniform)(float(low), float(high))


def categories(domain: Categorical) -> list[Any]:
    """The values of a list, as a list."""
    return list(domain.categories)


def as_typed(value: Any) -> str:
    """A sampled value as Hydra reads it, to the last bit."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else repr(value)


def check_space(space: Space, options: TuneOptions) -> Config:
    """Compose every choice once, so that no mistake waits in a trial; returns the first config.

    Raises UserError for a value that cannot be had, and for a search that would mislead.
    """
    if options.search == "grid":
        space.grid()
    searched = {key.lstrip("+") for key in space.domains}
    first, *others = (composed_config(space.overrides(values)) for values in _probes(space))
    swept = compose_overrides(space.overrides(next(_probes(space)))).swept
    if swept:
        raise UserError(
            f"{' '.join(space.fixed)}: has a sweep vary {', '.join(swept)}, of which a search "
            f"knows nothing; give it what to search as overrides, and leave the experiment out"
        )
    if options.scheduler != "none":
        for key in BUDGET:
            require(
                key not in searched,
                key,
                "...",
                f"--scheduler {options.scheduler} compares trials at the same steps, so this "
                f"cannot be searched; give it one value, or use --scheduler none",
            )
        require(
            first.trainer.eval_every is not None,
            "trainer.eval_every",
            "null",
            f"--scheduler {options.scheduler} decides at evaluations; give it a number of steps",
        )
    if options.scheduler == "pbt":
        _require_changeable(space)
    names = {config.tokenizer.name for config in (first, *others)}
    if len(names) > 1 and options.metric == "val_loss":
        raise UserError(
            f"tokenizer={','.join(sorted(names))}: losses a token of different tokenizers do not "
            f"compare; use --metric val_bits_per_byte"
        )
    return first


def _probes(space: Space) -> Iterator[Values]:
    """Each value once beside the first of all others; of an interval both bounds."""
    values = {key: _extremes(domain) for key, domain in space.domains.items()}
    first = {key: extremes[0] for key, extremes in values.items()}
    yield first
    for key, extremes in values.items():
        for value in extremes[1:]:
            yield first | {key: value}


def _extremes(domain: Domain) -> list[Any]:
    if isinstance(domain, Categorical):
        return categories(domain)
    low, high = bounds(domain)
    return [low, high]


def bounds(domain: Any) -> tuple[Any, Any]:
    """The least and the greatest value of an interval."""
    whole = isinstance(domain.lower, int)
    return domain.lower, domain.upper - 1 if whole else domain.upper


def _require_changeable(space: Space) -> None:
    """Raise UserError for what cannot change in the middle of a run."""
    for key, domain in space.domains.items():
        numbers = not isinstance(domain, Categorical) or all(
            isinstance(value, int | float) and not isinstance(value, bool)
            for value in domain.categories
        )
        if not (key.startswith("optimizer.") and numbers):
            raise UserError(
                f"{key}: --scheduler pbt changes values in the middle of a run, so it searches "
                f"numbers of optimizer.* alone; fix {key}, or use --scheduler asha"
            )
