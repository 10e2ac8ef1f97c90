"""Options of a comparison. Imports neither torch nor hydra."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from minigpt.errors import require

SEARCHES = ("grid", "tpe")
MAX_BUDGET, MAX_SEEDS = 1000, 1000
DEFAULT_BUDGET, DEFAULT_SEEDS, DEFAULT_SEARCH_SEEDS = 8, 5, 2


@dataclass(frozen=True)
class CompareOptions:
    """`budget`: trials of each design; `seeds`: of its final runs; `search_seeds`: of each trial.

    `search`: grid, or tpe: Ray Tune proposes the values, and ASHA stops trials early; each trial
    has one seed. `search_seeds` None: the default of the search. `space`: overrides with the values
    of a searched option. `directory`: None for one below runs/, the same for the same command.
    """

    budget: int = DEFAULT_BUDGET
    seeds: int = DEFAULT_SEEDS
    search: str = SEARCHES[0]
    search_seeds: int | None = None
    space: tuple[str, ...] = ()
    directory: Path | None = None

    def __post_init__(self) -> None:
        require(self.seeds >= 2, "--seeds", self.seeds, "an interval needs 2 or more")
        require(self.seeds <= MAX_SEEDS, "--seeds", self.seeds, f"must be {MAX_SEEDS} or less")
        require(self.budget <= MAX_BUDGET, "--budget", self.budget, f"must be {MAX_BUDGET} or less")
        seeds = self.n_search_seeds
        for key, value in (("--budget", self.budget), ("--search-seeds", seeds)):
            require(value >= 1, key, value, "must be 1 or more")
        why = "--search tpe trains each trial with one seed; leave it out, or use --search grid"
        require(self.search == "grid" or seeds == 1, "--search-seeds", seeds, why)

    @property
    def n_search_seeds(self) -> int:
        """The number of seeds of each trial."""
        default = DEFAULT_SEARCH_SEEDS if self.search == "grid" else 1
        return default if self.search_seeds is None else self.search_seeds

    @property
    def identity(self) -> list[str]:
        """The options that the same comparison must repeat, as flags. Seeds can be added."""
        given = {"search": self.search, "budget": self.budget}
        given["search-seeds"] = self.n_search_seeds
        return [f"--{key}={n}" for key, n in given.items()] + [f"--space={s}" for s in self.space]
