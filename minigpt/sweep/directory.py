"""The folder of a sweep: the same command uses the same folder again."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Sequence
from pathlib import Path

from minigpt.config.groups import file_name
from minigpt.run.directory import RUNS

NAMED_AFTER = ("sweep", "experiment")
NOT_HASHED = ("sweep.fail_fast", "trainer.threads", "hydra/launcher", "hydra.launcher")


def sweep_directory(overrides: Sequence[str], swept: Sequence[str]) -> Path:
    """Return the folder that an earlier equal command used, or a new one.

    `swept`: the keys that vary. Commands that differ only in how jobs are launched are equal.
    """
    requested = sorted(override for override in overrides if not override.startswith(NOT_HASHED))
    digest = hashlib.sha256("\0".join(requested).encode()).hexdigest()[:6]
    earlier = sorted(RUNS.glob(f"*_sweep_*_{digest}"))
    if earlier:
        return earlier[-1]
    presets = [
        value for o in overrides for key, _, value in [o.partition("=")] if key in NAMED_AFTER
    ]
    label = file_name("_".join([*presets, *(key.rpartition(".")[2] for key in swept)]))
    return RUNS / f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}_sweep_{label}_{digest}"
