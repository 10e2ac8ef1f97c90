"""The launcher `hydra/launcher=replicas`: jobs of a sweep train together in one process.

Hydra imports every module of this namespace package at start, also in other applications, so
minigpt is imported only when a sweep runs.
"""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class ReplicasLauncher(Launcher):
    """Trains all jobs with minigpt.sweep.together. `at_once`: maximum number of runs at once."""

    def __init__(self, at_once: int) -> None:
        self.at_once = at_once

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Store the sweep for `launch`."""
        self.sweep = task_function

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Train the jobs. Their results are in their run directories."""
        from minigpt.sweep.job import SweepJob
        from minigpt.sweep.together import train_together

        setup_globals()
        assert isinstance(self.sweep, SweepJob)
        train_together(self.sweep, self.at_once)
        return []


ConfigStore.instance().store(
    group="hydra/launcher",
    name="replicas",
    provider="minigpt",
    node={"_target_": f"{__name__}.{ReplicasLauncher.__name__}", "at_once": 8},
)
