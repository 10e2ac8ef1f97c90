"""Overrides as text, `key=value`, without Hydra's grammar."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Override:
    """One override. `key` has no prefix (+, ++, ~); `value` is as typed, '' if missing."""

    key: str
    value: str

    @property
    def short_key(self) -> str:
        """The last part of the key: lr of optimizer.lr."""
        return self.key.rpartition(".")[2]


def parse_override(text: str) -> Override:
    """Split an override at its first '='."""
    key, _, value = text.partition("=")
    return Override(key.lstrip("+~"), value)
