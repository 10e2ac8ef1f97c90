"""Config keys, and values of them, that were renamed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from minigpt.errors import UserError

RENAMED_KEYS = {
    "trainer.accumulate": "trainer.grad_accum_steps",
    "optimizer.clip": "optimizer.grad_clip",
    "optimizer.other_lr": "optimizer.adamw_lr_ratio",
    "model.positional.clip": "model.positional.max_distance",
}
# Values that the current version saves under another name; it still accepts these.
RENAMED_VALUES = {"model.value_residual": {True: "first_layer"}}


def require_current_overrides(overrides: Iterable[str]) -> None:
    """Raise UserError for an override, with or without + or ~, that uses an old name."""
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        if key in RENAMED_KEYS:
            raise UserError(f"{override}: renamed to {RENAMED_KEYS[key]}")


def require_current_keys(values: dict[str, Any]) -> None:
    """Raise UserError if nested `values`, such as an experiment's YAML, use an old name."""
    for old, new, section, name in _renamed(values):
        value = "null" if section[name] is None else section[name]
        raise UserError(f"{old}={value}: renamed to {new}")


def rename_keys(values: dict[str, Any]) -> None:
    """Rename old keys and values in the nested `values` of a saved config, in place."""
    for _, new, section, name in list(_renamed(values)):
        section[new.rpartition(".")[2]] = section.pop(name)
    for key, names in RENAMED_VALUES.items():
        for section, name in _present(key, values):
            section[name] = names.get(section[name], section[name])


def _renamed(values: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any], str]]:
    """Yield old key, new key, section and name in it for each old key in `values`."""
    for old, new in RENAMED_KEYS.items():
        for section, name in _present(old, values):
            yield old, new, section, name


def _present(key: str, values: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the section of a dotted key and the name in it, if nested `values` have it."""
    *path, name = key.split(".")
    section: Any = values
    for part in path:
        section = section.get(part) if isinstance(section, dict) else None
    if isinstance(section, dict) and name in section:
        yield section, name
