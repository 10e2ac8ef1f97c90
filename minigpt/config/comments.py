"""Config files with their comments, which YAML's loaders drop."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml

from minigpt.errors import UserError, first_line
from minigpt.files import CONTENT, require_content

LOADER = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader  # ten times faster


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


def require_own_values(text: str) -> None:
    """Raise ValueError if a config has other values than those that its head has the digest of."""
    lines = text.splitlines(keepends=True)
    n = next((n for n, line in enumerate(lines) if not line.startswith("#")), len(lines))
    digests = [line.partition(f"{CONTENT}:")[2].strip() for line in lines[:n] if CONTENT in line]
    require_content(digests[-1] if digests else None, "".join(lines[n:]))


@dataclass(frozen=True)
class CommentedFile:
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
            node = yaml.compose(file, LOADER)
        return _pairs(node) if isinstance(node, yaml.MappingNode) else []

    @cached_property
    def defaults(self) -> list[tuple[str, str | None, str]]:
        """Group, choice and comment of each entry of the defaults list that has a group."""
        return [
            (key.value, None if value.value == "null" else _in_yaml(value), self._comment(value))
            for item in self._defaults()
            if isinstance(item, yaml.MappingNode)
            for key, value in item.value
        ]

    def parents(self, group: str) -> list[str]:
        """Return GROUP=CHOICE for each entry of the defaults list of a choice of `group`.

        A file outside of groups is its name.
        """
        chosen = [f"{key.removeprefix('override /')}={value}" for key, value, _ in self.defaults]
        names = [item.value for item in self._defaults() if isinstance(item, yaml.ScalarNode)]
        relative = [name if name.startswith("/") else f"/{group}/{name}" for name in names]
        files = [name[1:] for name in relative if not name.endswith("/_self_")]
        return [*(file.replace("/", "=", 1) for file in files), *chosen]

    def options(self, prefix: str) -> list[Option]:
        """Return the options that the file sets, their keys with a prefix."""
        values = [pair for pair in self._root if pair[0].value != "defaults"]
        return [
            Option(key, None if node.value == "???" else _in_yaml(node), self._comment(node))
            for key, node in _flat(values, prefix)
        ]

    def _defaults(self) -> list[yaml.Node]:
        lists = (value for key, value in self._root if key.value == "defaults")
        node = next(lists, None)
        return node.value if isinstance(node, yaml.SequenceNode) else []

    def _comment(self, node: yaml.Node) -> str:
        """Return the comment behind a value, with the following lines of the same indentation."""
        number = node.end_mark.line
        line, *following = self.lines[number:] or [""]  # a block scalar ends behind the last line
        first = re.match(r"\s*# (.*)", line[node.end_mark.column :])
        if first is None:
            return ""
        column = node.end_mark.column + first.start(1) - len("# ")
        texts = [first[1]]
        for line in following:
            if not line.startswith(" " * column + "# "):
                break
            texts.append(line.strip().removeprefix("# "))
        return " ".join(texts)


def _pairs(node: yaml.MappingNode) -> list[tuple[yaml.Node, yaml.Node]]:
    """Return the keys and values of a mapping, with those of `<<`."""
    yaml.SafeLoader("").flatten_mapping(node)
    return node.value


def _flat(pairs: list[tuple[yaml.Node, yaml.Node]], prefix: str) -> Iterator[tuple[str, yaml.Node]]:
    """Yield full key and node of each value of a mapping."""
    for key, value in pairs:
        if isinstance(value, yaml.MappingNode):
            yield from _flat(_pairs(value), f"{prefix}{key.value}.")
        else:
            yield f"{prefix}{key.value}", value


def _in_yaml(node: yaml.Node) -> str:
    """Return a value as one line of YAML: lists in brackets, a text in quotes if it needs them."""
    if isinstance(node, yaml.SequenceNode):
        return f"[{','.join(map(_in_yaml, node.value))}]"
    if isinstance(node, yaml.MappingNode):
        return f"{{{','.join(f'{_in_yaml(key)}: {_in_yaml(one)}' for key, one in node.value)}}}"
    assert isinstance(node, yaml.ScalarNode)
    if not node.style:  # no quotes
        return node.value or "null"
    style = '"' if "\n" in node.value else None  # in double quotes, a line break is \n
    settings = {"default_flow_style": True, "allow_unicode": True, "width": math.inf}
    return yaml.safe_dump([node.value], default_style=style, **settings).strip()[1:-1]


# ---- errors ----


@contextmanager
def one_line_yaml_errors() -> Iterator[None]:
    """Turn the errors of a YAML file in this block into a UserError of one line."""
    try:
        yield
    except yaml.MarkedYAMLError as error:
        raise UserError(explain_yaml(error)) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        why = f"a file is not UTF-8 or not YAML ({first_line(error)}); correct it"
        raise UserError(f"--config-dir: {why}") from None


def explain_yaml(error: yaml.MarkedYAMLError) -> str:
    """Return file, line and column of a syntax error, and what it is."""
    mark = error.problem_mark or error.context_mark
    place = f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}" if mark else "YAML"
    return f"{place}: not valid YAML ({error.problem}); correct it"
