"""What torchrun tells the processes that it starts, by environment variables."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from minigpt.errors import UserError

# SLURM's documentation shows how to set these from the names that srun sets.
RANK, LOCAL_RANK, WORLD_SIZE = "RANK", "LOCAL_RANK", "WORLD_SIZE"
AGENT = "MINIGPT_AGENT"  # the process that started this one as a rank, set by minigpt itself


def is_started_as_rank() -> bool:
    """Return whether this process is one of those that torchrun started together."""
    return RANK in os.environ and WORLD_SIZE in os.environ


def agent_pid() -> int:
    """Return the process that started this one; of torchrun, unless it has ended before."""
    return int(os.environ.get(AGENT, os.getppid()))


def attempt() -> str:
    """Return how often the agent of torchrun has restarted the processes."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


def require_no_torchrun(what: str) -> None:
    """Raise UserError if this process is one of several that torchrun started."""
    if is_started_as_rank() and os.environ[WORLD_SIZE] != "1":
        raise UserError(
            f"{what}: each of the processes that torchrun started would run it; start it without "
            f"torchrun (jobs of a sweep start processes with trainer.processes=N)"
        )


@contextmanager
def patched_environment(name: str, value: str) -> Iterator[None]:
    """Set an environment variable in the block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before
