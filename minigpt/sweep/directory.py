"""Where a sweep lies: the same command finds what it left before."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Sequence
from pathlib import Path

from minigpt.config.groups import file_name
from minigpt.run.directory import RUNS

NAMED_AFTER = ("sweep", "experiment")
NO_PART = ("sweep.fail_fast", "trainer.threads", "hydra/launcher", "hydra.launcher")


def sweep_directory(overrides: Sequence[str], swept: Sequence[str]) -> Path:
    """The folder that the same command had before, else a new one; `swept` are the keys that vary.

    How jobs are launched is no part of what a command asks for.
    """
    asked = sorted(override for override in overrides if not override.startswith(NO_PART))
    digest = hashlib.sha256("\0".join(asked).encode()).hexdigest()[:6]
    before = sorted(RUNS.glob(f"*_sweep_*_{digest}"))
    if before:
        return before[-1]
    presets = [
        value for o in overrides for key, _, value in [o.partition("=")] if key in NAMED_AFTER
    ]
    label = file_name("_".join([*presets, *(key.rpartition(".")[2] for key in swept)]))
    return RUNS / f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}_sweep_{label}_{digest}"
