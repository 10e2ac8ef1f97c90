"""Ray Tune's schedulers. Their unit of time is the evaluation: they decide after each one."""

from __future__ import annotations

import random
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
from minigpt.tune.space import Space, bounds
from minigpt.tune.trial import TrialSettings

TIME = "evaluations"
REDUCTION = 3  # eta of Li et al. 2018: the best 1/3 of a rung continues
PERTURB_EVERY = 1  # evaluations
SCHEDULER_SEED = 0x5EED  # added to the seed, so that resampled values differ from proposed values


def build_scheduler(
    options: TuneOptions,
    space: Space,
    settings: TrialSettings,
    max_steps: int,
    earlier: list[TrialRecord],
) -> TrialScheduler:
    """Build the configured scheduler. ASHA receives the results of earlier trials."""
    # A resumed search draws other values than before.
    adopted = sum(len(record.adopted) for record in earlier)
    for seed in (random.seed, numpy.random.seed):  # Ray Tune draws from global generators
        seed((options.seed + SCHEDULER_SEED + adopted) % 2**32)
    if options.scheduler == "none":
        return FIFOScheduler()
    common: dict[str, Any] = {"time_attr": TIME, "metric": options.metric, "mode": "min"}
    if options.scheduler == "pbt":
        return _population(space, common)
    common |= {"max_t": settings.evaluations(max_steps), "reduction_factor": REDUCTION}
    if options.scheduler == "hyperband":
        return HyperBandForBOHB(**common)  # fills the most aggressive bracket first
    return _asha(options, settings, earlier, common)


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
    options: TuneOptions,
    settings: TrialSettings,
    earlier: list[TrialRecord],
    common: dict[str, Any],
) -> ResumedASHA:
    past = {
        record.name: [
            {TIME: settings.evaluations(step), options.metric: value}
            for step, value in record.evaluations.items()
        ]
        for record in earlier
    }
    scheduler = ResumedASHA(past, **common)
    for record in earlier:
        if record.ended(options.scheduler):  # Ray Tune does not run it again
            scheduler.on_trial_add(None, _EndedTrial(trial_id=record.name))
    return scheduler


class _EndedTrial(SimpleNamespace):
    """A trial that ended in an earlier call, by name."""

    def __str__(self) -> str:
        return self.trial_id


def _population(space: Space, common: dict[str, Any]) -> PopulationBasedTraining:
    """Return population based training (Jaderberg et al. 2017) within the bounds of the space."""
    mutations: dict[str, Any] = {
        key: list(domain.categories) if isinstance(domain, Categorical) else domain
        for key, domain in space.domains.items()
    }

    def clamp(config: dict[str, Any]) -> dict[str, Any]:
        for key, domain in space.domains.items():
            if not isinstance(domain, Categorical):
                low, high = bounds(domain)
                config[key] = min(max(config[key], low), high)
        return config

    return PopulationBasedTraining(
        **common,
        perturbation_interval=PERTURB_EVERY,
        hyperparam_mutations=mutations,
        custom_explore_fn=clamp,
        log_config=False,
        require_attrs=False,  # failed trials report no metric
    )
