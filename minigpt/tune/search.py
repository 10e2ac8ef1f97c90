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
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from minigpt.config.compose import load_config, save_config
from minigpt.config.overrides import quoted
from minigpt.config.schema import Config
from minigpt.errors import TRACEBACK, Failure, UserError
from minigpt.files import write_json
from minigpt.run.directory import RUNS, SEARCH, RunDirectory
from minigpt.run.provenance import provenance
from minigpt.train.control import Interrupted, Stop, stop_signals
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

BEST = "best.yaml"  # in the search's folder
LOCK = ".lock"
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
        Search(overrides, options, space, config, folder, about, earlier).run()


def _new_folder(space: Space) -> Path:
    now = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    label = trial_name(0, {key.rpartition(".")[2]: "" for key in space.domains}, False)[4:]
    return RUNS / f"{now}_tune_{label.replace('=', '')}_{secrets.token_hex(2)}"


@contextmanager
def _locked(folder: Path, about: dict[str, Any]) -> Iterator[None]:
    """Keep other searches out. Raises UserError if one is in, or if this is another's folder."""
    file = folder / SEARCH
    if file.exists():
        require_same_search(RunDirectory(folder).read_json(file), about, folder)
    elif folder.exists() and not (folder.is_dir() and {*folder.iterdir()} <= {folder / LOCK}):
        raise UserError(f"--dir={folder}: holds something else; choose a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"--dir={folder}: another minigpt tune works there; stop it first"
        ) from None
    shutil.rmtree(folder / RAY, ignore_errors=True)  # of a killed search
    try:
        yield
    finally:
        shutil.rmtree(folder / RAY, ignore_errors=True)
        found = RunDirectory(folder).read_json(file) if file.exists() else {}
        if found.get("status") == "running":  # nothing that is known ended it
            write_json(file, found | {"status": "failed"})
        lock.release()
        if not found:  # it never began
            (folder / LOCK).unlink(missing_ok=True)
            with suppress(OSError):
                folder.rmdir()


