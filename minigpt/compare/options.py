"""Options of a comparison. Imports neither torch nor hydra."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from minigpt.errors import require

DEFAULT_BUDGET, DEFAULT_SEEDS = 8, 5


@dataclass(frozen=True)
class CompareOptions:
    """`budget`: trials of each design; `seeds`: of its final runs; `search_seeds`: of each trial.

    `space`: overrides with the values of a searched option. `directory`: None for one below runs/,
    the same for the same command.
    """

    budget: int = DEFAULT_BUDGET
    seeds: int = DEFAULT_SEEDS
    search_seeds: int = 1
    space: tuple[str, ...] = ()
    directory: Path | None = None

    def __post_init__(self) -> None:
        require(self.seeds >= 2, "--seeds", self.seeds, "an interval needs 2 or more")
        for key, value in (("--budget", self.budget), ("--search-seeds", self.search_seeds)):
            require(value >= 1, key, value, "must be 1 or more")

    @property
    def identity(self) -> list[str]:
        """The options that the same comparison must repeat, as flags."""
        numbers = {"budget": self.budget, "seeds": self.seeds, "search-seeds": self.search_seeds}
        return [f"--{key}={n}" for key, n in numbers.items()] + [f"--space={s}" for s in self.space]
