"""Propose values of the next trial, from a list or by Optuna's samplers, for Ray Tune."""

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

STATES = {"finished": TrialState.COMPLETE, "failed": TrialState.FAIL}  # all others are PRUNED


class Study:
    """An Optuna study of the space; `earlier` trials are added to it.

    Optuna's TPE ranks finished trials before stopped ones, and these by step and then by value, so
    that the model of good values uses the longest trainings, as in BOHB (Falkner et al. 2018).
    """

    def __init__(self, space: Space, options: TuneOptions, earlier: list[TrialRecord]) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.distributions = OptunaSearch.convert_search_space(space.domains)
        self.study = optuna.create_study(sampler=_sampler(options, len(space.domains)))
        for record in earlier:
            state = STATES.get(record.status, TrialState.PRUNED)
            trial = create_trial(
                state=state,
                value=None if state is TrialState.FAIL else record.value,
                params=record.values,
                distributions=self.distributions,
                intermediate_values=record.evaluations,
            )
            self.study.add_trial(trial)

    def ask(self, values: Values | None = None) -> optuna.Trial:
        """Return a trial with the given values, or with values from the sampler."""
        if values is not None:
            self.study.enqueue_trial(values)
        return self.study.ask(self.distributions)

    def tell(self, trial: optuna.Trial, status: str, value: float | None) -> None:
        """End a trial. A trial that did not finish keeps its last reported value."""
        state = STATES.get(status, TrialState.PRUNED)
        value = value if state is TrialState.COMPLETE else None
        self.study.tell(trial, None if value is None else [value], state=state)


def _sampler(options: TuneOptions, dimensions: int) -> BaseSampler:
    if options.search == "random":
        return RandomSampler(seed=options.seed)
    # BOHB draws at random until it has d + 1 good and d + 1 bad points.
    return TPESampler(seed=options.seed, n_startup_trials=2 * (dimensions + 1), constant_liar=True)


class Proposals(Searcher):
    """Proposes planned values first (unfinished trials, a grid), then values from the study."""

    def __init__(
        self, study: Study, metric: str, planned: list[tuple[str, Values]], numbers: Iterator[int]
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

    def _do_nothing(self, *_: Any, **__: Any) -> None:
        """Ignore HyperBand's pauses, and saving: run directories have all state."""

    on_pause = on_unpause = save_to_dir = save = restore = _do_nothing
