"""What torchrun tells the processes that it starts, by environment variables."""

from __future__ import annotations

import os

# SLURM's documentation shows how to set these from the names that srun sets.
RANK, LOCAL_RANK, WORLD_SIZE = "RANK", "LOCAL_RANK", "WORLD_SIZE"


def is_started_as_rank() -> bool:
    """Return whether this process is one of those that torchrun started together."""
    return RANK in os.environ and WORLD_SIZE in os.environ


def attempt() -> str:
    """Return how often the agent of torchrun has restarted the processes."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
