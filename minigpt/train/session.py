"""One training run from its config to result.json."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

from minigpt.config.pairs import flat
from minigpt.config.saved import read_config, resolved_values, save_config
from minigpt.config.schema import Config, TrainerConfig, request_sha256
from minigpt.data.corpus import unescape
from minigpt.data.prepare import Prepared, prepare
from minigpt.errors import Failure, UserError, first_line, one_line_if_out_of_memory, require
from minigpt.files import recover_directory
from minigpt.logger import LOGGERS, Logger, LoggerConfig, RunInfo
from minigpt.model.compatibility import require_compatible
from minigpt.run.design import design_name, with_text
from minigpt.run.directory import ObservedRun, RunDirectory
from minigpt.run.load import Initial, as_trained, tokenizer_of, weights_used
from minigpt.run.provenance import provenance
from minigpt.runtime import Runtime, choose_runtime, set_threads
from minigpt.train.compilation import Choice
from minigpt.train.control import Diverged, EarlyStop, Interrupted, StopRequest, Stopwatch
from minigpt.train.display import Display
from minigpt.train.distributed import process_group, remembered
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
    """Train a new run, or continue a `resumed` one. `options` are passed to `training_session`.

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
    threads: int | None = None,
    compilation: Choice | None = None,
) -> Iterator[Trainer]:
    """Prepare a run, yield its trainer, and write result.json however the block ends.

    Everything is checked before the run directory is created, so that an error leaves no files.
    `facts` are added to a new run's manifest. `backend` replaces the name of the attention backend
    where the caller computes the steps. `threads`: CPU threads if the config has null.
    `compilation`: whether to compile if the config has auto. Raises UserError for what is not
    supported.
    """
    requested = config
    if resumed:
        config = as_trained(run, config)
    used = weights_used(config, run if resumed else None)
    initial = used.get("init")
    runtime, prepared = prepare_inputs(config, run if resumed else None, threads, initial)
    with process_group(config.trainer, runtime) as runtime:
        ranks = runtime.ranks
        graph = config.trainer.graph if backend is None else "off"
        setup = build_setup(
            replace(config, trainer=replace(config.trainer, graph=graph)),
            *(prepared, runtime, compilation if config.trainer.compile == "auto" else None),
            initial,
        )
        setup = replace(setup, backend=backend or setup.backend)
        path = ranks.first(lambda: remembered(run.path), "the start of the run")
        run = run if ranks.is_main else ObservedRun(path)
        with run.locked():
            sources = {key: weights.facts for key, weights in used.items()}
            facts = {"request_sha256": request_sha256(config), **(facts or {}), **sources}
            if resumed:
                ranks.first(partial(require_resumable, run, setup), "the start of the run")
                setup.state.load(run.last)
            begin = partial(begin_run, run, setup, prepared, requested, resumed, command, facts)
            manifest, notices = ranks.first(begin, "the start of the run")

            display = Display(config.trainer.max_steps, quiet=not ranks.is_main)
            logger = open_tracker(run, setup, requested, manifest)
            trainer = Trainer(setup, run, display, logger, stop, stopwatch, on_evaluation)
            with result_recorded(trainer):
                run.write(run.manifest, manifest | {"tracker_id": logger.tracker_id})
                if manifest.get("left_out") is not None:
                    notices["files"] = manifest["left_out"]
                if logger.notice is not None:
                    notices[config.logger.name] = logger.notice
                display.start(setup, run, manifest, notices)
                if setup.compilation.compiled and backend is None:
                    compile_steps(trainer, requested)
                yield trainer


def begin_run(
    run: RunDirectory,
    setup: Setup,
    prepared: Prepared,
    requested: Config,
    resumed: bool,
    command: list[str],
    facts: dict[str, Any],
) -> tuple[dict[str, Any], dict[str, str]]:
    """Write manifest and config of a new run, or of one whose state is loaded (`resumed`).

    Returns the manifest, and lines for the user by subject. Raises UserError.
    """
    if resumed:
        manifest, notices = restore_run(run, setup, command)
    else:
        manifest, notices = create_run(run, setup, prepared, command, facts), {}
    manifest["resolved"] = resolved_values(requested, setup.config)
    run.write(run.manifest, manifest)
    save_config(requested, run.config)  # the last file: from now on the run can be resumed
    return manifest, notices


def compile_steps(trainer: Trainer, requested: Config) -> None:
    """Compile the training steps. If that fails, train eagerly where the request was auto.

    Raises Failure if it was true.
    """
    try:
        trainer.compile()
    except Failure as error:
        if requested.trainer.compile is True:
            remedy = "use trainer.compile=auto, or false"
            raise Failure(f"trainer.compile=true: {error}; {remedy}") from error
        trainer.display.line(f"compile    failed, so this run is eager: {error}")
        trainer.options.compile = False
        manifest = trainer.run.read_json(trainer.run.manifest)
        manifest["resolved"] = resolved_values(requested, trainer.config)
        trainer.run.write(trainer.run.manifest, manifest)


