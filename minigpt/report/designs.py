"""Which runs are the same design, what a design is called, and what differs between two."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import PurePath
from typing import Any

from minigpt.errors import UserError, did_you_mean
from minigpt.report.runs import Run
from minigpt.report.statistics import Interval, Seeds, interval

# What does not make a design: how a run is called, tracked, placed and seeded. `model.name` only
# names what the other keys say, so it may label a design but does not make one.
NO_DESIGN = ("seed", "name", "group", "tags", "resume", "defaults", "trainer.threads", "model.name")
NO_DESIGN_BELOW = ("logger.", "hydra.")
TEXT = "data.text"  # stands for the paths of a text: what it holds, not where it lies
TEXT_PATHS = ("data.dir", "data.path")
# What a device or another choice settles: named as a difference, but no choice of its own.
FOLLOWS = ("model.backend.name",)
# Words of the command line whose key is not that of their section's name.
GROUP_KEYS = {"norm": "model.norm.placement", "model": "model.name"}
ABSENT = "absent"  # a key that an older version did not write

Values = Mapping[str, Any]


@dataclass
class Design:
    """Runs that differ in their seed alone, or are one group of `--by`.

    `runs` finished and count, oldest design first; `unfinished` are shown but do not count.
    `configs` are the different designs inside: one, but for groups.
    """

    label: str
    configs: list[Values]
    runs: list[Run]
    unfinished: list[Run]
    notes: list[str] = field(default_factory=list)

    @property
    def config(self) -> Values:
        """The first of its configs."""
        return self.configs[0]

    @property
    def all_runs(self) -> list[Run]:
        """Those that count, then those that did not finish."""
        return [*self.runs, *self.unfinished]

    @cached_property
    def by_seed(self) -> dict[int, list[Run]]:
        """The runs that count, by seed."""
        found: dict[int, list[Run]] = {}
        for run in self.runs:
            if run.seed is not None:
                found.setdefault(run.seed, []).append(run)
        return dict(sorted(found.items()))

    def seeds(self, key: str) -> Seeds:
        """A number of result.json by seed: in a group the mean over its designs."""
        found = {}
        for seed, runs in self.by_seed.items():
            numbers = [number for run in runs if (number := run.number(key)) is not None]
            if numbers:
                found[seed] = sum(numbers) / len(numbers)
        return found

    def interval(self, key: str) -> Interval | None:
        """Mean and interval over seeds; None where no run has the number."""
        values = [*self.seeds(key).values()]
        return interval(values) if values else None


def group(runs: Sequence[Run], by: Sequence[str], matched: Sequence[str] = ()) -> list[Design]:
    """Runs by design, or by the config keys `by`, in the order in which they were started.

    Of the same design and seed only the newest finished run counts. `matched` are keys that were
    changed to make a quantity equal. Raises UserError for a key that is none or tells nothing
    apart.
    """
    known = [run for run in runs if run.config]
    configs = [design_config(run) for run in known]
    keys = [by_key(name, configs) for name in by]
    for name, key in zip(by, keys, strict=True):
        _require_apart(name, key, configs)
    members: dict[str, list[int]] = {}
    for place, config in enumerate(configs):
        chosen = {key: config.get(key, ABSENT) for key in keys} if keys else _design_only(config)
        members.setdefault(_identity(chosen), []).append(place)
    designs = []
    for places in members.values():
        inside = {_identity(_design_only(configs[p])): configs[p] for p in places}
        design = Design("", [*inside.values()], [], [])
        for identity in inside:
            _add(
                design,
                [known[p] for p in places if _identity(_design_only(configs[p])) == identity],
            )
        designs.append(design)
    names = labels([design.config for design in designs], keys, matched)
    for design, label in zip(designs, names, strict=True):
        design.label = label
    return designs


def _add(design: Design, runs: list[Run]) -> None:
    """Add runs of one design; of each seed the newest that finished, else the newest."""
    by_seed: dict[Any, list[Run]] = {}
    for run in runs:
        by_seed.setdefault(run.seed if run.seed is not None else run.path, []).append(run)
    for seed, same in by_seed.items():
        newest = max(same, key=lambda run: (run.finished, run.started, run.place))
        (design.runs if newest.finished else design.unfinished).append(newest)
        if len(same) > 1:
            left = ", ".join(str(run.path) for run in same if run is not newest)
            design.notes.append(
                f"seed {seed} occurs {len(same)} times: used the newest, {newest.path}, not {left}"
            )


def design_config(run: Run) -> dict[str, Any]:
    """A run's config with what its text holds in place of where it lies."""
    config = {k: v for k, v in run.config.items() if k not in TEXT_PATHS}
    digest = run.manifest.get("data_sha256")
    path = run.config.get("data.path")
    if isinstance(digest, str):
        config[TEXT] = digest[:8]
    elif path is not None:
        config[TEXT] = PurePath(str(path)).name
    return config


