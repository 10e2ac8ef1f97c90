"""Hydra's sweeper for `-m`, which calls minigpt.sweep.

Hydra imports every module of this namespace package at start, also in other applications, so
minigpt is imported only when a sweep runs.
"""

from __future__ import annotations

from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class MinigptSweeper(Sweeper):
    """Runs the jobs that are not finished. `params`: values of keys that an experiment varies."""

    def __init__(self, params: dict[str, str] | None) -> None:
        self.params = params

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Store the arguments for `sweep`."""
        self.hydra_context, self.config = hydra_context, config

    def sweep(self, arguments: list[str]) -> Any:
        """Run every job of the sweep that `arguments` and `params` define."""
        from minigpt.config.hydra_main import multirun
        from minigpt.sweep.run import run_sweep

        assert self.hydra_context is not None and self.config is not None
        run_sweep(multirun(self.hydra_context, self.config, self.params or {}, arguments))


ConfigStore.instance().store(
    group="hydra/sweeper",
    name="minigpt",
    provider="minigpt",
    node={"_target_": f"{__name__}.{MinigptSweeper.__name__}", "params": None},
)