def prepare_inputs(
    config: Config, resumed: RunDirectory | None, threads: int | None, initial: Initial | None
) -> tuple[Runtime, Prepared]:
    """Choose the runtime and prepare the data. Raises UserError for what is not supported."""
    options = config.trainer
    set_threads(options.threads or threads)
    runtime = choose_runtime(options.device, options.precision)
    LOGGERS.variant(config.logger.name).check(config.logger)
    packed = config.data.separator is not None
    require_compatible(config.model, runtime.device, "training", packed, config.optimizer.name)
    tokenizer = None if resumed is None else resumed.tokenizer
    if initial is not None and resumed is None:
        tokenizer = tokenizer_of(initial.run)
    text = None if resumed is None else resumed.data_sha256
    prepared = prepare(config.data, config.tokenizer, tokenizer, text)
    prepared.tokens.require_block(config.model.block_size)
    prompt = options.sample_prompt
    if options.sample_every is not None and prompt is not None:
        try:
            prepared.tokenizer.encode(unescape(prompt))
        except UserError as error:
            raise UserError(f"trainer.sample_prompt={prompt}: {error}") from None
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
    splits = setup.data.splits
    return {
        **provenance(command),
        **_machine(setup),
        "backend": setup.backend,
        "data_sha256": prepared.corpus.sha256,
        "left_out": prepared.corpus.left_out,
        "characters": prepared.corpus.characters,
        "tokens": {split.name: len(split.tokens) for split in splits},
        "documents": {split.name: len(split.document_lengths) for split in splits},
        "tokenizer_sha256": setup.tokenizer.fingerprint,
        "vocabulary": setup.tokenizer.n_vocab,
        **facts,
    }


def require_resumable(run: RunDirectory, setup: Setup) -> None:
    """Undo an interrupted save. Raises UserError if the run is finished, or has foreign files."""
    run.require_own_files("which a resumed run would change; replace it by a copy", "*.*")
    for checkpoint in (run.last, run.best):
        recover_directory(checkpoint)
    max_steps = setup.config.trainer.max_steps
    result = run.read_json(run.result) if run.result.exists() else {}
    if result.get("status") == "finished" and result["steps"] >= max_steps:
        raise UserError(
            f"resume={run.path}: this run has finished its {result['steps']} steps; give it a "
            f"larger trainer.max_steps, or start a new run"
        )


def restore_run(
    run: RunDirectory, setup: Setup, command: list[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Restore the logs at the step of the state, which is that of the last checkpoint.

    Returns the extended manifest, and lines for the user by subject. Without a checkpoint the run
    starts from its first step.
    """
    before, now = as_trained(run, read_config(run.config)), setup.config
    progress, max_steps = setup.state.progress, setup.config.trainer.max_steps
    why = f"this run has already done {progress.step} steps; use a larger number"
    require(progress.step <= max_steps, "trainer.max_steps", max_steps, why)
    run.rewind_logs(progress.log_sizes)
    manifest = run.read_json(run.manifest)
    parts = [manifest, *manifest.get("resumed", [])]
    manifest["resumed"] = [*parts[1:], provenance(command) | _machine(setup)]
    if before.logger.name != now.logger.name:
        manifest.pop("tracker_id", None)
    run.result.unlink(missing_ok=True)  # from before the run was resumed
    processes = parts[-1].get("processes", 1), setup.runtime.ranks.size
    return manifest, _changes_of_machine(before.trainer, now.trainer, *processes)


def _machine(setup: Setup) -> dict[str, Any]:
    """Return where the run computes, for its manifest."""
    n = setup.runtime.ranks.size
    return {"device": setup.runtime.describe(), **({"processes": n} if n > 1 else {})}


def _changes_of_machine(
    before: TrainerConfig, now: TrainerConfig, processes_before: int, processes: int
) -> dict[str, str]:
    """Return a line for the user if a resumed run computes with other rounding than before."""
    changed = [
        f"trainer.{key}={new} (was {old})"
        for key in ("device", "precision", "compile", "graph", "threads", "parallel")
        if (old := getattr(before, key)) != (new := getattr(now, key))
    ]
    if processes != processes_before:
        changed.append(f"{processes} processes (were {processes_before})")
    why = "results equal those of an uninterrupted run up to rounding, not bit for bit"
    return {"resumed": f"with {', '.join(changed)}: {why}"} if changed else {}


def open_tracker(
    run: RunDirectory, setup: Setup, requested: Config, manifest: dict[str, Any]
) -> Logger:
    """Open the tracker's run, or continue the one that the manifest names.

    Only the first of several processes has one. The design is that of the requested config: what
    `auto` resolves to depends on the machine, and on compiled code that another seed left.
    """
    config = setup.config
    design = design_name(with_text(flat(requested.to_dict()), manifest.get("data_sha256")))
    parameters = setup.state.model.parameter_counts()
    info = RunInfo(
        directory=run.path,
        name=run.path.name,
        group=config.group,
        tags=config.tags,
        config=config.to_dict() | {"design": design, "parameters": parameters},
        tracker_id=manifest.get("tracker_id"),
        in_group=run.in_group,
        job_type=job_type(run, config),
        checkpoints={"best": run.best, "last": run.last},
    )
    try:
        main = setup.runtime.ranks.is_main
        return LOGGERS.build(config.logger if main else LoggerConfig("none"), info)
    except BaseException as error:
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        run.write(run.result, {"status": status, "error": first_line(error)})
        raise


def job_type(run: RunDirectory, config: Config) -> str:
    """Return what a tracker calls the run: compare, search, sweep, finetune or train."""
    of_folder = run.job_type
    return "finetune" if of_folder == "train" and config.init is not None else of_folder


@contextmanager
def result_recorded(trainer: Trainer) -> Iterator[None]:
    """When the block ends, also by an error, write result.json and close display and tracker."""
    run, display = trainer.run, trainer.display

    def close(result: dict[str, Any]) -> None:
        display.stop()
        try:
            run.write(run.result, result)
        finally:
            trainer.logger.finish(result, failed=result["status"] == "failed")

    try:
        yield
        result = trainer.result("finished")
    except EarlyStop as stopped:
        result = trainer.result(stopped.status)
    except BaseException as error:
        result = trainer.result("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
        if result["status"] == "failed":
            result |= {"error": first_line(error), "diverged": isinstance(error, Diverged)}
        with suppress(OSError):  # on a full disk the first error is the one to report
            close(result)
        raise
    close(result)
    display.end(run, result)
