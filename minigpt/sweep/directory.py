"""The folder of a sweep. The same command uses the same folder again."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Sequence
from pathlib import Path

from minigpt.config.groups import file_name
from minigpt.config.pairs import parse_override
from minigpt.run.directory import RUNS

PRESETS = ("sweep", "experiment")  # name the folder
# These options do not affect results.
NOT_IDENTITY = ("sweep.fail_fast", "sweep.dry_run", "trainer.threads")
NOT_IDENTITY += ("hydra/launcher", "hydra.launcher")


def sweep_directory(overrides: Sequence[str], swept: Sequence[str]) -> Path:
    """Return the folder of an earlier sweep with these overrides, else a new one.

    `swept` are the keys that vary.
    """
    parsed = [parse_override(override) for override in overrides]
    presets = [override.value for override in parsed if override.key in PRESETS]
    label = "_".join([*presets, *(key.rpartition(".")[2] for key in swept)])
    return folder_of("sweep", overrides, label)


def folder_of(kind: str, overrides: Sequence[str], label: str) -> Path:
    """Return the folder that an earlier command with these overrides made, else a new one.

    `kind`: what the command does; `label`: part of the name of a new folder.
    """
    identity = sorted(override for override in overrides if not override.startswith(NOT_IDENTITY))
    digest = hashlib.sha256("\0".join(identity).encode()).hexdigest()[:6]
    earlier = sorted(RUNS.glob(f"*_{kind}_*_{digest}"))
    if earlier:
        return earlier[-1]
    now = f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}"
    return RUNS / f"{now}_{kind}_{file_name(label)}_{digest}"
