"""Which trials go on. Schedulers count in evaluations, at which alone they can decide."""

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
from minigpt.tune.trial import Job

TIME = "evaluations"
REDUCTION = 3  # one in so many goes on: eta of Li et al. 2018, whose choice is 3 or 4
PERTURB_EVERY = 1  # evaluations
SCHEDULER_SEED = 0x5EED  # added to the seed, so that what is resampled is not what was proposed


def build_scheduler(
    options: TuneOptions, space: Space, job: Job, max_steps: int, earlier: list[TrialRecord]
) -> TrialScheduler:
    """The scheduler that options name, which knows how far earlier trials came."""
    for seed in (random.seed, numpy.random.seed):  # Ray Tune's draw from global generators
        seed(options.seed + SCHEDULER_SEED)
    builders: dict[str, Callable[[], TrialScheduler]] = {
        "asha": lambda: _asha(options, job, max_steps, earlier),
        "hyperband": lambda: HyperBandForBOHB(  # fills the bracket that stops most first
            time_attr=TIME,
            metric=options.metric,
            mode="min",
            max_t=job.evaluations(max_steps),
            reduction_factor=REDUCTION,
        ),
        "pbt": lambda: _population(options, space),
        "none": FIFOScheduler,
    }
    return builders[options.scheduler]()


class RememberingASHA(ASHAScheduler):
    """ASHA (Li et al. 2020) whose rungs hold what trials reached before the search was stopped."""

    def __init__(self, past: dict[str, list[dict[str, Any]]], **options: Any) -> None:
        super().__init__(**options)
        self.past = past  # results by trial name

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, trial)
        for result in self.past.pop(str(trial), []):
            super().on_trial_result(tune_controller, trial, result)


def _asha(
    options: TuneOptions, job: Job, max_steps: int, earlier: list[TrialRecord]
) -> RememberingASHA:
    past = {
        record.name: [
            {TIME: job.evaluations(e.step), options.metric: e.value} for e in record.evaluations
        ]
        for record in earlier
    }
    scheduler = RememberingASHA(
        past,
        time_attr=TIME,
        metric=options.metric,
        mode="min",
        max_t=job.evaluations(max_steps),
        reduction_factor=REDUCTION,
    )
    for record in earlier:
        if record.ended(options.scheduler):  # Ray Tune will not hear of it again
            scheduler.on_trial_add(None, _Ended(trial_id=record.name))
    return scheduler


class _Ended(SimpleNamespace):
    """A trial of which only the name is left."""

    def __str__(self) -> str:
        return self.trial_id


def _population(options: TuneOptions, space: Space) -> PopulationBasedTraining:
    """Population based training (Jaderberg et al. 2017) that stays inside the space."""
    mutations: dict[str, Any] = {
        key: categories(domain) if isinstance(domain, Categorical) else domain
        for key, domain in space.domains.items()
    }

    def inside(config: dict[str, Any]) -> dict[str, Any]:
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
        custom_explore_fn=inside,
        log_config=False,
        require_attrs=False,  # a trial that failed reports no metric
    )
