"""Full keys, and overrides as text, `key=value`, without Hydra's grammar."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from minigpt.config.foreign import our_flag, our_value
from minigpt.errors import did_you_mean

MISTYPED = 0.8  # similarity of a mistyped flag


class Override(NamedTuple):
    """One override. `key` has no prefix (+, ++, ~); `value` is as typed, '' if missing."""

    key: str
    value: str

    @property
    def short_key(self) -> str:
        """The last part of the key: lr of optimizer.lr."""
        return self.key.rpartition(".")[2]


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by full key, such as {"model.n_embd": 64}."""
    by_key: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        by_key |= flat(value, f"{key}.") if isinstance(value, dict) else {key: value}
    return by_key


def parse_override(text: str) -> Override:
    """Split an override at its first '='."""
    key, _, value = text.partition("=")
    return Override(key.lstrip("+~"), value)


def without_dashes(arguments: Iterable[str], flags: Collection[str]) -> list[str]:
    """Return the arguments with overrides of the form --KEY=VALUE, as W&B's agent writes them,
    as KEY=VALUE.

    `flags` stay, and what looks like a mistyped one.
    """
    return [_without_dashes(argument, flags) for argument in arguments]


def _without_dashes(argument: str, flags: Collection[str]) -> str:
    flag, equals, _ = argument.partition("=")
    is_override = argument.startswith("--") and equals and flag not in flags
    return argument[2:] if is_override and not did_you_mean(flag, flags, MISTYPED) else argument


def refusal(program: str, message: str, flags: Collection[str], takes_overrides: bool) -> str:
    """Return argparse's message; for an unknown flag, with what to type instead."""
    flag = re.match(r"unrecognized arguments: (--[^\s=]+)", message)
    choice = re.match(r"argument --(\S+): invalid choice: '(.*?)' ", message)
    guess = our_value(*choice.groups()) if choice else ""
    if flag:
        mistyped = did_you_mean(flag[1], flags, MISTYPED)
        override = f" An override is {flag[1][2:]}=VALUE."
        guess = mistyped or override if takes_overrides else our_flag(flag[1], flags) or mistyped
    return f"{program}: {message}{f'.{guess} See' if guess else '; see'} {program} --help"
