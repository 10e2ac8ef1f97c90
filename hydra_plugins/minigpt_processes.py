"""The launcher `hydra/launcher=processes`, minigpt's default: jobs of a sweep in parallel.

Hydra imports every module of this namespace package at start, also in other applications, so
minigpt and joblib are imported only when a sweep runs.
"""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class ProcessesLauncher(Launcher):
    """Runs `at_once` jobs at a time, each in a process of its own.

    None: one for each GPU, or without a GPU one for each core. A single one runs in this process.
    """

    def __init__(self, at_once: int | None) -> None:
        self.at_once = at_once

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Store the arguments for `launch`."""
        self.arguments = {"hydra_context": hydra_context, "task_function": task_function}
        self.config = config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run the jobs with joblib's launcher; joblib runs a single one at a time here."""
        from hydra_plugins.hydra_joblib_launcher.joblib_launcher import JoblibLauncher

        from minigpt.sweep.run import processes_at_once

        n = min(processes_at_once(self.at_once), len(job_overrides))
        launcher = JoblibLauncher(n_jobs=n)
        launcher.setup(config=self.config, **self.arguments)
        return launcher.launch(job_overrides, initial_job_idx)


ConfigStore.instance().store(
    group="hydra/launcher",
    name="processes",
    provider="minigpt",
    node={"_target_": f"{__name__}.{ProcessesLauncher.__name__}", "at_once": None},
)
