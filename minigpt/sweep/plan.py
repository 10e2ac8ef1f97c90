"""Plan the runs of a sweep: config, directory, and whether the run has already finished."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from minigpt.config.compose import require_labels
from minigpt.config.groups import file_name
from minigpt.config.overrides import Composed
from minigpt.config.pairs import parse_override
from minigpt.config.schema import Config, request_sha256
from minigpt.data.corpus import CORPORA
from minigpt.errors import UserError
from minigpt.run.directory import RunDirectory
from minigpt.run.initial import new_config
from minigpt.run.load import weights_used
from minigpt.run.provenance import same_code
from minigpt.run.sweep_file import Job
from minigpt.sweep.match import Matcher, SweepConfig

# The key set to match each quantity; the sweep must not vary it.
MATCHED_BY = {"parameters": "model.n_embd"}


@dataclass(frozen=True)
class PlannedJob(Job):
    """A job of this sweep, with its config or the error in its overrides.

    `facts`: added to the manifest of the run. `finished_before`: an earlier command finished it.
    """

    config: Config | UserError
    facts: dict[str, Any] = field(default_factory=dict)
    finished_before: bool = False

    @property
    def max_steps(self) -> int:
        """Steps of a full run, 0 for a job without a config."""
        return 0 if isinstance(self.config, UserError) else self.config.trainer.max_steps


def plan(
    jobs: list[list[str]],
    directory: Path,
    options: SweepConfig,
    compose: Callable[[list[str]], Composed],
) -> list[PlannedJob]:
    """Return the runs of a sweep in order, each once.

    Raises UserError if the overrides of all jobs are invalid, or with `fail_fast` those of one.
    """
    _require_not_swept(options.match, jobs)
    directories = JobDirectories(directory)
    matcher: Matcher | None = None
    planned: dict[Path, PlannedJob] = {}
    for overrides, label in zip(jobs, labels(jobs), strict=True):
        try:
            config = _typed(compose(overrides), overrides, directory.name, options)
            matcher = matcher or Matcher(options.match, config, overrides)
            config, matched = matcher.match(config)
            path, finished = directories.assign(label, config)
            facts = {} if matched is None else {"match": matched}
            job = PlannedJob(overrides, path, config, facts, finished)
        except UserError as error:
            if options.fail_fast:
                raise
            free = (path for path in _numbered(directory / label) if path not in planned)
            job = PlannedJob(overrides, next(free), error)
            directories.requests[job.path] = ""
        planned.setdefault(job.path, job)
    errors = [job.config for job in planned.values() if isinstance(job.config, UserError)]
    if errors and len(errors) == len(planned):
        raise errors[0]
    return list(planned.values())


def _require_not_swept(quantity: str | None, jobs: list[list[str]]) -> None:
    """Raise UserError if the sweep varies the key that matching sets."""
    if quantity is None:
        return
    key = MATCHED_BY.get(quantity, "trainer.max_steps")
    overrides = {parse_override(override) for job in jobs for override in job}
    if len([override for override in overrides if override.key == key]) > 1:
        raise UserError(f"sweep.match={quantity}: sets {key}, which this sweep varies; drop one")


def labels(jobs: list[list[str]]) -> list[str]:
    """Return a name for each job: its values of the keys that vary, with short keys if unique.

    If only `experiment` varies, it is the name of the experiment, without its folder if unique.
    """
    columns = [[*map(parse_override, c)] for c in zip(*jobs, strict=True) if len(set(c)) > 1]
    if not columns:
        return [file_name("_".join(job)) for job in jobs]
    if [column[0].key for column in columns] == ["experiment"]:
        experiments = [override.unquoted for override in columns[0]]
        names = [name.rpartition("/")[2] for name in experiments]
        return [*map(file_name, names if len(set(names)) == len(set(experiments)) else experiments)]
    short = [column[0].short_key for column in columns]
    keys = [c[0].short_key if short.count(c[0].short_key) == 1 else c[0].key for c in columns]
    rows = [zip(keys, row, strict=True) for row in zip(*columns, strict=True)]
    texts = ([f"{key}={o.unquoted}" for key, o in row] for row in rows)
    return [file_name("_".join(text)) for text in texts]


def _typed(composed: Composed, overrides: list[str], group: str, options: SweepConfig) -> Config:
    if composed.resume is not None:
        raise UserError(f"resume={composed.resume}: resumes one run; leave -m out")
    ignored = {*composed.swept} - {parse_override(override).key for override in overrides}
    if ignored:  # one of several presets: Hydra expands only a preset of the whole command
        raise UserError(
            f"{' '.join(overrides)}: would ignore the swept keys {', '.join(sorted(ignored))}; run "
            f"each sweep preset or experiment in its own command"
        )
    config = new_config(composed)
    config = replace(config, group=group if config.group is None else config.group)
    if options.name is not None and options.name not in config.tags:
        config.tags.append(options.name)
    require_labels(config)  # of the group and the tag that were added
    return config


def _numbered(path: Path) -> Iterator[Path]:
    """Yield a path, then the same with _2, _3, ..."""
    yield path
    for number in itertools.count(2):
        yield path.with_name(f"{path.name}_{number}")


class JobDirectories:
    """Assigns run directories; a run of another config, code, text or init is never overwritten."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        # request_sha256 of the job that has a path; "" for one without a config.
        self.requests: dict[Path, str] = {}
        self._texts: dict[str, str] = {}  # sha256 of texts by their DataConfig
        # sha256 by option, by the paths of init and teacher
        self._weights: dict[tuple[str | None, str | None], dict[str, str]] = {}

    def assign(self, label: str, config: Config) -> tuple[Path, bool]:
        """Return the first directory that is free or contains this run, and whether it finished.

        Raises UserError if the text, or the weights it starts from, are unavailable.
        """
        request, data = request_sha256(config), repr(config.data)
        if data not in self._texts:
            self._texts[data] = CORPORA.build(config.data).corpus().sha256
        sources = (config.init, config.teacher)
        if sources not in self._weights:
            used = weights_used(config)
            self._weights[sources] = {key: weights.sha256 for key, weights in used.items()}
        inputs = {"request_sha256": request, "data_sha256": self._texts[data]}
        for path in _numbered(self.directory / label):
            run = RunDirectory(path)
            started = run.config.exists()
            is_same = not started or _is_same_run(run, inputs, self._weights[sources])
            if self.requests.get(path, request) == request and is_same:
                self.requests[path] = request
                return path, started and run.finished
        raise AssertionError


def _is_same_run(run: RunDirectory, inputs: dict[str, str], weights: dict[str, str]) -> bool:
    """Whether a run has the same code, inputs by key of the manifest, and weights by option."""
    manifest = run.read_json(run.manifest)
    return (
        same_code(manifest)
        and all(manifest.get(key) == value for key, value in inputs.items())
        and all(manifest.get(key, {}).get("sha256") == value for key, value in weights.items())
    )