def _design_only(config: Values) -> dict[str, Any]:
    return {
        key: value
        for key, value in config.items()
        if key not in NO_DESIGN and not key.startswith(NO_DESIGN_BELOW)
    }


def _identity(values: Values) -> str:
    return json.dumps(values, sort_keys=True, default=str)


# ---- what differs ----


def sections(configs: Iterable[Values]) -> dict[str, str]:
    """Command-line words of the sections that choose a variant, and the key of its name."""
    keys = {key for config in configs for key in config if key.endswith(".name")}
    keys = {key for key in keys if key != "model.name" and not key.startswith(NO_DESIGN_BELOW)}
    return {key.split(".")[-2]: key for key in sorted(keys)}


def differences(one: Values, other: Values) -> list[str]:
    """Keys in which two designs differ. Where a variant's name does, its options follow from it."""
    a, b = _design_only(one), _design_only(other)
    differing = {k for k in a.keys() | b.keys() if a.get(k, ABSENT) != b.get(k, ABSENT)}
    for name in sections((a, b)).values():
        if name in differing:
            options = name.removesuffix("name")
            differing = {k for k in differing if k == name or not k.startswith(options)}
    return sorted(differing)


def choices(keys: Iterable[str], matched: Sequence[str]) -> list[str]:
    """Those of the differing keys that someone chose, not that follow from another choice."""
    return [key for key in keys if key not in FOLLOWS and key not in matched]


def varying(configs: Sequence[Values]) -> list[str]:
    """Keys that differ between any two of the configs with the same variants, in their order."""
    names = sections(configs).values()
    found = []
    for key in dict.fromkeys(key for config in configs for key in _design_only(config)):
        owner = next((n for n in names if key != n and key.startswith(n.removesuffix("name"))), "")
        values: dict[str, set[str]] = {}
        for config in configs:
            variant = str(config.get(owner)) if owner else ""
            values.setdefault(variant, set()).add(_identity({"": config.get(key, ABSENT)}))
        if any(len(seen) > 1 for seen in values.values()):
            found.append(key)
    return found


def others(configs: Sequence[Values], keys: Sequence[str]) -> frozenset[str]:
    """What the designs of a group are beside the keys it is grouped by, and their options."""
    below = tuple(key.removesuffix("name") for key in keys if key.endswith(".name"))
    return frozenset(
        _identity(
            {
                key: value
                for key, value in _design_only(config).items()
                if key not in keys and not key.startswith(below)
            }
        )
        for config in configs
    )


# ---- labels ----


def labels(configs: Sequence[Values], by: Sequence[str], matched: Sequence[str]) -> list[str]:
    """What each design is called: the shortest description of what differs, else its model's name.

    A model's name stands for several choices that it determines. With `by`, only those keys.
    """
    if by:
        return [" ".join(f"{word(key)}={shown(c.get(key, ABSENT))}" for key in by) for c in configs]
    if len(configs) == 1:
        return [f"model={shown(configs[0].get('model.name', ABSENT))}"]
    keys = choices(varying(configs), matched)
    made = _labels(configs, keys)
    if len({*made}) < len(configs):  # what follows from a choice is all that differs somewhere
        made = _labels(configs, varying(configs))
    repeated = Counter(made)
    return [
        f"{label} #{made[: place + 1].count(label)}" if repeated[label] > 1 else label
        for place, label in enumerate(made)
    ]


