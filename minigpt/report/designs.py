"""Group runs into designs, label designs by their differences, and list the differences."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from typing import Any

from minigpt.config.pairs import parse_override
from minigpt.errors import UserError, did_you_mean
from minigpt.report.runs import Run
from minigpt.report.statistics import Interval, Seeds, Spread, interval, spread
from minigpt.run.design import IGNORED_SECTIONS, Values, design_only, identity_of, with_text

# Keys that depend on the device or another choice: listed as differences, not counted as choices.
DERIVED_KEYS = ("model.backend.name", "model.architecture", "model.n_special_tokens")
DERIVED_KEYS += ("model.source_length", "model.target_length")
# Config groups that set another key than SECTION.name.
GROUP_KEYS = {"norm": "model.norm.placement", "model": "model.name"}
NEARLY_ALL = 0.75  # of the designs: a part of so many labels is left out of short names
ABSENT = "absent"  # value of a key that an older version did not write
NOT_NAMES = ("null", "true", "false", "none", ABSENT)  # values that need their key in short names


@dataclass
class Design:
    """Runs that differ only in their seed, or one group of `--by`.

    `runs` have finished and are averaged; `unfinished` are only listed. `configs` has one entry, or
    one per design in a group of `--by`.
    """

    label: str
    configs: list[Values]
    runs: list[Run]
    unfinished: list[Run]
    notes: list[str] = field(default_factory=list)

    @property
    def config(self) -> Values:
        """The first config."""
        return self.configs[0]

    @property
    def all_runs(self) -> list[Run]:
        """Finished runs, then unfinished ones."""
        return [*self.runs, *self.unfinished]

    @property
    def training(self) -> list[Run]:
        """Unfinished runs that train now."""
        return [run for run in self.unfinished if run.is_running]

    @cached_property
    def by_seed(self) -> dict[int, list[Run]]:
        """Finished runs by seed."""
        by_seed: dict[int, list[Run]] = {}
        for run in self.runs:
            if run.seed is not None:
                by_seed.setdefault(run.seed, []).append(run)
        return dict(sorted(by_seed.items()))

    def mean_by_seed(self, value: Callable[[Run], float | None]) -> Seeds:
        """Return a value by seed, averaged over the designs of a group; None values are skipped."""
        means = {}
        for seed, runs in self.by_seed.items():
            numbers = [number for run in runs if (number := value(run)) is not None]
            if numbers:
                means[seed] = sum(numbers) / len(numbers)
        return means

    def seeds(self, key: str) -> Seeds:
        """Return a number of result.json by seed."""
        return self.mean_by_seed(lambda run: run.number(key))

    def interval(self, key: str) -> Interval | None:
        """Return mean and confidence interval over seeds, None if no run has the number."""
        values = [*self.seeds(key).values()]
        return interval(values) if values else None

    def spread(self, key: str) -> Spread | None:
        """Return median and range over seeds, None if no run has the number."""
        values = [*self.seeds(key).values()]
        return spread(values) if values else None


def group(runs: Sequence[Run], by: Sequence[str], matched: Sequence[str] = ()) -> list[Design]:
    """Group runs by design, or by the config keys `by`, in the order in which they were started.

    Of several runs with the same design and seed, the newest finished one is used. `matched` are
    keys that `sweep.match` set. Raises UserError for an unknown key of `by`, and for one that is
    the same in all runs.
    """
    known = [run for run in runs if run.config]
    configs = [design_config(run) for run in known]
    keys = [by_key(name, configs) for name in by]
    for name, key in zip(by, keys, strict=True):
        _require_varying(name, key, configs)
    groups: dict[str, Design] = {}
    members: dict[tuple[str, str], list[Run]] = {}  # by group and config
    for run, config in zip(known, configs, strict=True):
        identity = identity_of(design_only(config))
        chosen = identity_of({k: config.get(k, ABSENT) for k in keys}) if keys else identity
        design = groups.setdefault(chosen, Design("", [], [], []))
        if (chosen, identity) not in members:
            design.configs.append(config)
        members.setdefault((chosen, identity), []).append(run)
    for (chosen, _), same in members.items():
        _add(groups[chosen], same)
    designs = [*groups.values()]
    names = labels([design.config for design in designs], keys, matched)
    for design, label in zip(designs, names, strict=True):
        design.label = label
    return designs


def _add(design: Design, runs: list[Run]) -> None:
    """Add runs of one config: for each seed the newest finished run, or else the newest.

    Runs that train now are added as unfinished too.
    """
    by_seed: dict[Any, list[Run]] = {}
    for run in runs:
        by_seed.setdefault(run.seed if run.seed is not None else run.path, []).append(run)
    for seed, same in by_seed.items():
        newest = max(same, key=lambda run: (run.finished, run.started, run.order))
        (design.runs if newest.finished else design.unfinished).append(newest)
        others = [run for run in same if run is not newest]
        design.unfinished += [run for run in others if run.is_running]
        ignored = [str(run.path) for run in others if not run.is_running]
        if ignored:
            design.notes.append(
                f"seed {seed} has {len(ignored) + 1} runs: uses the newest, {newest.path}, not "
                f"{', '.join(ignored)}"
            )


def design_config(run: Run) -> dict[str, Any]:
    """Return a run's config with the digest of its text in place of its path."""
    digest = run.manifest.get("data_sha256")
    return with_text(run.config, digest if isinstance(digest, str) else None)


