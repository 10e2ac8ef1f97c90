"""Which runs a sweep is made of, where each lies, and which of them are done already."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minigpt.config.compose import to_config
from minigpt.config.groups import file_name
from minigpt.config.overrides import Composed
from minigpt.config.schema import Config, request_sha256
from minigpt.data.corpus import CORPORA, DataConfig
from minigpt.errors import UserError
from minigpt.files import write_json
from minigpt.run.directory import SWEEP, RunDirectory
from minigpt.run.provenance import same_code
from minigpt.sweep.match import Matcher, SweepConfig

# What a quantity is matched by, so that it cannot vary as well.
MATCHED_BY = {"parameters": "model.n_embd"}


@dataclass(frozen=True)
class Job:
    """One run of a sweep. `config` is what it is to train, as asked for, or what is wrong with it.

    `matched`: what was changed to make designs comparable. `done`: before this sweep began.
    """

    overrides: list[str]
    path: Path
    config: Config | UserError
    matched: dict[str, Any] | None = None
    done: bool = False

    @property
    def label(self) -> str:
        """What it is called in its sweep."""
        return self.path.name

    @property
    def max_steps(self) -> int:
        """Steps it is to train."""
        return 0 if isinstance(self.config, UserError) else self.config.trainer.max_steps

    @property
    def run(self) -> RunDirectory:
        """Its run directory."""
        return RunDirectory(self.path)


def plan(
    jobs: list[list[str]],
    directory: Path,
    options: SweepConfig,
    compose: Callable[[list[str]], Composed],
) -> list[Job]:
    """The runs of a sweep, in order, each once.

    A job whose config is none has what is wrong with it in its place. Raises UserError where that
    is so of all, or of one with `fail_fast`.
    """
    _require_free_to_match(options.match, jobs)
    places = Places(directory)
    matcher: Matcher | None = None
    planned: dict[Path, Job] = {}
    for overrides, label in zip(jobs, labels(jobs), strict=True):
        try:
            config = _typed(compose(overrides), overrides, directory.name, options)
            matcher = matcher or Matcher(options.match, config, overrides)
            config, matched = matcher.match(config)
            path, done = places.of(label, config)
            job = Job(overrides, path, config, matched, done)
        except UserError as error:
            if options.fail_fast:
                raise
            free = (path for path in _numbered(directory / label) if path not in planned)
            job = Job(overrides, next(free), error)
            places.occupy(job.path)
        planned.setdefault(job.path, job)
    found = list(planned.values())
    for job in found:
        if isinstance(job.config, UserError) and all(j.max_steps == 0 for j in found):
            raise job.config
    return found


def _require_free_to_match(quantity: str | None, jobs: list[list[str]]) -> None:
    key = MATCHED_BY.get(quantity or "", "trainer.max_steps")
    values = {o for job in jobs for o in job if o.partition("=")[0] == key}
    if quantity is not None and len(values) > 1:
        raise UserError(f"sweep.match={quantity}: sets {key}, which this sweep varies; drop one")


def labels(jobs: list[list[str]]) -> list[str]:
    """What tells each job from the others: its values of the keys that vary, by short names."""
    columns = [column for column in zip(*jobs, strict=True) if len(set(column)) > 1]
    keys = [column[0].partition("=")[0].lstrip("+~") for column in columns]
    short = [key.rpartition(".")[2] for key in keys]
    names = [last if short.count(last) == 1 else key for key, last in zip(keys, short, strict=True)]
    values = zip(*([o.partition("=")[2] for o in column] for column in columns), strict=True)
    found = [
        file_name("_".join(f"{name}={value}" for name, value in zip(names, row, strict=True)))
        for row in values
    ]
    return found or [file_name("_".join(job)) for job in jobs]


def write_plan(
    directory: Path, planned: list[Job], command: list[str], options: SweepConfig
) -> None:
    """Write sweep.json, which keeps what earlier commands put into the same folder."""
    file = directory / SWEEP
    jobs = {job.path.name: {"overrides": job.overrides, "path": job.path.name} for job in planned}
    if file.exists():
        before = RunDirectory(directory).read_json(file).get("jobs")
        listed = before if isinstance(before, list) else []
        jobs = {j["path"]: j for j in listed if isinstance(j, dict) and "path" in j} | jobs
    content = {"command": command, "name": options.name, "match": options.match}
    write_json(file, content | {"jobs": list(jobs.values())})


def _typed(composed: Composed, overrides: list[str], group: str, options: SweepConfig) -> Config:
    if composed.resume is not None:
        raise UserError(f"resume={composed.resume}: resumes one run; leave -m out")
    ignored = {*composed.swept} - {o.partition("=")[0].lstrip("+~") for o in overrides}
    if ignored:  # a preset among several: Hydra expands those of the whole command alone
        raise UserError(
            f"{' '.join(overrides)}: would not sweep over {', '.join(sorted(ignored))}; name one "
            f"preset or experiment a command"
        )
    config = to_config(composed)
    config = replace(config, group=group if config.group is None else config.group)
    if options.name is not None and options.name not in config.tags:
        config.tags.append(options.name)
    # A worker may have another working directory.
    paths = {
        key: os.path.abspath(os.path.expanduser(getattr(config.data, key)))
        for key in ("dir", "path")
        if hasattr(config.data, key)
    }
    return replace(config, data=replace(config.data, **paths))


def _numbered(path: Path) -> Iterator[Path]:
    yield path
    for number in itertools.count(2):
        yield path.with_name(f"{path.name}_{number}")


class Places:
    """Where the runs of a sweep lie: nothing of another config, code or text is written over."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._taken: dict[Path, str] = {}  # by this sweep, with the digest of what was asked for
        self._texts: dict[str, str] = {}  # digests of texts, by where they come from

    def occupy(self, path: Path) -> None:
        """Keep a folder for a job without a config."""
        self._taken[path] = ""

    def of(self, label: str, config: Config) -> tuple[Path, bool]:
        """The first folder of a label that is free or holds this very run; whether it is done.

        Raises UserError where the text cannot be had.
        """
        asked, text = request_sha256(config), self._text_sha256(config.data)
        for path in _numbered(self._directory / label):
            run = RunDirectory(path)
            started = run.config.exists()
            if self._taken.get(path, asked) == asked and (
                not started or self._is_of(run, asked, text)
            ):
                self._taken[path] = asked
                return path, started and run.status == "finished"
        raise AssertionError

    def _is_of(self, run: RunDirectory, asked: str, text: str) -> bool:
        """Whether a run was asked for the same, of the same code and the same text."""
        manifest = run.read_json(run.manifest)
        return (
            manifest.get("request_sha256") == asked
            and same_code(manifest)
            and manifest.get("data_sha256") == text
        )

    def _text_sha256(self, data: DataConfig) -> str:
        key = repr(data)
        if key not in self._texts:
            self._texts[key] = CORPORA.build(data).corpus().sha256
        return self._texts[key]
