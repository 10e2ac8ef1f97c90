"""Run a search: `minigpt tune` from the search space to the best config."""

from __future__ import annotations

import itertools
import shlex
import signal
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.search.basic_variant import BasicVariantGenerator
from ray.tune.stopper import Stopper

from minigpt.config.compose import require_labels
from minigpt.config.overrides import quoted
from minigpt.config.schema import Config
from minigpt.errors import TRACEBACK, Failure
from minigpt.files import write_json
from minigpt.run.directory import SEARCH, RunDirectory
from minigpt.run.provenance import provenance
from minigpt.train.compilation import Planned, choose_compilation, vocabulary_size
from minigpt.train.control import Interrupted, StopRequest, stop_signals
from minigpt.tune.folder import RAY, locked, new_folder, save_best
from minigpt.tune.options import TuneOptions
from minigpt.tune.proposals import Proposals, Study
from minigpt.tune.records import best_of, read_trials, saving, trial_name
from minigpt.tune.schedulers import build_scheduler
from minigpt.tune.session import Share, ray_session
from minigpt.tune.show import SearchDisplay
from minigpt.tune.space import Space, Values, check_space, parse_space, warmup_warning
from minigpt.tune.trial import STOP_FILE, Trial, TrialSettings

MAX_RESTARTS = 3  # per trial whose worker was lost
PAUSING = ("hyperband", "pbt")  # schedulers that pause trials
KEPT_CHECKPOINTS = 4  # per member of a population: others may read an earlier one


def search(overrides: list[str], options: TuneOptions) -> None:
    """Start or resume a search; write best.yaml and tune.json into its folder.

    Raises UserError for wrong input, before Ray starts; Interrupted after a signal, with all trials
    saved; Failure if no trial was evaluated.
    """
    space = parse_space(overrides)
    configs = check_space(space, options)
    folder = (options.directory or new_folder(space)).absolute()
    require_labels(replace(configs[0], group=configs[0].group or folder.name))
    identity = {"overrides": sorted(overrides), "options": options.identity}
    with locked(folder, identity):
        (folder / STOP_FILE).unlink(missing_ok=True)
        Search(overrides, options, space, configs, folder, identity).run()


