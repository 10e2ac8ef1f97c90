"""Full keys, and overrides as text, `key=value`, without Hydra's grammar."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from minigpt.config.foreign import our_flag, our_option, our_value
from minigpt.errors import did_you_mean

MISTYPED = 0.8  # similarity of a mistyped flag


Values = dict[str, Any]  # by key: str (as typed), int, float, bool or None


class Override(NamedTuple):
    """One override. `key` has no prefix (+, ++, ~); `value` is as typed, '' if missing."""

    key: str
    value: str

    @property
    def short_key(self) -> str:
        """The last part of the key: lr of optimizer.lr."""
        return self.key.rpartition(".")[2]

    @property
    def unquoted(self) -> str:
        """The value without the quotes of Hydra's grammar."""
        return self.value.strip("'\"")


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by full key, such as {"model.n_embd": 64}."""
    by_key: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        by_key |= flat(value, f"{key}.") if isinstance(value, dict) else {key: value}
    return by_key


def is_below(key: str, sections: Iterable[str]) -> bool:
    """Return whether a key is one of the sections, an option in one, or a config group of one."""
    return any(key == name or key.startswith((f"{name}.", f"{name}/")) for name in sections)


def as_typed(value: Any) -> str:
    """Return a value as Hydra's grammar writes it; floats round-trip exactly."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else repr(value)


def parse_override(text: str) -> Override:
    """Split an override at its first '='."""
    key, _, value = text.partition("=")
    return Override(key.lstrip("+~"), value)


def described_values(values: Values, separator: str = " ") -> str:
    """Return values with short keys and three digits."""
    return separator.join(
        f"{parse_override(key).short_key}="
        + (f"{value:.3g}" if isinstance(value, float) else as_typed(value))
        for key, value in values.items()
    )


def similar_option(key: str, value: str, known: Iterable[str]) -> str:
    """Return ' Did you mean KEY?' for an unknown option, such as one of another project, or ''.

    `known`: all options and config groups.
    """
    known = list(known)
    short = key.rpartition(".")[2]
    same_end = [name for name in known if name.endswith(f".{key}")]
    outside_of_sections = [name for name in known if name == short]
    same_last_part = [name for name in known if name.endswith(f".{short}")]
    similar = same_end or outside_of_sections or same_last_part
    if 1 <= len(similar) <= 2:
        return f" Did you mean {' or '.join(similar)}?{our_value(similar[0], value)}"
    return our_option(key, value) or did_you_mean(key, known)


def without_dashes(arguments: Iterable[str], flags: Collection[str]) -> list[str]:
    """Return the arguments with overrides of the form --KEY=VALUE, as W&B's agent writes them,
    as KEY=VALUE.

    `flags` stay, and what looks like a mistyped one.
    """
    return [_without_dashes(argument, flags) for argument in arguments]


def _without_dashes(argument: str, flags: Collection[str]) -> str:
    flag, equals, _ = argument.partition("=")
    if not argument.startswith("--") or not equals or flag in flags:
        return argument
    return argument if did_you_mean(flag, flags, MISTYPED) else argument[2:]


def refusal(program: str, message: str, flags: Collection[str], takes_overrides: bool) -> str:
    """Return argparse's message; for unknown flags, with what to type instead of each."""
    number = re.match(r"argument (\S+): invalid (int|float) value: '(.*)'", message)
    if number:
        flag, kind, value = number.groups()
        message = f"{flag}={value}: must be a {'whole number' if kind == 'int' else 'number'}"
    hints = _hints(message, flags, takes_overrides)
    see = f"{program} --help"
    return f"{message}.{hints} See {see}" if hints else f"{message}; see {see}"


def _hints(message: str, flags: Collection[str], takes_overrides: bool) -> str:
    choice = re.match(r"argument --(\S+): invalid choice: '(.*?)' ", message)
    if choice:
        return our_value(*choice.groups())
    if not message.startswith("unrecognized arguments:"):
        return ""
    unknown = re.findall(r" (--[^\s=]+)", message)
    hints = {flag: _hint(flag, flags, takes_overrides) for flag in unknown}
    if len(hints) == 1:
        return hints[unknown[0]]
    return "".join(f" {flag}:{hint}" for flag, hint in hints.items() if hint)


def _hint(flag: str, flags: Collection[str], takes_overrides: bool) -> str:
    """Return what to type instead of an unknown flag, or ''."""
    mistyped = did_you_mean(flag, flags, MISTYPED)
    if takes_overrides:
        return mistyped or f" An override is {flag[2:]}=VALUE."
    return our_flag(flag, flags) or mistyped
