"""What a search may be told, and what makes no sense together. Imports neither ray nor torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from minigpt.errors import UserError, require

SCHEDULERS = ("asha", "hyperband", "pbt", "none")
SAMPLERS = ("tpe", "random", "grid")
METRICS = ("val_loss", "val_bits_per_byte")  # as in metrics.jsonl; less is better
DEFAULT_TRIALS, DEFAULT_POPULATION = 20, 8


@dataclass(frozen=True)
class TuneOptions:
    """How to search. None of `sampler` and `trials` is what suits the scheduler and the sampler."""

    scheduler: str = "asha"
    sampler: str | None = None
    trials: int | None = None
    jobs: int | None = None  # trials at a time; None: one a GPU or core, of a population all
    metric: str = "val_loss"
    directory: Path | None = None
    address: str | None = None  # of a Ray cluster; None starts Ray on this machine
    seed: int = 0  # of the search; a trial's is the config's

    def __post_init__(self) -> None:
        for key, value in (("--trials", self.trials), ("--jobs", self.jobs)):
            require(value is None or value >= 1, key, value, "must be 1 or more")
        require(0 <= self.seed < 2**32, "--seed", self.seed, "must be from 0 to 2^32 - 1")
        if self.address is not None:
            ok = self.address == "auto" or re.fullmatch(r"(ray://)?[^\s:/]+:\d+", self.address)
            require(bool(ok), "--address", self.address, "give auto, or a cluster's host:port")
        if self.scheduler == "pbt":
            require(
                self.sampler in (None, "random"),
                "--search",
                self.sampler,
                "the population of --scheduler pbt starts before there are results to learn from; "
                "use --search random, or --scheduler asha",
            )
            require(self.trials != 1, "--trials", 1, "a population needs 2 or more")
        if self.sampler == "grid" and self.trials is not None:
            raise UserError(
                f"--trials={self.trials}: --search grid has a trial for every combination; "
                f"leave --trials out, or use --search random"
            )

    @property
    def search(self) -> str:
        """The sampler in use."""
        return self.sampler or ("random" if self.scheduler == "pbt" else "tpe")

    @property
    def count(self) -> int:
        """How many trials, but for a grid."""
        return self.trials or (DEFAULT_POPULATION if self.scheduler == "pbt" else DEFAULT_TRIALS)

    @property
    def at_a_time(self) -> int | None:
        """How many jobs, if that is said: a population that takes turns starts anew each time."""
        return self.jobs or (self.count if self.scheduler == "pbt" else None)

    @property
    def identity(self) -> dict[str, str | int]:
        """What a search that goes on must have in common with how it began."""
        return {
            "--scheduler": self.scheduler,
            "--search": self.search,
            "--metric": self.metric,
            "--seed": self.seed,
        }
