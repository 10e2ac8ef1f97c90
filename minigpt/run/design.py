"""A design: what the config of a run says without its seed, names, tracker and paths."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from minigpt.files import sha256

Values = Mapping[str, Any]  # by full key, such as optimizer.lr

# Keys that are not part of a design: names, trackers, paths, the seed. `model.name` follows from
# other keys; it may label a design.
IGNORED_KEYS = {
    *("seed", "name", "group", "tags", "resume", "defaults"),
    *("trainer.threads", "model.name"),
}
IGNORED_SECTIONS = ("logger.", "hydra.")
TEXT = "data.text"  # the text's digest, in place of its path
TEXT_PATHS = ("data.dir", "data.path")


def with_text(config: Values, data_sha256: str | None) -> dict[str, Any]:
    """Return a config with the digest of its text, or if unknown its file name, for its path."""
    values = {key: value for key, value in config.items() if key not in TEXT_PATHS}
    path = config.get("data.path")
    if data_sha256 is not None:
        values[TEXT] = data_sha256[:8]
    elif path is not None:
        values[TEXT] = PurePath(str(path)).name
    return values


def design_only(config: Values) -> dict[str, Any]:
    """Return the values of a config that belong to the design."""
    return {
        key: value
        for key, value in config.items()
        if key not in IGNORED_KEYS and not key.startswith(IGNORED_SECTIONS)
    }


def identity_of(values: Any) -> str:
    """Return a text that is equal for equal values."""
    return json.dumps(values, sort_keys=True, default=str)


def design_name(config: Values) -> str:
    """Return a text that is equal for runs that differ in their seed alone, as a tracker groups.

    `config`: of `with_text`. The main choices, and a digest of all values.
    """
    parts = (config[f"model.{key}"] for key in ("name", "positional.name", "attention.name"))
    size = f"{config['model.n_layer']}x{config['model.n_embd']}"
    training = f"lr={config['optimizer.lr']:g} steps={config['trainer.max_steps']}"
    digest = sha256(identity_of(design_only(config)))[:8]
    return f"{'/'.join(dict.fromkeys(parts))} {size} {training} #{digest}"