def _labels(configs: Sequence[Values], keys: list[str]) -> list[str]:
    names = [config.get("model.name") for config in configs]
    bundle = [key for key in keys if _determined(configs, key)] if len({*names}) > 1 else []
    if len(bundle) > 1:
        keys = ["model.name", *(key for key in keys if key not in bundle)]
    owners = [name.removesuffix("name") for name in sections(configs).values()]
    found = []
    for config in configs:
        parts = []
        for key in keys:
            owner = next((o for o in owners if key.startswith(o)), None)
            if key in config or owner is None:  # another variant's options are none of this one's
                parts.append(f"{word(key)}={shown(config.get(key, ABSENT))}")
        found.append(" ".join(parts))
    return found


def _determined(configs: Sequence[Values], key: str) -> bool:
    """Whether designs of the same model name have the same value."""
    seen: dict[Any, str] = {}
    return all(
        seen.setdefault(c.get("model.name"), _identity({"": c.get(key, ABSENT)}))
        == _identity({"": c.get(key, ABSENT)})
        for c in configs
    )


def word(key: str) -> str:
    """A key as a person types it: the config group of a variant, else the key."""
    for name, full in GROUP_KEYS.items():
        if key == full:
            return name
    return key.split(".")[-2] if key.endswith(".name") else key


def shown(value: Any) -> str:
    """A value in one word, as the command line takes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(shown, value))}]"
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)  # other values, other words
    text = str(value)
    return text if text.isprintable() and text else json.dumps(text)


# ---- what a user names ----


def by_key(name: str, configs: Sequence[Values]) -> str:
    """The config key behind a word of `--by`. Raises UserError with a suggestion."""
    groups = sections(configs) | GROUP_KEYS
    keys = {key for config in configs for key in config}
    if name == "seed":
        raise UserError("--by=seed: seeds are what a design is averaged over; leave it out")
    key = groups.get(name, name)
    if key not in keys:
        hint = did_you_mean(name, [*groups, *keys])
        raise UserError(
            f"--by={name}: no such config group or key in these runs.{hint} Use a group, as "
            f"positional, or a full key, as optimizer.lr"
        )
    return key


def _require_apart(name: str, key: str, configs: Sequence[Values]) -> None:
    """Raise UserError where a key is the same in all designs although they differ."""
    values = {_identity({"": config.get(key, ABSENT)}) for config in configs}
    others = [word(other) for other in choices(varying(configs), ())]
    if len(values) == 1 and others:
        raise UserError(
            f"--by={name}: {key} is {shown(configs[0].get(key))} in every run, so it tells no "
            f"designs apart; they differ in {', '.join(others)}: use --by {others[0]}"
        )


def find_design(name: str, designs: Sequence[Design]) -> Design:
    """The design a user names by its label or by a value in it. Raises UserError."""
    exact = [design for design in designs if design.label == name]
    if exact:
        return exact[0]
    values = [
        design
        for design in designs
        if name in {part.partition("=")[2] for part in design.label.split()}
        or name in design.label.split()
    ]
    if len(values) == 1:
        return values[0]
    known = [design.label for design in designs]
    why = "names more than one design" if values else "no such design"
    hint = "" if values else did_you_mean(name, [*known, *(k.partition("=")[2] for k in known)])
    raise UserError(f"--baseline={name}: {why}.{hint} Use one of: {'; '.join(known)}")


def in_several_ways(
    designs: Sequence[Design], baseline: Design | None, matched: Sequence[str]
) -> list[tuple[Design, Design, list[str]]]:
    """Pairs of designs that differ in more than one choice; those with the baseline come first."""
    pairs = []
    for one, other in combinations(designs, 2):
        chosen = choices(differences(one.config, other.config), matched)
        if len(chosen) > 1:
            pairs.append((one, other, chosen))
    return sorted(pairs, key=lambda pair: baseline not in pair[:2])
