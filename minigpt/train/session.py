"""Everything before the first step and after the last: check, prepare, train, record."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from minigpt.config.compose import save_config
from minigpt.config.paths import with_absolute_paths
from minigpt.config.schema import Config, request_sha256
from minigpt.data.prepare import Prepared, prepare
from minigpt.errors import UserError, first_line, one_line_if_out_of_memory
from minigpt.files import recover_directory, write_json
from minigpt.logger import LOGGERS, RunInfo
from minigpt.model import GPT
from minigpt.run.directory import RunDirectory
from minigpt.run.provenance import provenance
from minigpt.runtime import Runtime, choose_runtime, set_threads
from minigpt.train.control import Diverged, Interrupted, Stop, Stopped
from minigpt.train.display import Display
from minigpt.train.trainer import Trainer

LESS_MEMORY = (
    "lower model.n_embd, model.block_size or trainer.batch_size, or compute a batch in pieces "
    "with trainer.grad_accum_steps"
)


@one_line_if_out_of_memory(LESS_MEMORY)
def train_run(
    config: Config,
    run: RunDirectory,
    resumed: bool,
    command: list[str],
    facts: dict[str, Any] | None = None,
    on_evaluation: Callable[[Trainer], None] | None = None,
    stop: Stop | None = None,
) -> None:
    """Train what a config says in a new run directory, or go on in one that has begun.

    See `training_session`. `on_evaluation` follows the run and may end it (see Trainer); `stop`
    lets another thread end it as a signal does. Raises Interrupted where a signal came.
    """
    with training_session(config, run, resumed, command, facts) as trainer:
        trainer.on_evaluation = on_evaluation or trainer.on_evaluation
        trainer.stop = stop or trainer.stop
        trainer.train()
    if trainer.stopped_by is not None:
        raise Interrupted(trainer.stopped_by)


@contextmanager
def training_session(
    config: Config,
    run: RunDirectory,
    resumed: bool,
    command: list[str],
    facts: dict[str, Any] | None = None,
) -> Iterator[Trainer]:
    """A trainer before it begins, in a run directory that is told how the training ends.

    All is checked before the directory is begun, so that a mistake leaves nothing behind. `facts`
    go into a new run's manifest. Raises UserError for what cannot be honoured.
    """
    options, asked = config.trainer, request_sha256(config)
    set_threads(options.threads)
    runtime = choose_runtime(options.device, options.precision)
    LOGGERS.variant(config.logger.name).check(config.logger)
    with torch.device("meta"):  # no memory, no time: only what constructors refuse
        design = GPT(config.model, n_vocab=1)
    design.use_backend(runtime.device, runtime.precision == "bf16", "train")
    prepared = prepare(config.data, config.tokenizer, of_run=run if resumed else None)
    prepared.tokens.require_block(config.model.block_size)
    prepared.tokenizer.encode(options.sample_prompt)
    display = Display(options.max_steps)
    trainer = Trainer(config, run, prepared.tokenizer, prepared.tokens, runtime, display)
    config = trainer.config = resolved(config, runtime, trainer.model)

    with run.locked():
        made = provenance(command)
        if resumed:
            for checkpoint in (run.last, run.best):
                recover_directory(checkpoint)
            _require_unfinished(run, options.max_steps)
            trainer.resume()
            manifest = run.read_json(run.manifest)
            manifest["resumed"] = [*manifest.get("resumed", []), made]
            run.result.unlink(missing_ok=True)  # it speaks of an end that is none
        else:
            if run.config.exists():
                raise UserError(
                    f"hydra.run.dir={run.path}: holds a run already; go on with "
                    f"`minigpt train resume={run.path}`, or choose another directory"
                )
            prepared.tokenizer.save(run.tokenizer)
            manifest = made | {"request_sha256": asked}
            manifest |= _facts(prepared, runtime, trainer.backend) | (facts or {})
        write_json(run.manifest, manifest)
        save_config(config, run.config)  # last: from now on the run can be resumed

        info = RunInfo(
            directory=run.path,
            name=run.path.name,
            group=config.group,
            tags=config.tags,
            config=config.to_dict() | {"parameters": trainer.model.parameter_counts()},
            tracker_id=manifest.get("tracker_id"),
        )
        logger = LOGGERS.build(config.logger, info)
        result = trainer.result("failed")
        try:
            write_json(run.manifest, manifest | {"tracker_id": logger.tracker_id})
            display.start(trainer, manifest, logger.notice)
            trainer.logger = logger
            yield trainer
            result = trainer.result("finished")
        except Stopped as stopped:
            result = trainer.result(stopped.status)
        except KeyboardInterrupt:
            result = trainer.result("interrupted")
            raise
        except BaseException as error:
            result = trainer.result("failed") | {
                "error": first_line(error),
                "diverged": isinstance(error, Diverged),
            }
            raise
        finally:
            display.stop()
            try:
                write_json(run.result, result)
            finally:
                logger.finish(result, failed=result["status"] == "failed")
    display.end(run, result)


def resolved(config: Config, runtime: Runtime, model: GPT) -> Config:
    """The config with what `auto`, relative paths and an attention's None stood for.

    So it means the same later. An attention backend that is `auto` is chosen anew for each use.
    """
    trainer = replace(
        config.trainer,
        device=runtime.device,
        precision=runtime.precision,
        threads=torch.get_num_threads(),
    )
    design = replace(
        config.model,
        attention=model.attention.spelled_out(config.model.attention),
    )
    return replace(config, trainer=trainer, data=with_absolute_paths(config.data), model=design)


def _facts(prepared: Prepared, runtime: Runtime, backend: str) -> dict[str, Any]:
    corpus, tokens = prepared.corpus, prepared.tokens
    return {
        "device": runtime.describe(),
        "backend": backend,
        "data_sha256": corpus.sha256,
        "characters": corpus.characters,
        "tokens": {split.name: len(split.tokens) for split in (tokens.train, tokens.val)},
        "documents": {s.name: len(s.document_lengths) for s in (tokens.train, tokens.val)},
        "tokenizer_sha256": prepared.tokenizer.fingerprint,
        "vocabulary": prepared.tokenizer.n_vocab,
    }


def _require_unfinished(run: RunDirectory, max_steps: int) -> None:
    result = run.read_json(run.result) if run.result.exists() else {}
    if result.get("status") == "finished" and result["steps"] >= max_steps:
        raise UserError(
            f"resume={run.path}: this run has finished its {result['steps']} steps; give it a "
            f"larger trainer.max_steps, or start a new run"
        )
