"""`trainer.compile=auto` in a sweep: all its runs compute alike."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from minigpt.config.saved import read_config
from minigpt.config.schema import Config
from minigpt.errors import UserError
from minigpt.run.load import as_trained
from minigpt.sweep.plan import PlannedJob
from minigpt.train.compilation import Choice, Planned, choose_compilation, vocabulary_size


def common_compilation(
    jobs: Sequence[PlannedJob], threads: int | None, processes: int | None
) -> Choice | None:
    """Return the choice for all runs with `auto`: that of earlier ones, else one for their sum.

    None if there are no such runs. `threads`: of each job, None for torch's default; `processes`:
    see `choose_compilation`.
    """
    automatic = [
        (job, job.config)
        for job in jobs
        if isinstance(job.config, Config) and job.config.trainer.compile == "auto"
    ]
    planned: list[Planned] = []
    n_vocab: dict[str, int] = {}
    for job, config in automatic:
        with suppress(UserError):  # reported when the job starts
            if job.run.config.exists():
                earlier = as_trained(job.run, read_config(job.run.config)).trainer.compile
                if earlier != "auto":
                    return Choice(earlier is True, "as the earlier runs of this sweep")
            source = repr((config.data, config.tokenizer, config.init))
            if source not in n_vocab:
                n_vocab[source] = vocabulary_size(config)
            trainer = replace(config.trainer, threads=config.trainer.threads or threads)
            planned.append(Planned(replace(config, trainer=trainer), n_vocab[source]))
    return choose_compilation(planned, processes) if planned else None
