"""Limit how long OpenMP threads spin, before torch starts them."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

# How long a thread that waits for others checks again and again before it sleeps: checks for GNU's
# OpenMP, which torch brings on Linux (its own default is 300,000), milliseconds for LLVM's and
# Intel's (200). While other programs have the cores, a spinning thread keeps the one it waits for
# from running. `minigpt bench busy` measures it; docs/performance.md has the figures.
SPIN_LIMITS = {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "1"}
WAIT_SETTINGS = (*SPIN_LIMITS, "OMP_WAIT_POLICY", "KMP_LIBRARY")


def limit_spinning(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set SPIN_LIMITS, unless the environment has one of WAIT_SETTINGS.

    It has an effect on this process before torch is imported, and on processes it starts.
    """
    if not any(name in environment for name in WAIT_SETTINGS):
        environment.update(SPIN_LIMITS)
