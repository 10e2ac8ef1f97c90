"""Propose values of the next trial, from a list or by Optuna's samplers, for Ray Tune."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy
import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import TrialState, create_trial
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from minigpt.tune.options import TuneOptions
from minigpt.tune.records import TrialRecord, trial_name
from minigpt.tune.space import Space, Values

MAX_DRAWS = 1000  # for a value that no trial has; after the first GUIDED at random
GUIDED = 10


class Study:
    """An Optuna study of the space; `earlier` trials are added to it.

    New values are drawn with a seed of their trial's number, so that a resumed search does not draw
    the values of earlier trials again. Optuna's TPE ranks finished trials before stopped ones, and
    these by step and then by value, so that good values are modelled from the longest trainings, as
    in BOHB (Falkner et al. 2018). It ignores trials in the state FAIL, so a failed trial is stopped
    without a value here, which ranks last: values near those that diverged are avoided.
    """

    def __init__(self, space: Space, options: TuneOptions, earlier: list[TrialRecord]) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.options, self.size = options, space.size
        self.distributions = OptunaSearch.convert_search_space(space.domains)
        self.study = optuna.create_study()
        for record in earlier:
            finished, failed = record.status == "finished", record.status == "failed"
            trial = create_trial(
                state=TrialState.COMPLETE if finished else TrialState.PRUNED,
                value=None if failed else record.value,
                params=record.values,
                distributions=self.distributions,
                intermediate_values={} if failed else record.evaluations,
            )
            self.study.add_trial(trial)

    def ask_for(self, values: Values) -> optuna.Trial:
        """Return a trial with these values."""
        self.study.enqueue_trial(values)
        return self.study.ask(self.distributions)

    def ask(self, number: int) -> optuna.Trial:
        """Return a trial with values that no other has, drawn with a seed of its number.

        Values repeat only after all combinations, which a population may exceed, or MAX_DRAWS.
        """
        known = [trial.params for trial in self.study.get_trials(deepcopy=False)]
        last = MAX_DRAWS if len(known) < self.size else 0
        for draw in itertools.count():
            self.study.sampler = self._sampler(number, draw)
            trial = self.study.ask(self.distributions)
            if trial.params not in known or draw >= last:
                return trial
            self.study.tell(trial, state=TrialState.FAIL)  # the sampler ignores it
        raise AssertionError

    def _sampler(self, number: int, draw: int) -> BaseSampler:
        options, dimensions = self.options, len(self.distributions)
        seed = int(numpy.random.SeedSequence([options.seed, number, draw]).generate_state(1)[0])
        if options.search == "random" or draw >= GUIDED:
            return RandomSampler(seed)
        # BOHB draws at random until it has d + 1 good and d + 1 bad points.
        return TPESampler(seed=seed, n_startup_trials=2 * (dimensions + 1), constant_liar=True)

    def tell(self, trial: optuna.Trial, status: str, value: float | None, step: int) -> None:
        """End a trial with its last value at a step, which a failed one does not keep."""
        if status == "finished":
            self.study.tell(trial, value)
            return
        if status != "failed" and value is not None:
            trial.report(value, step)
        self.study.tell(trial, state=TrialState.PRUNED)


class Proposals(Searcher):
    """Proposes planned values first (unfinished trials, a grid), then values from the study."""

    def __init__(
        self, study: Study, metric: str, planned: list[tuple[str, Values]], numbers: Iterator[int]
    ) -> None:
        super().__init__(metric=metric, mode="min")
        self.study, self.planned, self.numbers = study, planned, numbers
        self.asked: dict[str, optuna.Trial] = {}
        self.results: dict[str, dict[str, Any]] = {}  # the last of each trial

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        if self.planned:
            name, values = self.planned.pop(0)
            trial = self.study.ask_for(values)
        else:
            number = next(self.numbers)
            trial = self.study.ask(number)
            name = trial_name(number, trial.params, changing=False)
        self.asked[trial_id] = trial
        return {"run": name, **trial.params}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self.results[trial_id] = result

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        last = self.results.pop(trial_id, {})  # a trial that is stopped while paused has no other
        result = {"status": "stopped", "step": 0} | last | (result or {})
        status = "failed" if error else result["status"]
        trial = self.asked.pop(trial_id)
        self.study.tell(trial, status, result.get(self.metric), result["step"])

    def _do_nothing(self, *_: Any, **__: Any) -> None:
        """Ignore HyperBand's pauses, and saving: run directories have all state."""

    on_pause = on_unpause = save_to_dir = save = restore = _do_nothing