class Search:
    """One search in its folder, from what earlier calls left there to best.yaml."""

    def __init__(
        self,
        overrides: list[str],
        options: TuneOptions,
        space: Space,
        config: Config,
        folder: Path,
        about: dict[str, Any],
        earlier: list[TrialRecord],
    ) -> None:
        self.overrides, self.options, self.space = overrides, options, space
        self.config, self.folder, self.about = config, folder, about
        self.max_steps = config.trainer.max_steps
        self.earlier = earlier
        self.ended = [record for record in earlier if record.ended(options.scheduler)]
        self.unfinished = [record for record in earlier if not record.ended(options.scheduler)]
        self.grid = space.grid() if space.all_of_it(options) else None
        self.total = options.count if self.grid is None else len(self.grid)
        self.display = SearchDisplay(options, self.total, self.max_steps, self.ended)
        self.stop = Stop()
        self.started = time.perf_counter()

    def run(self) -> None:
        """Train what is left to train, then say what came out."""
        options, say = self.options, self.display.line
        search = options.search if self.grid is None else "every combination"
        say(
            f"search     {search}, {options.scheduler}, {self.total} trials of "
            f"{self.max_steps} steps for the least {options.metric}"
        )
        left = self.total - len(self.ended)
        if left > 0:
            with ray_session(options.address, options.at_a_time, left) as share:
                write_json(self.folder / SEARCH, self.about | {"status": "running"})
                say(f"trials     {share.jobs} at a time, {share.threads} threads each")
                say(f"folder     {self.folder}")
                if self.earlier:
                    ended, unfinished = len(self.ended), len(self.unfinished)
                    say(f"goes on    {ended} trials have ended, {unfinished} had begun")
                self._train(left, share)
        if self.stop.number is None:
            self._settle()
        self._conclude()
        if self.stop.number is not None:
            name = signal.Signals(self.stop.number).name
            say(f"stopped by {name}, trials saved; go on with: {self._command()}")
            raise Interrupted(self.stop.number)

    def _train(self, left: int, share: Share) -> None:
        """Have Ray Tune run the trials that are left."""
        from ray import tune
        from ray.tune.search.basic_variant import BasicVariantGenerator

        options, job = self.options, self._job(share)
        study = Study(self.space, options, self.ended)
        numbers = itertools.count(max((record.number for record in self.earlier), default=-1) + 1)
        planned = self._planned(study, numbers)
        param_space: dict[str, Any] = {"job": asdict(job)}
        if options.scheduler == "pbt":  # Ray Tune's takes no searcher
            param_space |= {"run": tune.choice([name for name, _ in planned]), **self.space.domains}
            points = [{"run": name, **values} for name, values in planned]
            searcher: Any = BasicVariantGenerator(points_to_evaluate=points)
        else:
            searcher = Proposals(study, options.metric, planned, numbers)
        stop_file = self.folder / STOP_FILE  # trials see it, save and end
        with warnings.catch_warnings(), stop_signals(self.stop, lambda _: stop_file.touch()):
            warnings.simplefilter("ignore")
            self.display.start()
            try:
                tune.run(  # and no Tuner, which pickles all of this into the folder
                    Trial,
                    name=RAY,
                    storage_path=str(self.folder),
                    config=param_space,
                    resources_per_trial={"cpu": share.cpus, "gpu": share.gpus},
                    num_samples=left,
                    search_alg=searcher,
                    scheduler=build_scheduler(
                        options, self.space, job, self.max_steps, self.earlier
                    ),
                    trial_name_creator=lambda trial: trial.config["run"],
                    stop=_stopper(self.stop),
                    verbose=0,
                    callbacks=[self.display],
                    max_failures=RESTARTS,
                    raise_on_failed_trial=False,
                    checkpoint_config=tune.CheckpointConfig(num_to_keep=KEPT),
                )
            finally:
                self.display.stop()

    def _job(self, share: Share) -> Job:
        space, config = self.space, self.config
        own = []
        if not space.fixes("data.dir"):  # another machine may have another default
            own.append(quoted(f"data.dir={Path(config.data.dir).expanduser().absolute()}"))
        if not space.fixes("trainer.threads") and "trainer.threads" not in space.domains:
            own.append(f"trainer.threads={share.threads}")
        if config.group is None:
            own.append(quoted(f"group={self.folder.name}"))
        return Job(
            folder=str(self.folder),
            working_directory=str(Path.cwd()),
            fixed=[*space.fixed, *own],
            command=["minigpt", "tune", *self.overrides],
            metric=self.options.metric,
            eval_every=config.trainer.eval_every,
            population=self.options.scheduler == "pbt",
        )

    def _planned(self, study: Study, numbers: Iterator[int]) -> list[tuple[str, Values]]:
        """Trials whose values are known now: begun ones, then those of a grid or a population."""
        population = self.options.scheduler == "pbt"
        new: list[Values] = []
        if self.grid is not None:
            known = [record.values for record in self.earlier]
            new = [values for values in self.grid if values not in known]
        elif population:
            new = [study.ask().params for _ in range(self.total - len(self.earlier))]
        return [
            *((record.name, record.values) for record in self.unfinished),
            *((trial_name(next(numbers), values, population), values) for values in new),
        ]

    def _settle(self) -> None:
        """Call those stopped that were paused when the search ended."""
        for record in read_trials(self.folder, self.options.metric):
            if record.status == "paused":
                run = RunDirectory(self.folder / record.name)
                write_json(run.result, run.read_json(run.result) | {"status": "stopped"})

    def _conclude(self) -> None:
        """Write tune.json and best.yaml, and print what came out."""
        display, metric = self.display, self.options.metric
        records = read_trials(self.folder, metric)
        best, saved = best_of(records), saving(records, self.max_steps)
        found = {
            "status": "finished" if self.stop.number is None else "interrupted",
            "provenance": provenance(["minigpt", "tune", *self.overrides]),
            "max_steps": self.max_steps,
            "seconds": time.perf_counter() - self.started,  # of this call
            "saving": asdict(saved),
            "best": None if best is None else best.to_dict(),
            "trials": [record.to_dict() for record in records],
        }
        write_json(self.folder / SEARCH, self.about | found)
        display.results(records)
        if best is not None:
            save_best(self.folder, best)
            display.end(self.folder, best, saved)
        elif self.stop.number is None:
            errors = [record.error for record in records if record.error] + display.errors
            why = errors[0] if errors else f"ask Ray with {TRACEBACK}=1"
            raise Failure(f"{self.folder}: no trial came to a {metric}; the first said: {why}")

    def _command(self) -> str:
        """The command that goes on with this search."""
        options = self.options
        flags: dict[str, Any] = {**options.identity, "--trials": options.trials}
        flags |= {"--jobs": options.jobs, "--address": options.address, "--dir": self.folder}
        given = [f"{flag} {shlex.quote(str(v))}" for flag, v in flags.items() if v is not None]
        return " ".join(["minigpt tune", *map(shlex.quote, self.overrides), *given])


def _stopper(stop: Stop) -> Any:
    """What Ray Tune asks whether to end."""
    from ray.tune.stopper import Stopper

    class Requested(Stopper):
        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            return False

        def stop_all(self) -> bool:
            return stop.number is not None

    return Requested()


def save_best(folder: Path, best: TrialRecord) -> None:
    """Write best.yaml: the best trial's config, outside the search's group."""
    config = load_config(RunDirectory(folder / best.name).config)
    group = None if config.group == folder.name else config.group
    save_config(replace(config, group=group), folder / BEST)
