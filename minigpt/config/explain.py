"""Explanations of config groups, their choices and options: the comments of the YAML files.

The comment at the head of a file explains the choice; the one behind an option explains the option,
and behind a group in train.yaml, the group. Only types need the dataclasses, and so torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from minigpt.config.groups import ROOT, config_directory, config_groups, section_of
from minigpt.config.overrides import similar_option
from minigpt.config.pairs import parse_override
from minigpt.errors import UserError, did_you_mean

# The files with the options of all choices of a group, and that group.
BASES = {"model_base.yaml": "model", "sweep/none.yaml": "sweep"}
TOP_LEVEL = ""  # the group of options that belong to no group
PARAMS = "hydra.sweeper.params."  # what an experiment varies with -m
NO_FIELD = {"resume": str | None}  # options of the command line that no dataclass has


@dataclass(frozen=True)
class Option:
    """An option. `default`: as in YAML; None: required. `type` is empty until `with_types`."""

    key: str
    default: str | None
    text: str
    type: str = ""

    @property
    def typed(self) -> str:
        """The default as it is typed; ???, as in YAML, if there is none."""
        return "???" if self.default is None else self.default

    def is_below(self, key: str) -> bool:
        """Return whether this is the option `key`, or one of the options below it."""
        return f"{self.key}.".startswith(f"{key}.")


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


def explained(topics: Sequence[str], own: Path | None = None) -> list[Group]:
    """Return what there is to say about each topic, or all groups without topics.

    A topic is a group, GROUP=CHOICE with one or several choices, or an option, also with a value.
    `own`: another folder of choices, that of --config-dir. Raises UserError for an unknown topic.
    """
    groups = all_groups(own)
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


def all_groups(own: Path | None = None) -> list[Group]:
    """Return every group, in the order of train.yaml, and last the options outside of groups."""
    root = Commented(config_directory() / f"{ROOT}.yaml")
    folders = [config_directory(), *([own] if own else [])]
    groups = [_group(name, value, text, folders) for name, value, text in root.defaults]
    assert sorted(group.name for group in groups) == config_groups()
    return [*groups, Group(TOP_LEVEL, "", None, [], root.options(""))]


def _group(name: str, default: str | None, text: str, folders: list[Path]) -> Group:
    files = {
        file.relative_to(folder / name).with_suffix("").as_posix(): file
        for folder in folders
        for file in sorted((folder / name).rglob("*.yaml"))
    }
    choices = [_choice(name, choice, Commented(file)) for choice, file in files.items()]
    if name == "model":
        choices += _designs()
    return Group(name, text, default, sorted(choices, key=lambda one: one.name), _shared(name))


def _shared(name: str) -> list[Option]:
    """Return the options of all choices of a group. Those of model.norm belong to `norm`."""
    section_owners = {section_of(group): group for group in config_groups()}
    return [
        option
        for file, group in BASES.items()
        for option in Commented(config_directory() / file).options("")
        if section_owners.get(option.key.rpartition(".")[0], group) == name
    ]


def _designs() -> list[Choice]:
    """Return the designs that have no file: `groups.register` makes one of each scheme."""
    return [
        Choice(
            file.stem,
            f"The default design. {Commented(file).head}",
            [],
            [f"positional={file.stem}"],
        )
        for file in (config_directory() / "positional").glob("*.yaml")
    ]


def _choice(group: str, name: str, file: Commented) -> Choice:
    section = section_of(group)
    if section != "_global_":
        options = file.options(f"{section}.")
        return Choice(name, file.head, [one for one in options if one.default != name])
    if f"{group}/{name}.yaml" in BASES:
        return Choice(name, file.head)
    values = [f"{one.key.removeprefix(PARAMS)}={one.typed}" for one in file.options("")]
    sets = [value for value in values if value != f"{group}.name={name}"]
    return Choice(name, file.head, [], [*file.parents(group), *sets])


@dataclass(frozen=True)
class Commented:
    """A YAML file with its comments. Raises yaml.YAMLError and UnicodeDecodeError."""

    path: Path

    @cached_property
    def lines(self) -> list[str]:
        """The lines of the file."""
        return self.path.read_text(encoding="utf-8").splitlines()

    @cached_property
    def head(self) -> str:
        """The comment at the head, without the line for Hydra."""
        comments = []
        for line in self.lines:
            if not line.startswith("#"):
                break
            comments.append(line.removeprefix("#").strip())
        return " ".join(line for line in comments if not line.startswith("@package"))

    @cached_property
    def _root(self) -> list[tuple[yaml.Node, yaml.Node]]:
        with self.path.open("rb") as file:  # its name is part of an error
            node = yaml.compose(file, yaml.SafeLoader)
        return node.value if isinstance(node, yaml.MappingNode) else []

    @cached_property
    def defaults(self) -> list[tuple[str, str | None, str]]:
        """Group, choice and comment of each entry of the defaults list that has a group."""
        return [
            (key.value, None if value.value == "null" else value.value, self._comment(value))
            for item in self._defaults()
            if isinstance(item, yaml.MappingNode)
            for key, value in item.value
        ]

    def parents(self, group: str) -> list[str]:
        """Return GROUP=CHOICE for each entry of the defaults list of a choice of `group`."""
        chosen = [f"{key.removeprefix('override /')}={value}" for key, value, _ in self.defaults]
        names = [item.value for item in self._defaults() if isinstance(item, yaml.ScalarNode)]
        relative = [name if name.startswith("/") else f"/{group}/{name}" for name in names]
        files = [name[1:] for name in relative if not name.endswith("/_self_")]
        parents = [file.replace("/", "=", 1) for file in files if f"{file}.yaml" not in BASES]
        return [*parents, *chosen]

    def options(self, prefix: str) -> list[Option]:
        """Return the options that the file sets, their keys with a prefix."""
        values = [pair for pair in self._root if pair[0].value != "defaults"]
        return [
            Option(key, None if value == "???" else value, self._comment(node))
            for key, node, value in _flat(values, prefix)
        ]

    def _defaults(self) -> list[yaml.Node]:
        return next((value.value for key, value in self._root if key.value == "defaults"), [])

    def _comment(self, node: yaml.Node) -> str:
        """Return the comment behind a value, with the following lines of the same indentation."""
        number = node.end_mark.line
        first = re.match(r"\s*# (.*)", self.lines[number][node.end_mark.column :])
        if first is None:
            return ""
        column = node.end_mark.column + first.start(1) - len("# ")
        texts = [first[1]]
        for line in self.lines[number + 1 :]:
            if not line.startswith(" " * column + "# "):
                break
            texts.append(line.strip().removeprefix("# "))
        return " ".join(texts)


def _flat(
    pairs: list[tuple[yaml.Node, yaml.Node]], prefix: str
) -> Iterator[tuple[str, yaml.Node, str]]:
    """Yield full key, node and value as text of each value of a mapping."""
    for key, value in pairs:
        if isinstance(value, yaml.MappingNode):
            yield from _flat(value.value, f"{prefix}{key.value}.")
        elif isinstance(value, yaml.SequenceNode):
            text = f"[{','.join(item.value for item in value.value)}]"
            yield f"{prefix}{key.value}", value, text
        else:
            yield f"{prefix}{key.value}", value, value.value


def _below(options: list[Option], key: str) -> list[Option]:
    return [option for option in options if option.is_below(key)]


# ---- types ----


def with_types(group: Group, sections: dict[str, type]) -> Group:
    """Return the group with the types of its options.

    `sections`: the dataclasses of sections that are no part of a run's config.
    """

    def typed(options: list[Option], choice: str) -> list[Option]:
        return [replace(one, type=_type_of(one.key, choice, sections)) for one in options]

    choices = [replace(one, options=typed(one.options, _variant(one))) for one in group.choices]
    return replace(group, choices=choices, options=typed(group.options, ""))


def _variant(choice: Choice) -> str:
    """Return the registered name that a choice selects: its own, or that in a user's file."""
    names = [one.default for one in choice.options if one.key.endswith(".name")]
    return names[0] or "" if names else choice.name


def _type_of(key: str, variant: str, sections: dict[str, type]) -> str:
    """Return the type of an option as text; `variant`: what the `name` of its section selects."""
    from minigpt.config.schema import REGISTRIES, Config

    section, _, name = key.rpartition(".")
    cls: Any = sections.get(section, Config)
    if section in REGISTRIES:
        cls = REGISTRIES[section].options(variant)
    elif cls is Config:
        for part in filter(None, section.split(".")):
            cls = get_type_hints(cls)[part]
    types = {**NO_FIELD, **get_type_hints(cls)}
    if name not in types:  # of a user's file
        raise UserError(f"{key}: no such option.{did_you_mean(name, types)}")
    return _as_text(types[name])


def _as_text(kind: Any) -> str:
    if kind is NoneType:
        return "null"
    if get_origin(kind) is list:
        return f"list of {_as_text(get_args(kind)[0])}"
    return " or ".join(map(_as_text, get_args(kind))) or kind.__name__
