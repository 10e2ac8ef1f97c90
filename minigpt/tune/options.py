"""Options of a search, checked for combinations. Imports neither ray nor torch at the top."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from minigpt.errors import UserError, require
from minigpt.extras import install

SCHEDULERS = ("asha", "hyperband", "pbt", "none")
SAMPLERS = ("tpe", "random", "grid")
# Keys in metrics.jsonl, minimised, with their units.
METRICS = {"val_loss": "nats/token", "val_bits_per_byte": "bits/byte"}
DEFAULT_TRIALS, DEFAULT_POPULATION = 20, 8


@dataclass(frozen=True)
class TuneOptions:
    """Options of a search. `sampler` and `trials` None: the default for the scheduler."""

    scheduler: str = "asha"
    sampler: str | None = None
    trials: int | None = None
    jobs: int | None = None  # concurrent trials; None: one per GPU or core, or the whole population
    metric: str = "val_loss"
    directory: Path | None = None
    address: str | None = None  # address of a Ray cluster; None starts Ray here
    seed: int = 0  # seed of the search; trials use their config's seed

    def __post_init__(self) -> None:
        for key, value in (("--trials", self.trials), ("--jobs", self.jobs)):
            require(value is None or value >= 1, key, value, "must be 1 or more")
        require(0 <= self.seed < 2**32, "--seed", self.seed, "must be from 0 to 2^32 - 1")
        if self.address is not None:
            ok = self.address == "auto" or re.fullmatch(r"(ray://)?[^\s:/]+:\d+", self.address)
            require(bool(ok), "--address", self.address, "give auto, or a cluster's host:port")
        if self.scheduler == "pbt":
            why = (
                "the population of --scheduler pbt starts before any result is known; use --search "
                "random, or --scheduler asha"
            )
            require(self.sampler in (None, "random"), "--search", self.sampler, why)
            require(self.trials != 1, "--trials", 1, "a population needs 2 or more")
        if self.sampler == "grid" and self.trials is not None:
            raise UserError(
                f"--trials={self.trials}: --search grid trains every combination; "
                f"leave --trials out, or use --search random"
            )

    @property
    def search(self) -> str:
        """The sampler."""
        return self.sampler or ("random" if self.scheduler == "pbt" else "tpe")

    @property
    def count(self) -> int:
        """The number of trials, unless every combination is tried."""
        return self.trials or (DEFAULT_POPULATION if self.scheduler == "pbt" else DEFAULT_TRIALS)

    @property
    def concurrency(self) -> int | None:
        """Concurrent trials, None for one per GPU or core. A population trains all at once."""
        return self.jobs or (self.count if self.scheduler == "pbt" else None)

    @property
    def identity(self) -> dict[str, str | int]:
        """The options that a resumed search must repeat."""
        names = ("scheduler", "search", "metric", "seed")
        return {f"--{name}": getattr(self, name) for name in names}


def require_ray(command: str) -> None:
    """Raise UserError with the command that installs Ray and Optuna if one of them is missing."""
    try:
        import optuna  # noqa: F401
        import ray.tune  # noqa: F401
    except ImportError as error:
        raise UserError(f"{command}: Ray is not installed ({error}); {install('ray')}") from None
