"""From a space to its best config: what `minigpt tune` does, in order."""

from __future__ import annotations

import datetime
import itertools
import secrets
import shlex
import shutil
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout

from minigpt.config import Config, load_config, save_config
from minigpt.errors import Failure, UserError
from minigpt.files import write_json
from minigpt.hydra_app import quoted
from minigpt.run import RUNS, RunDirectory, provenance
from minigpt.tune.options import TuneOptions
from minigpt.tune.proposals import Proposals, Study
from minigpt.tune.records import (
    TrialRecord,
    best_of,
    read_trials,
    require_same_search,
    saving,
    trial_name,
)
from minigpt.tune.schedulers import build_scheduler
from minigpt.tune.session import Share, ray_session
from minigpt.tune.show import SearchDisplay
from minigpt.tune.space import Space, Values, check_space, parse_space
from minigpt.tune.trial import STOP_FILE, Job, Trial

TUNE, BEST = "tune.json", "best.yaml"  # in the search's folder
RAY = "ray"  # there too, while it lasts: what Ray Tune writes for itself
RESTARTS = 3  # of a trial whose worker was lost
KEPT = 4  # copies of a member of a population: others may still read an older one


def search(overrides: list[str], options: TuneOptions) -> None:
    """Search, or go on with a search, and leave best.yaml and tune.json in its folder.

    Raises UserError for mistakes, before Ray starts; Interrupted where a signal came, all trials
    saved; Failure where no trial came to a value.
    """
    space = parse_space(overrides)
    config = check_space(space, options)
    folder = (options.directory or _new_folder(space)).absolute()
    about = {"overrides": sorted(overrides), "options": options.identity}
    with _locked(folder, about):
        earlier = read_trials(folder, options.metric)
        (folder / STOP_FILE).unlink(missing_ok=True)
        _write(folder, about | {"status": "running"})
        _search(space, config, options, folder, earlier, about, overrides)


def _new_folder(space: Space) -> Path:
    now = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    label = trial_name(0, {key.rpartition(".")[2]: "" for key in space.domains}, False)[4:]
    return RUNS / f"{now}_tune_{label.replace('=', '')}_{secrets.token_hex(2)}"


@contextmanager
def _locked(folder: Path, about: dict[str, Any]) -> Iterator[None]:
    """Keep other searches out. Raises UserError if one is in, or if this is another's folder."""
    file = folder / TUNE
    if file.exists():
        require_same_search(RunDirectory(folder).read_json(file), about, folder)
    elif folder.exists() and any(folder.iterdir()):
        raise UserError(f"--dir={folder}: holds something else; choose a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise UserError(
            f"--dir={folder}: another minigpt tune works there; stop it first"
        ) from None
    finally:
        shutil.rmtree(folder / RAY, ignore_errors=True)


def _search(
    space: Space,
    config: Config,
    options: TuneOptions,
    folder: Path,
    earlier: list[TrialRecord],
    about: dict[str, Any],
    overrides: list[str],
) -> None:
    grid = space.grid() if options.search == "grid" else None
    total = len(grid) if grid is not None else options.count
    max_steps = config.trainer.max_steps
    ended = [record for record in earlier if record.ended(options.scheduler)]
    begun = [record for record in earlier if not record.ended(options.scheduler)]
    display = SearchDisplay(options, total, max_steps, earlier)
    display.line(
        f"search     {options.search}, {options.scheduler}, {total} trials of {max_steps} "
        f"steps for the least {options.metric}"
    )
    started = time.perf_counter()
    stopped_by = None
    if len(ended) < total:
        with ray_session(options.address, options.at_a_time, total - len(ended)) as share:
            display.line(f"trials     {share.jobs} at a time, {share.threads} threads each")
            display.line(f"folder     {folder}")
            if earlier:
                display.line(f"goes on    {len(ended)} trials have ended, {len(begun)} had begun")
            job = _job(space, config, options, folder, share, overrides)
            study = Study(space, options, ended)
            planned = [(record.name, record.values) for record in begun]
            numbers = itertools.count(max((r.number for r in earlier), default=-1) + 1)
            missing = total - len(earlier)
            if grid is not None:
                done = [record.values for record in earlier]
                new = [values for values in grid if values not in done]
                planned += [(trial_name(next(numbers), v, changing=False), v) for v in new]
            elif options.scheduler == "pbt":
                new = [study.ask().params for _ in range(missing)]
                planned += [(trial_name(next(numbers), v, changing=True), v) for v in new]
            stop = _run_trials(
                space, options, job, share, study, planned, numbers, max_steps, earlier, display
            )
            stopped_by = stop.number
    records = read_trials(folder, options.metric)
    if stopped_by is None:
        _settle(folder, records)
        records = read_trials(folder, options.metric)
    _conclude(options, folder, records, about, max_steps, display, started, stopped_by)
    if stopped_by is not None:
        from minigpt.train.loop import Interrupted

        display.line(
            f"stopped by {signal.Signals(stopped_by).name}, trials saved; go on with: "
            f"{_command(overrides, options, folder)}"
        )
        raise Interrupted(stopped_by)