@dataclass
class Search:
    """A search in its folder. `configs`: one for each value of the space.

    `earlier`: trials from before the search was resumed.
    """

    overrides: list[str]
    options: TuneOptions
    space: Space
    configs: list[Config]
    folder: Path
    identity: dict[str, Any]

    def __post_init__(self) -> None:
        options, self.config = self.options, self.configs[0]
        self.max_steps = self.config.trainer.max_steps
        self.earlier = read_trials(self.folder, options.metric)
        self.ended = [record for record in self.earlier if record.ended(options.scheduler)]
        self.unfinished = [record for record in self.earlier if record not in self.ended]
        self.grid = self.space.grid() if self.space.is_exhaustive(options) else None
        self.total = options.count if self.grid is None else len(self.grid)
        self.display = SearchDisplay(options, self.total, self.max_steps, self.ended)
        saved = RunDirectory(self.folder).read_optional_json(self.folder / SEARCH)
        known = "compiled" in saved  # a resumed search computes alike
        self.identity["compiled"] = saved["compiled"] if known else self._compiled()
        self.stop = StopRequest()
        self.start_time = time.perf_counter()

    def _compiled(self) -> bool:
        """Return whether trials with trainer.compile=auto are compiled, as if none ended early."""
        automatic = [config for config in self.configs if config.trainer.compile == "auto"]
        if not automatic:
            return False
        n_vocab = vocabulary_size(self.config)
        trials = itertools.islice(itertools.cycle(automatic), self.total)
        return choose_compilation([Planned(config, n_vocab) for config in trials]).compiled

    def run(self) -> None:
        """Train the remaining trials, write the results and print them."""
        search = self.options.search if self.grid is None else "every combination"
        self.display.line(
            f"search     {search}, {self.options.scheduler}, {self.total} trials of "
            f"{self.max_steps} steps, minimising {self.options.metric}"
        )
        warning = warmup_warning(self.configs, self.options.scheduler)
        if warning is not None:
            self.display.line(f"warning    {warning}")
        remaining = self.total - len(self.ended)
        if remaining > 0:
            jobs = self.options.concurrency
            with self.display.view, ray_session(self.options.address, jobs, remaining) as share:
                write_json(self.folder / SEARCH, self.identity | {"status": "running"})
                line = self.display.line
                line(f"trials     {share.jobs} at a time, {self._threads(share)} each")
                line(f"folder     {self.folder}")
                if self.earlier:
                    counts = f"{len(self.ended)} trials have ended, {len(self.unfinished)} are"
                    line(f"resumed    {counts} unfinished")
                self._train(remaining, share)
        if self.stop.number is None:
            self._mark_paused_as_stopped()
        self._conclude()
        if self.stop.number is not None:
            name = signal.Signals(self.stop.number).name
            self.display.line(f"stopped by {name}, trials saved; resume with: {self._command()}")
            raise Interrupted(self.stop.number)

    def _train(self, remaining: int, share: Share) -> None:
        """Run the remaining trials with Ray Tune, until all have ended or a signal arrives."""
        options, settings = self.options, self._settings(share)
        searcher, config = self._searcher()
        stop_file = self.folder / STOP_FILE  # trials poll it
        with (
            warnings.catch_warnings(),
            stop_signals(self.stop, lambda _: stop_file.touch()),
        ):
            warnings.simplefilter("ignore")
            scheduler = build_scheduler(options, self.space, settings, self.max_steps, self.earlier)
            tune.run(  # tune.Tuner would pickle its arguments into the folder
                Trial,
                name=RAY,
                storage_path=str(self.folder),
                config={"settings": asdict(settings), **config},
                resources_per_trial={"cpu": share.cpus, "gpu": share.gpus},
                num_samples=remaining,
                search_alg=searcher,
                scheduler=scheduler,
                trial_name_creator=lambda trial: trial.config["run"],
                stop=_StopRequested(self.stop),
                verbose=0,
                callbacks=[self.display],
                max_failures=MAX_RESTARTS,
                raise_on_failed_trial=False,
                # A paused trial holds its run's lock until its worker exits.
                reuse_actors=options.scheduler not in PAUSING,
                checkpoint_config=tune.CheckpointConfig(num_to_keep=KEPT_CHECKPOINTS),
            )

    def _threads(self, share: Share) -> str:
        """Return the number of threads of a trial, as text."""
        if "trainer.threads" in self.space.domains:
            return "trainer.threads as searched"
        given = self.config.trainer.threads
        threads = share.threads if given is None else given
        return f"{threads} threads" if threads > 1 else "1 thread"

    def _settings(self, share: Share) -> TrialSettings:
        space, config = self.space, self.config
        added = []
        if not space.fixes("trainer.threads") and "trainer.threads" not in space.domains:
            added.append(f"trainer.threads={share.threads}")
        if config.group is None:
            added.append(quoted(f"group={self.folder.name}"))
        return TrialSettings(
            folder=str(self.folder),
            working_directory=str(Path.cwd()),
            fixed=[*space.fixed, *added],
            command=["minigpt", "tune", *self.overrides],
            metric=self.options.metric,
            eval_every=config.trainer.eval_every,
            population=self.options.scheduler == "pbt",
            compiled=self.identity["compiled"],
        )

    def _searcher(self) -> tuple[Any, dict[str, Any]]:
        """Return Ray Tune's searcher, and the search space in Ray Tune's config."""
        study = Study(self.space, self.options, self.ended)
        numbers = itertools.count(max((record.number for record in self.earlier), default=-1) + 1)
        planned = self._planned(study, numbers)
        if self.options.scheduler != "pbt":
            return Proposals(study, self.options.metric, planned, numbers), {}
        # Population based training in Ray Tune accepts no other searcher.
        points = [{"run": name, **values} for name, values in planned]
        names = tune.choice([name for name, _ in planned])
        return BasicVariantGenerator(points_to_evaluate=points), {"run": names} | self.space.domains

    def _planned(self, study: Study, numbers: Iterator[int]) -> list[tuple[str, Values]]:
        """Return names and values of planned trials: unfinished ones, then a grid or population."""
        population = self.options.scheduler == "pbt"
        new: list[tuple[int, Values]] = []
        if self.grid is not None:
            known = [record.values for record in self.earlier]
            new = [(next(numbers), values) for values in self.grid if values not in known]
        elif population:
            drawn = itertools.islice(numbers, self.total - len(self.earlier))
            new = [(number, study.ask(number).params) for number in drawn]
        return [
            *((record.name, record.values) for record in self.unfinished),
            *((trial_name(number, values, population), values) for number, values in new),
        ]

    def _mark_paused_as_stopped(self) -> None:
        """Set the status of trials that were paused when the search ended."""
        for record in read_trials(self.folder, self.options.metric):
            if record.status == "paused":
                run = RunDirectory(self.folder / record.name)
                run.write(run.result, run.read_json(run.result) | {"status": "stopped"})

    def _conclude(self) -> None:
        """Write tune.json and best.yaml, and print the results."""
        metric = self.options.metric
        records = read_trials(self.folder, metric)
        best, saved = best_of(records), saving(records, self.max_steps)
        results = {
            "status": "finished" if self.stop.number is None else "interrupted",
            "provenance": provenance(["minigpt", "tune", *self.overrides]),
            "max_steps": self.max_steps,
            "seconds": time.perf_counter() - self.start_time,  # in this call
            "saving": asdict(saved),
            "best": best and best.to_dict(),
            "trials": [record.to_dict() for record in records],
        }
        write_json(self.folder / SEARCH, self.identity | results)
        self.display.results(records)
        if best is not None:
            save_best(self.folder, best)
            self.display.end(self.folder, best, saved)
        elif self.stop.number is None:
            errors = [record.error for record in records if record.error] + self.display.errors
            error = next(iter(errors), f"set {TRACEBACK}=1 to see Ray's")
            raise Failure(f"{self.folder}: no trial has a {metric}; first error: {error}")

    def _command(self) -> str:
        """Return the command that resumes this search."""
        options = self.options
        flags: dict[str, Any] = {**options.identity, "--trials": options.trials}
        flags |= {"--jobs": options.jobs, "--address": options.address, "--dir": self.folder}
        given = [f"{flag} {shlex.quote(str(v))}" for flag, v in flags.items() if v is not None]
        return " ".join(["minigpt tune", *map(shlex.quote, self.overrides), *given])


@dataclass(eq=False)
class _StopRequested(Stopper):
    """Ray Tune's condition for ending the search."""

    stop: StopRequest

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.stop.number is not None
