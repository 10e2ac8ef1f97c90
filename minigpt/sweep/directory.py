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
    identity = sorted(override for override in overrides if not override.startswith(NOT_IDENTITY))
    digest = hashlib.sha256("\0".join(identity).encode()).hexdigest()[:6]
    earlier = sorted(RUNS.glob(f"*_sweep_*_{digest}"))
    if earlier:
        return earlier[-1]
    parsed = [parse_override(override) for override in overrides]
    presets = [override.value for override in parsed if override.key in PRESETS]
    label = file_name("_".join([*presets, *(key.rpartition(".")[2] for key in swept)]))
    return RUNS / f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}_sweep_{label}_{digest}"
