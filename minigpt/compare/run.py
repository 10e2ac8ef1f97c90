"""Run a comparison: search every design alike, then train the best of each with fresh seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from minigpt.compare.options import CompareOptions
from minigpt.compare.page import write_comparison
from minigpt.compare.search import (
    FIRST_SEARCH_SEED,
    DesignSearch,
    diverged,
    points,
    probes,
    trial,
)
from minigpt.compare.space import Axis, axes_of
from minigpt.config.hydra_main import Multirun, compose_multirun
from minigpt.config.overrides import one_line_errors
from minigpt.config.pairs import as_typed, described_values, is_below, parse_override
from minigpt.config.schema import Config, request_sha256, require_one_task
from minigpt.console import PipeConsole
from minigpt.errors import Failure, UserError, require
from minigpt.files import try_read_json, write_json
from minigpt.report.comparison import count
from minigpt.run.directory import COMPARISON, FINAL, TRIALS, RunDirectory
from minigpt.run.initial import new_config
from minigpt.run.provenance import provenance
from minigpt.sweep.directory import folder_of
from minigpt.sweep.match import SweepConfig
from minigpt.sweep.plan import PlannedJob, labels, plan
from minigpt.sweep.run import run_jobs
from minigpt.train.control import Interrupted

if TYPE_CHECKING:
    from minigpt.compare.tuning import Tuning

TEST_FRACTION = "data.test_fraction=0.5"  # unless given
# Options of one run or of a sweep, which a comparison sets itself.
REFUSED = ("resume", "sweep.dry_run", "hydra.run", "hydra.sweep", "hydra.mode")


def run_comparison(overrides: list[str], options: CompareOptions) -> None:
    """Run what is missing of a comparison, and write and print its report.

    Raises UserError for wrong input before any run starts, Interrupted after a signal, and Failure
    if runs failed other than by diverging.
    """
    for override in overrides:
        if is_below(parse_override(override).key, REFUSED):
            raise UserError(f"{override}: a comparison makes its own runs; leave it out")
    budget = options.budget if options.search == "grid" else None
    designs, axes = designs_of(overrides), axes_of(options.space, budget)
    varied = [
        parse_override(column[0]) for column in zip(*designs, strict=True) if len({*column}) > 1
    ]
    require_not_searched(designs[0], axes, [override.key for override in varied])
    label = "_".join(override.short_key for override in varied)
    folder = options.directory or folder_of("compare", [*overrides, *options.identity], label)
    identity = {"overrides": sorted(overrides), "options": options.identity}
    comparison = Comparison(overrides, designs, options, folder.absolute(), identity)
    comparison.check(axes)
    with locked(comparison.folder, identity):
        try:
            comparison.run(axes)
        except Interrupted:
            comparison.line("stopped, runs saved; the same command continues")
            raise


def designs_of(overrides: list[str]) -> list[list[str]]:
    """Return the overrides of each design. Seeds of a preset are dropped. Raises UserError."""
    for override in overrides:
        if parse_override(override).key == "seed":
            raise UserError(f"{override}: a comparison has its own seeds; use --seeds N")
    with one_line_errors(overrides):
        jobs = compose_multirun(overrides).jobs
    keys = {parse_override(override).key for override in jobs[0]}
    added = [] if "data.test_fraction" in keys else [TEST_FRACTION]
    designs: list[list[str]] = []
    for job in jobs:
        design = [*(one for one in job if parse_override(one).key != "seed"), *added]
        if design not in designs:
            designs.append(design)
    if len(designs) < 2:
        raise UserError("nothing to compare: give a key several values, such as model=rope,alibi")
    return designs


def require_not_searched(design: list[str], axes: Sequence[Axis], varied: Sequence[str]) -> None:
    """Raise UserError if designs set an option that is searched. `varied`: where they differ."""
    searched = {parse_override(axis.key).key for axis in axes}
    for override in design:
        key, value = parse_override(override)
        if key in searched and key in varied:
            raise UserError(
                f"--space {key}=...: is what the designs differ in; search other options"
            )
        if key in searched:
            raise UserError(
                f"{override}: is searched; leave it out, or use --space {key}={value},..."
            )


@contextmanager
def locked(folder: Path, identity: dict[str, Any]) -> Iterator[None]:
    """Create the folder, and lock it while the block runs.

    Raises UserError if it has another comparison or other files, or is locked.
    """
    require(folder.is_dir() or not folder.exists(), "--dir", folder, "is a file; name a folder")
    saved = RunDirectory(folder).read_optional_json(folder / COMPARISON)
    lock = folder / ".lock"
    if not saved and folder.exists() and {*folder.iterdir()} - {lock}:
        raise UserError(f"--dir={folder}: contains other files; choose a new folder")
    for key, value in identity.items() if saved else ():
        why = f"contains a comparison with other {key} ({' '.join(saved.get(key) or ['none'])})"
        require(saved.get(key) == value, "--dir", folder, f"{why}; choose a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=0):
            yield
    except Timeout:
        why = "another minigpt compare is running there; stop it first"
        raise UserError(f"--dir={folder}: {why}") from None


@dataclass
class Comparison:
    """A comparison in its folder. All that it knows is in the results of its runs."""

    overrides: list[str]
    designs: list[list[str]]
    options: CompareOptions
    folder: Path
    identity: dict[str, Any]

    def __post_init__(self) -> None:
        self.names = labels(self.designs)
        self.console = PipeConsole(highlight=False)
        self.searched: list[PlannedJob] = []
        flags = [*self.options.identity, f"--seeds={self.options.seeds}"]
        self.command = ["minigpt", "compare", *self.overrides, *flags]

    @cached_property
    def configs(self) -> list[Config]:
        """The config of each design. Raises UserError."""
        multirun = self.multirun(TRIALS)
        return [self.config(multirun, design) for design in self.designs]

    def line(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, soft_wrap=True, markup=False)

    def show_space(self, axes: Sequence[Axis]) -> None:
        """Print the values of each axis, and whether any number between them may be tried."""
        for axis in axes:
            values = [", ".join(map(as_typed, axis.values(config))) for config in self.configs]
            between = self.options.search == "tpe" and axis.continuous
            text = "; ".join(dict.fromkeys(values)) + (", or between" if between else "")
            self.line(f"space      {axis.key}: {text}")

    def check(self, axes: Sequence[Axis]) -> None:
        """Compose each design with each value of an axis.

        Raises UserError if one is invalid, and if two designs are the same with it.
        """
        require_one_task(self.configs)
        multirun = self.multirun(TRIALS)
        names: dict[str, str] = {}
        every = [*self.configs]
        for name, design, config in zip(self.names, self.designs, self.configs, strict=True):
            for point in probes(axes, config):
                tried = self.config(multirun, [*design, *point.overrides])
                every.append(tried)
                tried = replace(tried, model=replace(tried.model, name=""))
                same = names.setdefault(request_sha256(tried), name)
                if same != name:
                    at = described_values(point.values)
                    raise UserError(f"{same} and {name}: are the same design with {at}")
        require_one_task(every)
        if self.options.search == "tpe":
            for search in self.tunings(axes):
                search.check()

    def run(self, axes: list[Axis]) -> None:
        """Search, widen the space once if a best value is at its edge, train, and report."""
        if not (self.folder / COMPARISON).exists():
            write_json(self.folder / COMPARISON, self.identity)
        self.line(f"compare    {len(self.designs)} designs: {', '.join(self.names)}")
        if not all(config.data.test_fraction for config in self.configs):
            why = "the report is of the text that chose the values, with other seeds"
            self.line(f"warning    data.test_fraction=0: {why}")
        search = self.search if self.options.search == "grid" else self.tune
        searches = search(axes)
        edges = [{search.edges.get(axis.key) for search in searches} - {None} for axis in axes]
        wider = [axis.widened(edge) for axis, edge in zip(axes, edges, strict=True)]
        if wider != axes:
            at = [axis.key for axis, new in zip(axes, wider, strict=True) if axis != new]
            self.line(f"widened    for every design: a best value of {' and '.join(at)} is an edge")
            searches = search(wider)
        if not any(search.best for search in searches):
            raise Failure(f"{self.folder / TRIALS}: every run diverged; lower --space optimizer.lr")
        runs = self.train(searches)  # only these: the folder may have some of earlier code
        write_json(self.folder / COMPARISON, self.identity | self.results(searches))
        self.line("")
        page, *others = write_comparison(searches, runs, self.folder, self.console)
        self.line(f"wrote {page}, {', '.join(path.name for path in others)}")

    # ---- the two sweeps ----

    def search(self, axes: Sequence[Axis]) -> list[DesignSearch]:
        """Run the trials that are missing, and return all of them by design."""
        multirun = self.multirun(TRIALS)
        by_design = [points(axes, config) for config in self.configs]
        seeds = range(FIRST_SEARCH_SEED, FIRST_SEARCH_SEED + self.options.n_search_seeds)
        trials = [
            [*design, *point.overrides, f"seed={seed}"]
            for design, grid in zip(self.designs, by_design, strict=True)
            for point in grid
            for seed in seeds
        ]
        n_trials, n_final = len(by_design[0]), self.options.seeds
        self.line(
            f"search     {len(trials)} runs: {count(n_trials, 'trial')} of each design, "
            f"{count(len(seeds), 'seed')}; then {n_final * len(self.designs)}: "
            f"{count(n_final, 'fresh seed')} of each"
        )
        self.show_space(axes)
        jobs = self.planned(multirun, trials)
        steps = sum(config.trainer.max_steps for config in self.configs) * n_final
        firsts = jobs[:: n_trials * len(seeds)]  # the final runs compute as the search does
        self.run_missing(multirun, jobs, firsts * n_final, steps)
        self.searched = jobs
        rows = iter(jobs)
        return [
            DesignSearch(
                name,
                design,
                axes,
                [trial(point, [next(rows) for _ in seeds]) for point in grid],
            )
            for name, design, grid in zip(self.names, self.designs, by_design, strict=True)
        ]

    def tune(self, axes: Sequence[Axis]) -> list[DesignSearch]:
        """Run what is missing of a search by Ray Tune for each design; see `search`.

        Its trials are added to those of an earlier, narrower space.
        """
        from minigpt.compare.tuning import run_searches

        tunings, n_final = self.tunings(axes), self.options.seeds
        self.line(
            f"search     {count(self.options.budget, 'trial')} of each design by Ray Tune; then "
            f"{n_final * len(tunings)} runs: {count(n_final, 'fresh seed')} of each"
        )
        self.show_space(axes)
        run_searches(tunings)
        return [DesignSearch(t.label, t.design, axes, t.trials()) for t in tunings]

    def tunings(self, axes: Sequence[Axis]) -> list[Tuning]:
        """Return the search by Ray Tune of each design."""
        from minigpt.compare.tuning import Tuning

        folder, budget = self.folder / TRIALS, self.options.budget
        each = zip(self.names, self.designs, self.configs, strict=True)
        return [Tuning(name, design, config, axes, folder, budget) for name, design, config in each]

    def train(self, searches: list[DesignSearch]) -> dict[str, list[Path]]:
        """Train the best values of each design with fresh seeds; return the runs by label."""
        multirun = self.multirun(FINAL)
        chosen = [(search, search.best.point) for search in searches if search.best is not None]
        for search, point in chosen:
            edges = "".join(f"; {key} is the {edge} tried" for key, edge in search.edges.items())
            self.line(f"chosen     {search.label}: {described_values(point.values)}{edges}")
        seeds = range(1, 1 + self.options.seeds)
        runs = [
            [*search.overrides, *point.overrides, f"seed={seed}"]
            for search, point in chosen
            for seed in seeds
        ]
        each = [(search.label, point) for search, point in chosen for _ in seeds]
        jobs = [
            replace(job, facts=job.facts | {"tuned": point.values})
            for job, (_, point) in zip(self.planned(multirun, runs), each, strict=True)
        ]
        self.run_missing(multirun, jobs, self.searched)
        by_label: dict[str, list[Path]] = {}
        for job, (label, _) in zip(jobs, each, strict=True):
            by_label.setdefault(label, []).append(job.path)
        return by_label

    def multirun(self, phase: str) -> Multirun:
        """Return the sweep of a phase, without its jobs."""
        return compose_multirun([*self.overrides, f"hydra.sweep.dir={self.folder / phase}"])

    def config(self, multirun: Multirun, design: list[str]) -> Config:
        """Return the config of a design. Raises UserError."""
        with one_line_errors(design):
            return new_config(multirun.compose(design))

    def planned(self, multirun: Multirun, jobs: list[list[str]]) -> list[PlannedJob]:
        """Return the runs of a phase. Those that diverged count as finished. Raises UserError."""
        options = multirun.section(SweepConfig, "sweep")
        with one_line_errors(self.overrides):
            planned = plan(jobs, Path(multirun.directory), options, multirun.compose)
        if len(planned) < len(jobs):
            raise UserError(f"{' '.join(self.overrides)}: two designs are the same; leave one out")
        for job in planned:
            if isinstance(job.config, UserError):
                raise job.config
        ended = [job.finished_before or diverged(try_read_json(job.run.result)) for job in planned]
        return [replace(j, finished_before=e) for j, e in zip(planned, ended, strict=True)]

    def run_missing(
        self,
        multirun: Multirun,
        jobs: list[PlannedJob],
        others: Sequence[PlannedJob],
        later_steps: int = 0,
    ) -> None:
        """Run the jobs that have not ended. Raises Failure if one failed but did not diverge."""
        if any(not job.finished_before for job in jobs):
            options = multirun.section(SweepConfig, "sweep")
            run_jobs(multirun, jobs, self.command, options, others, later_steps)
        for job in jobs:
            result = try_read_json(job.run.result)
            if not job.run.finished and not diverged(result):
                error = result.get("error", result.get("status", "not started"))
                raise Failure(f"{job.path}: {error}; the same command runs what is missing")

    def results(self, searches: list[DesignSearch]) -> dict[str, Any]:
        """Return the content of compare.json, besides its identity."""
        return {
            "provenance": provenance(self.command),
            "designs": [
                {
                    "label": search.label,
                    "overrides": search.overrides,
                    "chosen": search.best and search.best.point.values,
                    "edges": search.edges,
                    "trials": [
                        {
                            "values": trial.point.values,
                            "val_loss": trial.loss if math.isfinite(trial.loss) else None,
                            "seconds": trial.seconds,
                        }
                        for trial in search.trials
                    ],
                }
                for search in searches
            ],
        }
