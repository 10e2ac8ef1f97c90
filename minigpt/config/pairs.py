"""Full keys, and overrides as text, `key=value`, without Hydra's grammar."""

from __future__ import annotations

from typing import Any, NamedTuple


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
