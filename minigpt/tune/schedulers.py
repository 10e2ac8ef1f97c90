"""Ray Tune's schedulers. They count evaluations, since they decide after each of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.schedulers.hb_bohb import HyperBandForBOHB
from ray.tune.search.sample import Categorical

from minigpt.tune.options import TuneOptions
from minigpt.tune.records import TrialRecord
from minigpt.tune.space import Space, bounds, categories
from minigpt.tune.trial import TrialSettings

TIME = "evaluations"
REDUCTION = 3  # eta of Li et al. 2018: the best 1/3 of a rung continues
PERTURB_EVERY = 1  # evaluations
SCHEDULER_SEED = 0x5EED  # added to the seed, so that resampled values differ from proposed ones


def build_scheduler(
    options: TuneOptions,
    space: Space,
    settings: TrialSettings,
    max_steps: int,
    earlier: list[TrialRecord],
) -> TrialScheduler:
    """Return the scheduler of the options; ASHA is given the results of earlier trials."""
    for seed in (random.seed, numpy.random.seed):  # Ray Tune draws from global generators
        seed(options.seed + SCHEDULER_SEED)
    builders: dict[str, Callable[[], TrialScheduler]] = {
        "asha": lambda: _asha(options, settings, max_steps, earlier),
        "hyperband": lambda: HyperBandForBOHB(  # fills the most aggressive bracket first
            time_attr=TIME,
            metric=options.metric,
            mode="min",
            max_t=settings.evaluations(max_steps),
            reduction_factor=REDUCTION,
        ),
        "pbt": lambda: _population(options, space),
        "none": FIFOScheduler,
    }
    return builders[options.scheduler]()


class ResumedASHA(ASHAScheduler):
    """ASHA (Li et al. 2020) whose rungs include results from before the search was resumed."""

    def __init__(self, past: dict[str, list[dict[str, Any]]], **options: Any) -> None:
        super().__init__(**options)
        self.past = past  # results by trial name

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, trial)
        for result in self.past.pop(str(trial), []):
            super().on_trial_result(tune_controller, trial, result)


def _asha(
    options: TuneOptions, settings: TrialSettings, max_steps: int, earlier: list[TrialRecord]
) -> ResumedASHA:
    past = {
        record.name: [
            {TIME: settings.evaluations(e.step), options.metric: e.value}
            for e in record.evaluations
        ]
        for record in earlier
    }
    scheduler = ResumedASHA(
        past,
        time_attr=TIME,
        metric=options.metric,
        mode="min",
        max_t=settings.evaluations(max_steps),
        reduction_factor=REDUCTION,
    )
    for record in earlier:
        if record.ended(options.scheduler):  # Ray Tune does not run it again
            scheduler.on_trial_add(None, _EndedTrial(trial_id=record.name))
    return scheduler


class _EndedTrial(SimpleNamespace):
    """A trial that ended in an earlier call, by name."""

    def __str__(self) -> str:
        return self.trial_id


def _population(options: TuneOptions, space: Space) -> PopulationBasedTraining:
    """Return population based training (Jaderberg et al. 2017) within the bounds of the space."""
    mutations: dict[str, Any] = {
        key: categories(domain) if isinstance(domain, Categorical) else domain
        for key, domain in space.domains.items()
    }

    def clamp(config: dict[str, Any]) -> dict[str, Any]:
        for key, domain in space.domains.items():
            if not isinstance(domain, Categorical):
                low, high = bounds(domain)
                config[key] = min(max(config[key], low), high)
        return config

    return PopulationBasedTraining(
        time_attr=TIME,
        metric=options.metric,
        mode="min",
        perturbation_interval=PERTURB_EVERY,
        hyperparam_mutations=mutations,
        custom_explore_fn=clamp,
        log_config=False,
        require_attrs=False,  # a failed trial reports no metric
    )
