"""Everything before the first step and after the last: check, prepare, train, record."""

from __future__ import annotations

from typing import Any

import torch

from minigpt.config import Config, save_config
from minigpt.data.prepare import Prepared, prepare
from minigpt.display import Display
from minigpt.errors import UserError, first_line
from minigpt.files import write_json
from minigpt.logger import LOGGERS, RunInfo
from minigpt.model import GPT
from minigpt.run import RunDirectory, new_manifest
from minigpt.train.device import Compute, choose_compute
from minigpt.train.loop import Trainer


def start(config: Config, run: RunDirectory, resumed: bool) -> None:
    """Train what a config says in a new run directory, or go on in one that has begun.

    All is checked before the directory is begun, so that a mistake leaves nothing behind.
    Raises UserError for what cannot be honoured.
    """
    options = config.trainer
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    compute = choose_compute(options.device, options.precision)
    with torch.device("meta"):  # no memory, no time: only what constructors refuse
        GPT(config.model, n_vocab=1)
    prepared = prepare(config.data, config.tokenizer, of_run=run if resumed else None)
    prepared.tokens.require_block(config.model.block_size)
    prepared.tokenizer.encode(options.sample_prompt)
    trainer = Trainer(
        config, run, prepared.tokenizer, prepared.tokens, compute, Display(options.max_steps)
    )
    with run.locked():
        if not resumed and run.config.exists():
            raise UserError(
                f"hydra.run.dir={run.path}: holds a run already; go on with "
                f"`minigpt train resume={run.path}`, or choose another directory"
            )
        if resumed:
            _require_unfinished(run, options.max_steps)
            manifest = run.read_json(run.manifest)
            trainer.resume()
        else:
            prepared.tokenizer.save(run.tokenizer)
            manifest = {**new_manifest(), **_facts(prepared, compute, trainer.backend)}
            write_json(run.manifest, manifest)
            save_config(config, run.config)  # last: from now on the run can be resumed
        _train(trainer, manifest)


def _train(trainer: Trainer, manifest: dict[str, Any]) -> None:
    config, run, display = trainer.config, trainer.run, trainer.display
    info = RunInfo(
        directory=run.path,
        name=run.path.name,
        group=config.group,
        tags=config.tags,
        config=config.to_dict() | {"parameters": trainer.model.parameter_counts()},
        tracker_id=manifest.get("tracker_id"),
    )
    logger = LOGGERS.build(config.logger, info)
    write_json(run.manifest, manifest | {"tracker_id": logger.tracker_id})
    status, error = "failed", None
    try:
        display.start(trainer, manifest, logger.notice)
        trainer.train(logger)
        status = "finished"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    except BaseException as caught:
        error = first_line(caught)
        raise
    finally:
        display.stop()
        result = trainer.result(status) | ({} if error is None else {"error": error})
        write_json(run.result, result)
        logger.finish(result, failed=status == "failed")
    display.end(run, result, logger.notice)


def _facts(prepared: Prepared, compute: Compute, backend: str) -> dict[str, Any]:
    corpus, tokens = prepared.corpus, prepared.tokens
    return {
        "device": compute.describe(),
        "backend": backend,
        "threads": torch.get_num_threads(),
        "data_sha256": corpus.sha256,
        "characters": {name: len(text) for name, text in corpus.splits.items()},
        "tokens": {split.name: len(split.tokens) for split in (tokens.train, tokens.val)},
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
