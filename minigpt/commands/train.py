"""`minigpt train`: Hydra composes a config for each job; `minigpt.train.start` runs it."""

from __future__ import annotations

import contextlib
import sys
import traceback
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from minigpt.errors import Failure, UserError, one_line_if_out_of_memory, wants_traceback
from minigpt.hydra_app import run_hydra


def main(arguments: list[str]) -> None:
    """Let Hydra read the arguments and run one job, or with -m one after the other.

    A job that fails does not stop a sweep; the first failure is raised at its end.
    """
    failures: list[Exception] = []

    def job(composed: DictConfig) -> None:
        try:
            _job(composed, arguments)
        except Exception as error:  # kept from Hydra, which would print lines of its own
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                _report(error, HydraConfig.get().job.num)
                error = error.with_traceback(None)  # its frames hold a whole model
            failures.append(error)

    run_hydra(job, arguments)
    if failures:
        raise failures[0]


def _job(composed: DictConfig, arguments: list[str]) -> None:
    # Here and not above: --help, --cfg and shell completion do without torch.
    from minigpt.config import resumed_config, to_config
    from minigpt.run import RunDirectory, find_run
    from minigpt.train.start import start

    hydra = HydraConfig.get()
    sweep = hydra.mode == RunMode.MULTIRUN
    output, here = Path(hydra.runtime.output_dir), Path.cwd()
    try:
        OmegaConf.set_struct(composed, False)
        resume = composed.pop("resume", None)
        if resume is not None and sweep:
            raise UserError(f"resume={resume}: resumes one run; leave -m out")
        if resume is not None:
            run = find_run(str(resume))
            config = resumed_config(run.config, composed, list(hydra.overrides.task))
        else:
            run = RunDirectory(output.relative_to(here) if output.is_relative_to(here) else output)
            if sweep and composed.get("group") is None:
                composed.group = Path(hydra.sweep.dir).name
            config = to_config(composed)
        command = ["minigpt", "train", *(hydra.overrides.task if sweep else arguments)]
        with one_line_if_out_of_memory(
            "lower model.n_embd, model.block_size or trainer.batch_size, or compute a batch in "
            "pieces with trainer.accumulate"
        ):
            start(config, run, resumed=resume is not None, command=command)
    finally:
        with contextlib.suppress(OSError):  # Hydra made them; leave nothing behind if unused
            for folder in (output, output.parent):
                if folder not in (here, *here.parents):
                    folder.rmdir()


def _report(error: Exception, number: int) -> None:
    if isinstance(error, UserError | Failure) and not wants_traceback():
        print(f"minigpt: job {number} failed: {error}", file=sys.stderr)
        error.reported = True
    else:
        traceback.print_exception(error)
