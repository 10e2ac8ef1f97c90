"""The steps of the journey: experiments, each of which changes the one that it begins with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from minigpt.config.compose import composed_config
from minigpt.config.groups import config_directory
from minigpt.config.pairs import flat
from minigpt.report.designs import differences

FOLDER = "experiment/journey"  # of configs/


@dataclass(frozen=True)
class Step:
    """A step with its config, flat. `before`: the step that it changes, None for the first."""

    name: str
    before: str | None
    config: Mapping[str, Any]


@cache
def steps() -> dict[str, Step]:
    """Return the steps by name, in their order."""
    found: dict[str, Step] = {}
    prefix = f"/{FOLDER}/"
    for file in sorted((config_directory() / FOLDER).glob("*.yaml")):
        defaults = map(str, yaml.safe_load(file.read_text(encoding="utf-8"))["defaults"])
        before = [one.removeprefix(prefix) for one in defaults if one.startswith(prefix)]
        config = flat(composed_config([f"experiment=journey/{file.stem}"]).to_dict())
        found[file.stem] = Step(file.stem, before[0] if before else None, config)
    return found


def changed_keys(step: Step) -> list[str]:
    """Return the keys in which a step differs from the one that it changes."""
    return [] if step.before is None else differences(steps()[step.before].config, step.config)