def _value_of(config: Values, key: str) -> str:
    return identity_of(config.get(key, ABSENT))


# ---- differences ----


def sections(configs: Iterable[Values]) -> dict[str, str]:
    """Return the config groups that choose a variant, and the key of the variant's name."""
    keys = {key for config in configs for key in config if key.endswith(".name")}
    keys = {key for key in keys if key != "model.name" and not key.startswith(IGNORED_SECTIONS)}
    return {key.split(".")[-2]: key for key in sorted(keys)}


def differences(one: Values, other: Values) -> list[str]:
    """Return the keys in which two designs differ; options of different variants are left out."""
    a, b = design_only(one), design_only(other)
    differing = {k for k in a.keys() | b.keys() if a.get(k, ABSENT) != b.get(k, ABSENT)}
    for name in sections((a, b)).values():
        if name in differing:
            options = name.removesuffix("name")
            differing = {k for k in differing if k == name or not k.startswith(options)}
    return sorted(differing)


def choices(keys: Iterable[str], matched: Sequence[str]) -> list[str]:
    """Return the differing keys, without those that follow from another choice."""
    return [key for key in keys if key not in DERIVED_KEYS and key not in matched]


def varying(configs: Sequence[Values]) -> list[str]:
    """Return the keys that differ between any two configs with the same variant, in their order."""
    names = sections(configs).values()
    keys = []
    for key in dict.fromkeys(key for config in configs for key in design_only(config)):
        owner = next((n for n in names if key != n and key.startswith(n.removesuffix("name"))), "")
        values: dict[str, set[str]] = {}
        for config in configs:
            variant = str(config.get(owner)) if owner else ""
            values.setdefault(variant, set()).add(_value_of(config, key))
        if any(len(variants) > 1 for variants in values.values()):
            keys.append(key)
    return keys


def identities_without(keys: Sequence[str], configs: Sequence[Values]) -> frozenset[str]:
    """Return the identities of a group's designs without the `keys` it is grouped by."""
    below = tuple(key.removesuffix("name") for key in keys if key.endswith(".name"))
    others = [
        {k: v for k, v in design_only(c).items() if k not in keys and not k.startswith(below)}
        for c in configs
    ]
    return frozenset(map(identity_of, others))


def condition(run: Run, keys: Sequence[str]) -> str:
    """Return the identity of a run's config without the seed and the `keys` it is grouped by."""
    (identity,) = identities_without(keys, [design_config(run)])
    return identity


# ---- labels ----


def labels(configs: Sequence[Values], by: Sequence[str], matched: Sequence[str]) -> list[str]:
    """Return a label for each design: the values that differ, or the model's name.

    A model's name replaces several values that it determines. With `by`, only those keys.
    """
    if by:
        return [" ".join(f"{word(key)}={shown(c.get(key, ABSENT))}" for key in by) for c in configs]
    if len(configs) == 1:
        return [f"model={shown(configs[0].get('model.name', ABSENT))}"]
    keys = choices(varying(configs), matched)
    names = _labels(configs, keys)
    if len({*names}) < len(configs):  # two designs differ only in keys that follow from a choice
        names = _labels(configs, varying(configs))
    counts = Counter(names)
    return [
        f"{label} #{names[: index + 1].count(label)}" if counts[label] > 1 else label
        for index, label in enumerate(names)
    ]


def _labels(configs: Sequence[Values], keys: list[str]) -> list[str]:
    names = [config.get("model.name") for config in configs]
    bundle = [key for key in keys if _determined(configs, key)] if len({*names}) > 1 else []
    if len(bundle) > 1:
        keys = ["model.name", *(key for key in keys if key not in bundle)]
    owners = tuple(name.removesuffix("name") for name in sections(configs).values())
    return [
        " ".join(
            f"{word(key)}={shown(config.get(key, ABSENT))}"
            for key in keys
            if key in config or not key.startswith(owners)  # not an option of another variant
        )
        for config in configs
    ]


