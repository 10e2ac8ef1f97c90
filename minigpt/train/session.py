"""One training run from its config to result.json."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from minigpt.config.compose import save_config
from minigpt.config.schema import Config, request_sha256
from minigpt.data.prepare import Prepared, prepare
from minigpt.errors import UserError, first_line, one_line_if_out_of_memory, require
from minigpt.files import recover_directory, write_json
from minigpt.logger import LOGGERS, Logger, RunInfo
from minigpt.model.compatibility import require_compatible
from minigpt.run.directory import RunDirectory
from minigpt.run.provenance import provenance
from minigpt.runtime import Runtime, choose_runtime, set_threads
from minigpt.train.control import Diverged, EarlyStop, Interrupted, StopRequest, Stopwatch
from minigpt.train.display import Display
from minigpt.train.setup import Setup, build_setup
from minigpt.train.trainer import Trainer

LESS_MEMORY = (
    "lower model.n_embd, model.block_size or trainer.batch_size, or split each batch into "
    "micro-batches with trainer.grad_accum_steps"
)


@one_line_if_out_of_memory(LESS_MEMORY)
def train_run(
    config: Config,
    run: RunDirectory,
    resumed: bool,
    command: list[str],
    **options: Any,
) -> None:
    """Train a new run, or continue a `resumed` one. `options`: those of `training_session`.

    Raises Interrupted if a signal stopped it.
    """
    with training_session(config, run, resumed, command, **options) as trainer:
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
    *,
    on_evaluation: Callable[[Trainer], None] | None = None,
    stop: StopRequest | None = None,
    stopwatch: Stopwatch | None = None,
    backend: str | None = None,
) -> Iterator[Trainer]:
    """Prepare a run, yield its trainer, and write result.json however the block ends.

    Everything is checked before the run directory is created, so that a mistake leaves no files.
    `facts` are added to a new run's manifest. `backend` replaces the name of the attention backend
    where the caller computes the steps. Raises UserError for what is not supported.
    """
    runtime, prepared = prepare_inputs(config, run if resumed else None)
    setup = build_setup(config, prepared, runtime)
    setup = replace(setup, backend=backend or setup.backend)
    with run.locked():
        if resumed:
            manifest = restore_run(run, setup, command)
        else:
            facts = {"request_sha256": request_sha256(config), **(facts or {})}
            manifest = create_run(run, setup, prepared, command, facts)
        write_json(run.manifest, manifest)
        save_config(setup.config, run.config)  # last: from now on the run can be resumed

        display = Display(config.trainer.max_steps)
        logger = open_tracker(run, setup, manifest)
        trainer = Trainer(setup, run, display, logger, stop, stopwatch, on_evaluation)
        with result_recorded(trainer):
            write_json(run.manifest, manifest | {"tracker_id": logger.tracker_id})
            display.start(setup, run, manifest, logger.notice)
            yield trainer


def prepare_inputs(config: Config, resumed: RunDirectory | None) -> tuple[Runtime, Prepared]:
    """Choose the runtime and prepare the data. Raises UserError for what is not supported."""
    options = config.trainer
    set_threads(options.threads)
    runtime = choose_runtime(options.device, options.precision)
    LOGGERS.variant(config.logger.name).check(config.logger)
    packed = config.data.separator is not None
    require_compatible(config.model, runtime.device, "training", packed, config.optimizer.name)
    tokenizer = None if resumed is None else resumed.tokenizer
    text = None if resumed is None else resumed.data_sha256
    prepared = prepare(config.data, config.tokenizer, tokenizer, text)
    prepared.tokens.require_block(config.model.block_size)
    prepared.tokenizer.encode(options.sample_prompt)
    return runtime, prepared


def create_run(
    run: RunDirectory, setup: Setup, prepared: Prepared, command: list[str], facts: dict[str, Any]
) -> dict[str, Any]:
    """Save the tokenizer of a new run and return its manifest. Raises UserError if one exists."""
    if run.config.exists():
        raise UserError(
            f"hydra.run.dir={run.path}: contains a run already; continue it with "
            f"`minigpt train resume={run.path}`, or choose another directory"
        )
    setup.tokenizer.save(run.tokenizer)
    splits = (setup.data.train, setup.data.val)
    return {
        **provenance(command),
        "device": setup.runtime.describe(),
        "backend": setup.backend,
        "data_sha256": prepared.corpus.sha256,
        "characters": prepared.corpus.characters,
        "tokens": {split.name: len(split.tokens) for split in splits},
        "documents": {split.name: len(split.document_lengths) for split in splits},
        "tokenizer_sha256": setup.tokenizer.fingerprint,
        "vocabulary": setup.tokenizer.n_vocab,
        **facts,
    }


def restore_run(run: RunDirectory, setup: Setup, command: list[str]) -> dict[str, Any]:
    """Restore the last checkpoint and the logs at its step; return the extended manifest.

    Without a checkpoint the run starts from its first step. Raises UserError if it is finished.
    """
    for checkpoint in (run.last, run.best):
        recover_directory(checkpoint)
    max_steps = setup.config.trainer.max_steps
    result = run.read_json(run.result) if run.result.exists() else {}
    if result.get("status") == "finished" and result["steps"] >= max_steps:
        raise UserError(
            f"resume={run.path}: this run has finished its {result['steps']} steps; give it a "
            f"larger trainer.max_steps, or start a new run"
        )
    setup.state.load(run.last)
    progress = setup.state.progress
    run.rewind_logs(progress.log_sizes)
    why = f"this run has done {progress.step} steps already; use a larger number"
    require(progress.step <= max_steps, "trainer.max_steps", max_steps, why)
    manifest = run.read_json(run.manifest)
    manifest["resumed"] = [*manifest.get("resumed", []), provenance(command)]
    run.result.unlink(missing_ok=True)  # of an earlier ending
    return manifest


def open_tracker(run: RunDirectory, setup: Setup, manifest: dict[str, Any]) -> Logger:
    """Open the tracker's run, or continue the one that the manifest names."""
    config = setup.config
    values = config.to_dict() | {"parameters": setup.state.model.parameter_counts()}
    info = RunInfo(
        directory=run.path,
        name=run.path.name,
        group=config.group,
        tags=config.tags,
        config=values,
        tracker_id=manifest.get("tracker_id"),
        in_group=run.in_group,
    )
    try:
        return LOGGERS.build(config.logger, info)
    except BaseException as error:
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        write_json(run.result, {"status": status, "error": first_line(error)})
        raise


@contextmanager
def result_recorded(trainer: Trainer) -> Iterator[None]:
    """Write result.json, close the display and the tracker, however the block ends."""
    run, display = trainer.run, trainer.display
    result = trainer.result("failed")
    try:
        yield
        result = trainer.result("finished")
    except EarlyStop as stopped:
        result = trainer.result(stopped.status)
    except KeyboardInterrupt:
        result = trainer.result("interrupted")
        raise
    except BaseException as error:
        diverged = isinstance(error, Diverged)
        result = trainer.result("failed") | {"error": first_line(error), "diverged": diverged}
        raise
    finally:
        display.stop()
        try:
            write_json(run.result, result)
        finally:
            trainer.logger.finish(result, failed=result["status"] == "failed")
    display.end(run, result)
