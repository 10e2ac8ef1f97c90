"""Which values the next trial gets: what Ray Tune asks for, by Optuna's samplers or from a list."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import TrialState, create_trial
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from minigpt.tune.options import TuneOptions
from minigpt.tune.records import TrialRecord, trial_name
from minigpt.tune.space import Space, Values

STATES = {"finished": TrialState.COMPLETE, "failed": TrialState.FAIL}  # any other: PRUNED


class Study:
    """What is known of the space. A trial stopped early counts by how far it came, as in BOHB.

    Optuna's TPE ranks finished trials first and stopped ones after them, by step and then by value
    there, so that the model of good values is of the longest trainings (Falkner et al. 2018).
    """

    def __init__(self, space: Space, options: TuneOptions, earlier: list[TrialRecord]) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.distributions = OptunaSearch.convert_search_space(space.domains)
        self.study = optuna.create_study(sampler=_sampler(options, len(space.domains)))
        for record in earlier:
            self._remember(record)

    def _remember(self, record: TrialRecord) -> None:
        state = STATES.get(record.status, TrialState.PRUNED)
        self.study.add_trial(
            create_trial(
                state=state,
                value=None if state is TrialState.FAIL else record.value,
                params=record.values,
                distributions=self.distributions,
                intermediate_values={e.step: e.value for e in record.evaluations},
            )
        )

    def ask(self, values: Values | None = None) -> optuna.Trial:
        """A trial with values of the sampler's choice, or with the given ones."""
        if values is not None:
            self.study.enqueue_trial(values)
        return self.study.ask(self.distributions)

    def tell(self, trial: optuna.Trial, status: str, value: float | None) -> None:
        """End a trial. Without a value the last one reported counts."""
        state = STATES.get(status, TrialState.PRUNED)
        value = value if state is TrialState.COMPLETE else None
        self.study.tell(trial, None if value is None else [value], state=state)


def _sampler(options: TuneOptions, dimensions: int) -> BaseSampler:
    if options.search == "random":
        return RandomSampler(seed=options.seed)
    # BOHB models d + 1 good and as many bad points; until then it draws at random.
    return TPESampler(seed=options.seed, n_startup_trials=2 * (dimensions + 1), constant_liar=True)


class Proposals(Searcher):
    """Hands out planned values first (of trials to go on with, of a grid), then the study's."""

    def __init__(
        self,
        study: Study,
        metric: str,
        planned: list[tuple[str, Values]],
        numbers: Iterator[int],
    ) -> None:
        super().__init__(metric=metric, mode="min")
        self.study, self.planned, self.numbers = study, planned, numbers
        self.asked: dict[str, optuna.Trial] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        name, values = self.planned.pop(0) if self.planned else (None, None)
        trial = self.asked[trial_id] = self.study.ask(values)
        name = name or trial_name(next(self.numbers), trial.params, changing=False)
        return {"run": name, **trial.params}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self.asked[trial_id].report(result[self.metric], result["step"])

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        trial = self.asked.pop(trial_id)
        result = result or {}
        value = result.get(self.metric)
        if value is not None and result["status"] != "finished":
            trial.report(value, result["step"])
        self.study.tell(trial, "failed" if error else result.get("status", "stopped"), value)

    def on_pause(self, trial_id: str) -> None:
        """Nothing: HyperBand says so of a trial that waits for the others of its bracket."""

    def on_unpause(self, trial_id: str) -> None:
        """Nothing, as above."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default", **_: Any) -> None:
        """Nothing: run directories hold what a search that goes on needs, and no pickle does."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing, as above."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as above."""