def model_labels(configs: Sequence[Values]) -> list[str]:
    """Return a label of each run's model: its name, and what differs between models of that name.

    Options outside of `model.`, such as the learning rate, do not count.
    """
    models = [{k: v for k, v in config.items() if k.startswith("model.")} for config in configs]
    by_name: dict[str, dict[str, Values]] = {}
    for model in models:
        by_name.setdefault(shown(model.get("model.name", ABSENT)), {})[identity_of(model)] = model
    keys = {name: choices(varying([*same.values()]), ()) for name, same in by_name.items()}
    labels = []
    for model in models:
        name = shown(model.get("model.name", ABSENT))
        pairs = ((word(key).removeprefix("model."), key) for key in keys[name] if key in model)
        chosen = (f"{option}={shown(model[key])}" for option, key in pairs)
        labels.append(" ".join([name, *chosen]))
    return labels


def short_labels(labels: Sequence[str]) -> dict[str, str]:
    """Return a short name for each label; labels whose names would be equal stay as they are.

    Without the name of a config group whose variant says enough (`rope` of `positional=rope`), the
    section of a key (`lr=0.01` of `optimizer.lr=0.01`), and what nearly all labels have.
    """
    parts = [label.split(" ") for label in labels]
    counts = Counter(part for label in parts for part in label)
    common = {part for part, n in counts.items() if n >= NEARLY_ALL * len(labels) and n > 1}
    names = [
        " ".join(map(_short_part, [p for p in label if p not in common] or label))
        for label in parts
    ]
    return dict(zip(labels, names if len({*names}) == len(names) else labels, strict=True))


def _short_part(part: str) -> str:
    key, equals, value = part.partition("=")
    is_word = value[:1].isalnum() and value not in NOT_NAMES and not _is_number(value)
    return value if is_word and "." not in key else f"{key.rpartition('.')[2]}{equals}{value}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _determined(configs: Sequence[Values], key: str) -> bool:
    """Whether the model's name determines the value, in all designs."""
    pairs = {(c.get("model.name"), _value_of(c, key)) for c in configs}
    return len(pairs) == len({name for name, _ in pairs})


def word(key: str) -> str:
    """Return a key as typed on the command line: the config group of a variant, else the key."""
    groups = {full: name for name, full in GROUP_KEYS.items()}
    return groups.get(key, key.split(".")[-2] if key.endswith(".name") else key)


def shown(value: Any) -> str:
    """Return a value as typed on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(shown, value))}]"
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    text = str(value)
    return text if text.isprintable() and text else json.dumps(text)


# ---- names given by the user ----


def by_key(name: str, configs: Sequence[Values]) -> str:
    """Return the config key of a word of `--by`. Raises UserError with a suggestion."""
    groups = sections(configs) | GROUP_KEYS
    keys = {key for config in configs for key in config}
    if name == "seed":
        raise UserError("--by=seed: designs are averaged over seeds; leave it out")
    key = groups.get(name, name)
    if key not in keys:
        hint = did_you_mean(name, [*groups, *keys])
        raise UserError(
            f"--by={name}: no such config group or key in these runs.{hint} Use a group, such "
            f"as positional, or a full key, such as optimizer.lr"
        )
    return key


def _require_varying(name: str, key: str, configs: Sequence[Values]) -> None:
    """Raise UserError for a key that is the same in all runs although the runs differ."""
    values = {_value_of(config, key) for config in configs}
    others = [word(other) for other in choices(varying(configs), ())]
    if len(values) == 1 and others:
        raise UserError(
            f"--by={name}: {key} is {shown(configs[0].get(key))} in every run; the runs differ in "
            f"{', '.join(others)}: use --by {others[0]}"
        )


def find_design(name: str, designs: Sequence[Design]) -> Design:
    """Return the design with a label, or with a value in its label. Raises UserError."""
    names: dict[str, list[Design]] = {}  # label, and its parts and values
    for design in designs:
        parts = design.label.split()
        for known in {design.label, *parts, *(parse_override(part).value for part in parts)}:
            names.setdefault(known, []).append(design)
    labels = [design.label for design in designs]
    if name in labels:
        return designs[labels.index(name)]
    matches = names.get(name, [])
    if len(matches) == 1:
        return matches[0]
    why = "names more than one design" if matches else "no such design"
    hint = "" if matches else did_you_mean(name, names)
    raise UserError(f"--baseline={name}: {why}.{hint} Use one of: {'; '.join(labels)}")


def pairs_with_several_choices(
    designs: Sequence[Design], baseline: Design | None, matched: Sequence[str]
) -> list[tuple[Design, Design, list[str]]]:
    """Return pairs of designs that differ in several choices; pairs with the baseline first."""
    pairs = []
    for one, other in combinations(designs, 2):
        chosen = choices(differences(one.config, other.config), matched)
        if len(chosen) > 1:
            pairs.append((one, other, chosen))
    return sorted(pairs, key=lambda pair: baseline not in pair[:2])