def _job(
    space: Space,
    config: Config,
    options: TuneOptions,
    folder: Path,
    share: Share,
    overrides: list[str],
) -> Job:
    own = []
    if not space.fixes("data.dir"):  # another machine may have another default
        own.append(quoted(f"data.dir={Path(config.data.dir).expanduser().absolute()}"))
    if not space.fixes("trainer.threads") and "trainer.threads" not in space.domains:
        own.append(f"trainer.threads={share.threads}")
    if config.group is None:
        own.append(quoted(f"group={folder.name}"))
    return Job(
        folder=str(folder),
        working_directory=str(Path.cwd()),
        fixed=[*space.fixed, *own],
        command=["minigpt", "tune", *overrides],
        metric=options.metric,
        eval_every=config.trainer.eval_every,
        population=options.scheduler == "pbt",
    )


class Stop:
    """The signal that asked the search to stop, if one did."""

    number: int | None = None


@contextmanager
def _stop_signals(stop: Stop, folder: Path) -> Iterator[None]:
    """Let the first SIGINT or SIGTERM have trials save and end; a second one interrupts at once."""

    def request(number: int, frame: FrameType | None) -> None:
        if stop.number is not None:
            raise KeyboardInterrupt
        (folder / STOP_FILE).touch()
        stop.number = number

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run_trials(
    space: Space,
    options: TuneOptions,
    job: Job,
    share: Share,
    study: Study,
    planned: list[tuple[str, Values]],
    numbers: Iterator[int],
    max_steps: int,
    earlier: list[TrialRecord],
    display: SearchDisplay,
) -> Stop:
    """Have Ray Tune run all trials that are left."""
    from ray import tune
    from ray.tune.search.basic_variant import BasicVariantGenerator
    from ray.tune.stopper import Stopper

    stop = Stop()

    class Requested(Stopper):
        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            return False

        def stop_all(self) -> bool:
            return stop.number is not None

    ended = sum(1 for record in earlier if record.ended(options.scheduler))
    total = len(planned) if options.scheduler == "pbt" or options.search == "grid" else None
    param_space: dict[str, Any] = {"job": asdict(job)}
    if options.scheduler == "pbt":  # Ray Tune's takes no searcher
        names = tune.choice([name for name, _ in planned])
        param_space |= {"run": names, **space.domains}
        points = [{"run": name, **values} for name, values in planned]
        searcher: Any = BasicVariantGenerator(points_to_evaluate=points)
    else:
        searcher = Proposals(study, options.metric, planned, numbers)
    with warnings.catch_warnings(), _stop_signals(stop, Path(job.folder)):
        warnings.simplefilter("ignore")
        display.start()
        try:
            tune.run(  # and no Tuner, which pickles all of this into the folder
                Trial,
                name=RAY,
                storage_path=job.folder,
                config=param_space,
                resources_per_trial={"cpu": share.cpus, "gpu": share.gpus},
                num_samples=total or options.count - ended,
                search_alg=searcher,
                scheduler=build_scheduler(options, space, job, max_steps, earlier),
                trial_name_creator=lambda trial: trial.config["run"],
                stop=Requested(),
                verbose=0,
                callbacks=[display],
                max_failures=RESTARTS,
                raise_on_failed_trial=False,
                checkpoint_config=tune.CheckpointConfig(num_to_keep=KEPT),
            )
        finally:
            display.stop()
    return stop


def _settle(folder: Path, records: list[TrialRecord]) -> None:
    """A trial that was paused when the search ended was stopped."""
    for record in records:
        if record.status == "paused":
            run = RunDirectory(folder / record.name)
            write_json(run.result, run.read_json(run.result) | {"status": "stopped"})


def _conclude(
    options: TuneOptions,
    folder: Path,
    records: list[TrialRecord],
    about: dict[str, Any],
    max_steps: int,
    display: SearchDisplay,
    started: float,
    stopped_by: int | None,
) -> None:
    """Write tune.json and best.yaml, and print what came out."""
    best = best_of(records)
    saved = saving(records, max_steps)
    _write(
        folder,
        about
        | {
            "status": "finished" if stopped_by is None else "interrupted",
            "provenance": provenance(["minigpt", "tune", *about["overrides"]]),
            "max_steps": max_steps,
            "seconds": time.perf_counter() - started,
            "saving": asdict(saved),
            "best": None if best is None else best.to_dict(),
            "trials": [record.to_dict() for record in records],
        },
    )
    display.results(records)
    if best is None:
        if stopped_by is None:
            why = next((record.error for record in records if record.error), "no reason given")
            raise Failure(f"{folder}: no trial came to a {options.metric}; the first said: {why}")
        return
    save_best(folder, best)
    display.saving(saved)
    display.line(f"best       {best.name}, {options.metric} {best.value:.4f} ({best.status})")
    if best.adopted:
        display.line(
            "           its optimizer changed as it trained: best.yaml has how it ended, "
            "tune.json how it went"
        )
    directory = shlex.quote(str(folder))
    display.line(f"again      minigpt train --config-dir {directory} --config-name best")


def save_best(folder: Path, best: TrialRecord) -> None:
    """Write best.yaml: the best trial's config, outside the search's group."""
    config = load_config(RunDirectory(folder / best.name).config)
    group = None if config.group == folder.name else config.group
    save_config(replace(config, group=group), folder / BEST)


def _write(folder: Path, content: dict[str, Any]) -> None:
    write_json(folder / TUNE, content)


def _command(overrides: list[str], options: TuneOptions, folder: Path) -> str:
    """The command that goes on with a search."""
    flags: dict[str, Any] = {**options.identity, "--trials": options.trials, "--jobs": options.jobs}
    flags |= {"--address": options.address, "--dir": folder}
    given = [f"{flag} {shlex.quote(str(v))}" for flag, v in flags.items() if v is not None]
    return " ".join(["minigpt tune", *(shlex.quote(text) for text in overrides), *given])
