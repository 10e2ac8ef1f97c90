"""The search space: Hydra overrides, some with several values."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ray import tune
from ray.tune.search.sample import Categorical, Domain, Integer

from minigpt.config.overrides import EXAMPLE, Interval, compose_overrides, parse_values, quoted
from minigpt.config.pairs import Values, as_typed, parse_override
from minigpt.config.schema import Config, require_one_task
from minigpt.errors import UserError, require
from minigpt.run.initial import new_config
from minigpt.tune.options import TuneOptions

BUDGET = ("trainer.max_steps", "trainer.eval_every")  # schedulers compare trials by them


@dataclass(frozen=True)
class Space:
    """The overrides shared by all trials (`fixed`), and the searched values by key (`domains`)."""

    fixed: list[str]
    domains: dict[str, Domain]

    def overrides(self, values: Values) -> list[str]:
        """Return the command-line overrides of one trial."""
        return [*self.fixed, *(f"{key}={as_typed(value)}" for key, value in values.items())]

    def fixes(self, key: str) -> bool:
        """Whether the fixed overrides set a key."""
        return any(parse_override(override).key == key for override in self.fixed)

    @property
    def size(self) -> float:
        """The number of combinations of values; infinite with an interval of real numbers."""
        sizes = [math.inf if v is None else len(v) for v in map(_all_values, self.domains.values())]
        return math.prod(sizes)

    def is_exhaustive(self, options: TuneOptions) -> bool:
        """Whether to try every combination: for a grid, or if there are no more than trials."""
        is_small = self.size <= options.count and options.scheduler != "pbt"
        return options.search == "grid" or is_small

    def grid(self) -> list[Values]:
        """Return every combination of values. Raises UserError for an interval of real numbers."""
        columns = []
        for key, domain in self.domains.items():
            values = _all_values(domain)
            if values is None:
                raise UserError(
                    f"{key}: --search grid needs a list of values; use {key}=choice(...), "
                    f"or --search tpe"
                )
            columns.append(values)
        return [dict(zip(self.domains, row, strict=True)) for row in itertools.product(*columns)]


def parse_space(overrides: list[str]) -> Space:
    """Return the space of overrides. Raises UserError if a value cannot be searched."""
    fixed, domains = [], {}
    seen: set[str] = set()
    for text in overrides:
        key, values = parse_values(text)
        plain = parse_override(text).key
        if plain == "resume" or plain.startswith(("hydra.", "hydra/", "sweep")):
            raise UserError(f"{text}: a search creates its own runs; leave it out")
        if plain in ("trainer.parallel", "trainer.processes"):
            raise UserError(f"{text}: a search trains each trial in one process; leave it out")
        if plain in seen:
            raise UserError(f"{text}: {plain} is given twice; leave one of them out")
        seen.add(plain)
        if values is not None:
            domains[key] = _domain(text, key, values)
        else:
            fixed.append(quoted(text))
    if not domains:
        raise UserError(f"nothing to search: give a key several values, such as {EXAMPLE}")
    return Space(fixed, domains)


def _domain(text: str, key: str, values: list[Any] | Interval) -> Domain:
    if isinstance(values, Interval):
        return _interval(values)
    require(len(values) > 1, key, values[0] if values else "", "has one value; leave choice() out")
    if len(set(values)) < len(values):
        raise UserError(f"{text}: contains a value twice; leave one of them out")
    return tune.choice(values)


def _interval(interval: Interval) -> Domain:
    low, high, tags = interval.low, interval.high, interval.tags
    if interval.whole:
        draw = tune.lograndint if "log" in tags else tune.randint
        return draw(int(low), int(high) + 1)  # exclusive upper bound; Hydra's is inclusive
    return (tune.loguniform if "log" in tags else tune.uniform)(float(low), float(high))


def check_space(space: Space, options: TuneOptions) -> list[Config]:
    """Compose a config with each value once, and return the configs.

    Raises UserError for invalid values, and for searches whose trials are not comparable.
    """
    if options.search == "grid":
        space.grid()
    searched = {parse_override(key).key for key in space.domains}
    configs = [new_config(compose_overrides(space.overrides(values))) for values in _probes(space)]
    swept = compose_overrides(space.overrides(next(_probes(space)))).swept
    if swept:
        raise UserError(
            f"{' '.join(space.fixed)}: sweeps over {', '.join(swept)}, which a search ignores; "
            f"give values to search as overrides, and leave the experiment out"
        )
    if options.scheduler != "none":
        why = (
            f"--scheduler {options.scheduler} compares trials at the same steps, so this cannot be "
            f"searched; give it one value, or use --scheduler none"
        )
        for key in BUDGET:
            require(key not in searched, key, "...", why)
        if configs[0].trainer.eval_every is None:
            raise UserError(
                f"trainer.eval_every=null: --scheduler {options.scheduler} decides at evaluations; "
                f"give it a number of steps"
            )
    if options.scheduler == "pbt":
        _require_changeable(space)
    require_one_task(configs)
    names = {config.tokenizer.name for config in configs}
    if len(names) > 1 and options.metric == "val_loss":
        raise UserError(
            f"tokenizer={','.join(sorted(names))}: losses per token are not comparable between "
            f"tokenizers; use --metric val_bits_per_byte"
        )
    return configs


def warmup_warning(configs: list[Config], scheduler: str) -> str | None:
    """Return a warning if the scheduler compares trials before the end of their warm-up."""
    first_rung = configs[0].trainer.eval_every
    warmup = max(config.schedule.warmup(config.trainer.max_steps) for config in configs)
    if scheduler == "none" or first_rung is None or warmup < first_rung:
        return None
    return (
        f"--scheduler {scheduler} first compares trials at step {first_rung}, when the warm-up of "
        f"{warmup} steps has not ended, so early losses tell little; raise trainer.eval_every, or "
        f"lower schedule.warmup_steps"
    )


def _probes(space: Space) -> Iterator[Values]:
    """Yield each value once, with the first values of other keys. Intervals: both bounds."""
    values = {key: _extremes(domain) for key, domain in space.domains.items()}
    first = {key: extremes[0] for key, extremes in values.items()}
    yield first
    yield from (first | {key: v} for key, extremes in values.items() for v in extremes[1:])


def _extremes(domain: Domain) -> list[Any]:
    return [*domain.categories] if isinstance(domain, Categorical) else [*bounds(domain)]


def _all_values(domain: Any) -> Sequence[Any] | None:
    """Return the values of a list or of an interval of integers, None for real numbers."""
    if isinstance(domain, Categorical):
        return domain.categories
    return range(domain.lower, domain.upper) if isinstance(domain, Integer) else None


def bounds(domain: Any) -> tuple[Any, Any]:
    """Return the lowest and the highest value of an interval."""
    whole = isinstance(domain.lower, int)
    return domain.lower, domain.upper - 1 if whole else domain.upper


def _require_changeable(space: Space) -> None:
    """Raise UserError for keys that cannot change during a run."""
    for key, domain in space.domains.items():
        types = {type(value) for value in _extremes(domain)}
        if not (key.startswith("optimizer.") and types <= {int, float}):
            raise UserError(
                f"{key}: --scheduler pbt changes values during a run, so it searches numbers of "
                f"optimizer.* only; fix {key}, or use --scheduler asha"
            )
