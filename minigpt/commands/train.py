"""`minigpt train`: Hydra composes a config for each job; `minigpt.train.session` runs it."""

from __future__ import annotations

import contextlib
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from minigpt.config.hydra_main import run_hydra
from minigpt.errors import UserError


def main(arguments: list[str]) -> None:
    """Let Hydra read the arguments and train one run, or with -m a sweep (minigpt/sweep/)."""
    failures: list[Exception] = []

    def job(composed: DictConfig) -> None:
        try:
            _job(composed, arguments)
        except Exception as error:  # kept from Hydra, which would print lines of its own
            failures.append(error)

    run_hydra(job, arguments)
    if failures:
        raise failures[0]


def _job(composed: DictConfig, arguments: list[str]) -> None:
    # Here and not above: --help, --cfg and shell completion do without torch.
    from minigpt.config.compose import resumed_config, to_config
    from minigpt.run.directory import RunDirectory, find_run
    from minigpt.train.session import train_run

    hydra = HydraConfig.get()
    output, here = Path(hydra.runtime.output_dir), Path.cwd()
    try:
        assert hydra.mode == RunMode.RUN  # minigpt.sweep trains the jobs of a sweep
        OmegaConf.set_struct(composed, False)
        composed.pop("sweep", None)
        for override in hydra.overrides.task:
            if override.startswith("sweep"):
                raise UserError(f"{override}: belongs to a sweep; add -m")
        if hydra.sweeper.params:
            swept = ", ".join(hydra.sweeper.params)
            raise UserError(f"{' '.join(hydra.overrides.task)}: sweeps over {swept}; add -m")
        resume = composed.pop("resume", None)
        if resume is not None:
            run = find_run(str(resume))
            config = resumed_config(run.config, composed, list(hydra.overrides.task))
        else:
            run = RunDirectory(output.relative_to(here) if output.is_relative_to(here) else output)
            config = to_config(composed)
        train_run(config, run, resume is not None, ["minigpt", "train", *arguments])
    finally:
        with contextlib.suppress(OSError):  # Hydra made them; leave nothing behind if unused
            for folder in (output, output.parent):
                if folder not in (here, *here.parents):
                    folder.rmdir()
