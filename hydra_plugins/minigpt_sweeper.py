"""Hydra's door to sweeps: `-m` hands the product of what varies to minigpt.sweep.

Hydra imports every module of this namespace package when it starts, so this one imports nothing
of minigpt before it is used.
"""

from __future__ import annotations

from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class MinigptSweeper(BasicSweeper):
    """Expands what varies as Hydra's own sweeper does, and runs the jobs that are missing."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what is needed to compose and launch jobs."""
        self.hydra_context, self.config = hydra_context, config

    def sweep(self, arguments: list[str]) -> Any:
        """Run every job that `arguments` and the sweeper's `params` ask for."""
        from minigpt.sweep.run import run_sweep

        context, config = self.hydra_context, self.config
        assert context is not None and config is not None
        parser = OverridesParser.create(config_loader=context.config_loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        (jobs,) = self.split_arguments(overrides, None)

        def compose(job: list[str]) -> DictConfig:
            return context.config_loader.load_sweep_config(config, job)

        def launch(task: TaskFunction, missing: list[list[str]]) -> None:
            launcher = Plugins.instance().instantiate_launcher(
                hydra_context=context, task_function=task, config=config
            )
            for done in launcher.launch(missing, initial_job_idx=0):
                _ = done.return_value  # raises what a job did not catch itself

        run_sweep(jobs, config, compose, launch)


ConfigStore.instance().store(
    group="hydra/sweeper",
    name="minigpt",
    provider="minigpt",
    node={
        "_target_": f"{__name__}.{MinigptSweeper.__name__}",
        "max_batch_size": None,
        "params": None,
    },
)
