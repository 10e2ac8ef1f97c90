"""Explanations of config groups, their choices and options: the comments of the YAML files.

The comment at the head of a file explains the choice; the one behind an option explains the option,
and behind a group in train.yaml, the group. Only types need the dataclasses, and so torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from minigpt.config.comments import CommentedFile, Option
from minigpt.config.groups import ROOT, config_directory, config_groups, section_of
from minigpt.config.pairs import parse_override, similar_option
from minigpt.errors import UserError, did_you_mean

# The files with the options of all choices of a group, and that group.
BASES = {"model_base.yaml": "model", "sweep/none.yaml": "sweep"}
TOP_LEVEL = ""  # the group of options that belong to no group
PARAMS = "hydra.sweeper.params."  # what an experiment varies with -m
NO_FIELD = {"resume": str | None}  # options of the command line that no dataclass has


@dataclass(frozen=True)
class Choice:
    """A choice of a group: its options, and the overrides of others that it stands for."""

    name: str
    text: str
    options: list[Option] = field(default_factory=list)
    sets: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Group:
    """A config group. `options`: those of all its choices."""

    name: str
    text: str
    default: str | None
    choices: list[Choice]
    options: list[Option]

    def only(self, names: Sequence[str]) -> Group:
        """Return the group with the named choices alone. Raises UserError for an unknown one."""
        known = [choice.name for choice in self.choices]
        for name in names:
            if name not in known:
                guess = did_you_mean(name, known)
                why = f"no such {self.name}.{guess} Known: {', '.join(known)}."
                raise UserError(f"{self.name}={name}: {why}")
        return replace(self, choices=[one for one in self.choices if one.name in names])

    def below(self, key: str) -> Group:
        """Return the group with only the option `key`, or those below it."""
        choices = [replace(one, options=_below(one.options, key), sets=[]) for one in self.choices]
        chosen = [choice for choice in choices if choice.options]
        return replace(self, choices=chosen, options=_below(self.options, key))


def explained(topics: Sequence[str], config_dir: Path | None = None) -> list[Group]:
    """Return what there is to say about each topic, or all groups without topics.

    A topic is a group, GROUP=CHOICE with one or several choices, or an option, also with a value.
    `config_dir`: another folder of choices. Raises UserError for an unknown topic.
    """
    groups = all_groups(config_dir)
    return [group for topic in topics for group in _explained(topic, groups)] if topics else groups


def _explained(topic: str, groups: list[Group]) -> list[Group]:
    key, value = parse_override(topic)
    for group in groups:
        if key == group.name:
            return [group.only(value.split(",")) if value else group]
    found = [part for group in groups if (part := group.below(key)).choices or part.options]
    if not found:
        keys = {option.key for group in groups for option in all_options(group)}
        known = [*(group.name for group in groups), *sorted(keys)]
        guess = similar_option(key, value, known)
        see = "See the groups: minigpt train --help"
        raise UserError(f"--help {topic}: no such config group or option.{guess} {see}")
    return found


def all_options(group: Group) -> list[Option]:
    """Return the options of a group and of its choices."""
    return [*group.options, *(option for choice in group.choices for option in choice.options)]


def all_groups(config_dir: Path | None = None) -> list[Group]:
    """Return every group, in the order of train.yaml, and last the options outside of groups."""
    root = CommentedFile(config_directory() / f"{ROOT}.yaml")
    folders = [config_directory(), *([config_dir] if config_dir else [])]
    shared = _shared_options()
    groups = [
        Group(name, text, value, _choices(name, folders), shared.get(name, []))
        for name, value, text in root.defaults
    ]
    assert sorted(group.name for group in groups) == config_groups()
    return [*groups, Group(TOP_LEVEL, "", None, [], root.options(""))]


def _choices(name: str, folders: list[Path]) -> list[Choice]:
    files = {
        file.relative_to(folder / name).with_suffix("").as_posix(): file
        for folder in folders
        for file in sorted((folder / name).rglob("*.yaml"))
    }
    section = section_of(name)
    choices = [
        _choice(name, section, choice, CommentedFile(file)) for choice, file in files.items()
    ]
    if name == "model":
        choices += _designs()
    return sorted(choices, key=lambda one: one.name)


def _shared_options() -> dict[str, list[Option]]:
    """Return the options of all choices, by group. Those of model.norm belong to `norm`."""
    section_owners = {section_of(group): group for group in config_groups()}
    options: dict[str, list[Option]] = {}
    for file, group in BASES.items():
        for option in CommentedFile(config_directory() / file).options(""):
            owner = section_owners.get(option.key.rpartition(".")[0], group)
            options.setdefault(owner, []).append(option)
    return options


def _designs() -> list[Choice]:
    """Return the designs that have no file: `groups.register` makes one of each scheme."""
    return [
        Choice(
            file.stem,
            f"The default design. {CommentedFile(file).head}",
            [],
            [f"positional={file.stem}"],
        )
        for file in (config_directory() / "positional").glob("*.yaml")
    ]


def _choice(group: str, section: str, name: str, file: CommentedFile) -> Choice:
    if section != "_global_":
        options = file.options(f"{section}.")
        return Choice(name, file.head, [one for one in options if one.default != name])
    if f"{group}/{name}.yaml" in BASES:
        return Choice(name, file.head)
    values = [f"{one.key.removeprefix(PARAMS)}={one.typed}" for one in file.options("")]
    sets = [value for value in values if value != f"{group}.name={name}"]
    parents = [
        one for one in file.parents(group) if f"{one.replace('=', '/', 1)}.yaml" not in BASES
    ]
    return Choice(name, file.head, [], [*parents, *sets])


def _below(options: list[Option], key: str) -> list[Option]:
    return [option for option in options if option.is_below(key)]


# ---- types ----


def with_types(group: Group, sections: dict[str, type]) -> Group:
    """Return the group with the types of its options.

    `sections`: the dataclasses of sections that are no part of a run's config.
    """

    def typed(options: list[Option], choice: str) -> list[Option]:
        return [replace(one, type=_type_of(one.key, choice, sections)) for one in options]

    choices = [replace(one, options=typed(one.options, variant_of(one))) for one in group.choices]
    return replace(group, choices=choices, options=typed(group.options, ""))


def variant_of(choice: Choice) -> str:
    """Return the registered name that a choice selects: its own, or that in a user's file."""
    names = [one.default for one in choice.options if one.key.endswith(".name")]
    return names[0] or "" if names else choice.name


def _type_of(key: str, variant: str, sections: dict[str, type]) -> str:
    """Return the type of an option as text; `variant`: what the `name` of its section selects."""
    section, _, name = key.rpartition(".")
    types = {**NO_FIELD, **get_type_hints(class_of(section, variant, sections))}
    if name not in types:  # of a user's file
        raise UserError(f"{key}: no such option.{did_you_mean(name, types)}")
    return _as_text(types[name])


def class_of(section: str, variant: str, sections: dict[str, type]) -> type:
    """Return the dataclass of a section; `variant`: what its `name` selects."""
    from minigpt.config.schema import REGISTRIES, Config

    if section in sections:
        return sections[section]
    if section in REGISTRIES:
        return REGISTRIES[section].options(variant)
    cls: Any = Config
    for part in filter(None, section.split(".")):
        cls = get_type_hints(cls)[part]
    return cls


def _as_text(kind: Any) -> str:
    if kind is NoneType:
        return "null"
    if get_origin(kind) is list:
        return f"list of {_as_text(get_args(kind)[0])}"
    return " or ".join(map(_as_text, get_args(kind))) or kind.__name__
