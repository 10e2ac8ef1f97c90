"""Run Hydra's own main, for flags such as --cfg, and for sweeps with -m.

Only this module imports private parts of Hydra.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import hydra
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from minigpt.config.groups import ROOT, config_directory, register
from minigpt.config.overrides import (
    Composed,
    composed_run,
    jobs_of,
    one_line_errors,
    quoted,
    require_choices,
    swept_keys,
)
from minigpt.config.pairs import refusal, without_dashes
from minigpt.config.renamed import require_current_overrides
from minigpt.errors import UserError, require
from minigpt.files import user_path

T = TypeVar("T")

DRY_RUN = "sweep.dry_run"  # the option that -m --cfg job sets

FLAGS_WITH_VALUE = (
    *("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn"),
    *("--config-dir", "-cd", "--info", "-i", "--experimental-rerun"),
)
HELP_FLAGS = ("help", "json", "config_dir", "overrides")  # what --help takes


def needs_hydra_main(arguments: list[str]) -> bool:
    """Return whether arguments contain a flag or a Hydra option other than hydra.run.dir."""
    return any(
        argument.startswith("-")
        or (argument.lstrip("+~").startswith("hydra") and not argument.startswith("hydra.run.dir="))
        for argument in arguments
    )


def hydra_main(
    arguments: list[str],
    train: Callable[[Composed], None],
    sweep_directory: Callable[[list[str], list[str]], Path],
) -> None:
    """Run Hydra's main: it calls `train` with the composed config, or with -m runs a sweep.

    `sweep_directory` returns the folder of a sweep from its overrides and the keys that vary.
    Raises UserError for every error of Hydra.
    """
    register()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise errors instead of printing them and exiting
    logging.raiseExceptions = False  # Hydra logs --info, perhaps to a pipe that was closed
    arguments = flags_first(arguments)
    parsed = _parser().parse_args(arguments)
    overrides = [quoted(override) for override in parsed.overrides]
    require_current_overrides(overrides)
    require_choices(overrides)
    flags = arguments[: len(arguments) - len(overrides)]
    require_one_command(parsed)
    root = {"--config-name": parsed.config_name, "--config-dir": parsed.config_dir}
    other = [f"{flag}={value}" for flag, value in root.items() if value is not None]
    with one_line_errors(overrides):
        if parsed.multirun and not any(o.startswith("hydra.sweep.dir=") for o in overrides):
            # An override, so that it is the same in every process of the sweep.
            folder = sweep_directory([*other, *overrides], swept_keys(overrides))
            overrides.append(f"hydra.sweep.dir={folder}")
        if parsed.multirun and parsed.cfg:
            flags, overrides = ["-m", *other], [*overrides, f"++{DRY_RUN}=true"]
        if parsed.hydra_help:
            overrides = []  # which may have several values, and change nothing in the help
        sys.argv = [sys.argv[0], *flags, *overrides]
        app = hydra.main(version_base="1.3", config_path=str(config_directory()), config_name=ROOT)
        errors: list[Exception] = []
        app(lambda composed: _call(train, composed, errors))()
    if errors:
        raise errors[0]


def require_one_command(parsed: Namespace) -> None:
    """Raise UserError for flags that Hydra refuses together. -m with --cfg job lists the jobs."""
    if parsed.json:
        raise UserError("minigpt train: --json belongs to --help; add that")
    given = {
        "--run": parsed.run,
        "-m": parsed.multirun,
        "--cfg": parsed.cfg is not None,
        "--info": parsed.info is not None,
        "--shell-completion": parsed.shell_completion,
    }
    commands = [flag for flag, is_given in given.items() if is_given]
    if commands == ["-m", "--cfg"]:
        if parsed.cfg != "job" or parsed.resolve or parsed.package:
            raise UserError("minigpt train: -m lists its jobs with --cfg job and no other flag")
    elif len(commands) > 1:
        raise UserError(f"minigpt train: {' and '.join(commands)}: give only one of them")
    if parsed.resolve and parsed.cfg is None:
        raise UserError("minigpt train: --resolve belongs to --cfg job; add that")


def _call(train: Callable[[Composed], None], composed: DictConfig, errors: list[Exception]) -> None:
    """Remove the empty folders that Hydra made, call `train`, and store its exception.

    A run makes its folder when it begins, so that a signal before that leaves nothing. An
    exception that reaches Hydra would be printed by it.
    """
    settings = HydraConfig.get()
    assert settings.mode == RunMode.RUN  # jobs of a sweep are trained by minigpt.sweep
    output, here = Path(settings.runtime.output_dir), Path.cwd()
    with contextlib.suppress(OSError):
        for folder in (output, output.parent):
            if folder not in (here, *here.parents):
                folder.rmdir()
    try:
        train(composed_run(composed, settings, str(output)))
    except Exception as error:
        errors.append(error)


@dataclass(frozen=True)
class HelpRequest:
    """What --help asks for. `config_dir`: another folder of choices."""

    topics: list[str]
    as_json: bool
    config_dir: Path | None


def as_overrides(arguments: list[str]) -> list[str]:
    """Return the arguments with overrides as KEY=VALUE, also those written as --KEY=VALUE."""
    return without_dashes(arguments, _parser()._option_string_actions)


def help_request(arguments: list[str]) -> HelpRequest | None:
    """Return what --help asks for, or None without it. Raises UserError for other flags."""
    if not {"-h", "--help"} & set(arguments):
        return None
    parser = _parser()
    parsed = parser.parse_args(flags_first(arguments))
    others = [
        action.option_strings[0]
        for action in parser._actions
        if action.dest not in HELP_FLAGS
        and getattr(parsed, action.dest, action.default) != action.default
    ]
    if others:
        raise UserError(
            f"minigpt train: --help and {', '.join(others)}: leave out one or the other"
        )
    if parsed.config_dir is None:
        return HelpRequest(parsed.overrides, parsed.json, None)
    folder = user_path("--config-dir", parsed.config_dir)
    require(folder.is_dir(), "--config-dir", folder, "no such folder; give one with YAML files")
    return HelpRequest(parsed.overrides, parsed.json, folder)


def _parser() -> ArgumentParser:
    """Return Hydra's parser, which prints one line instead of the usage for an error."""
    parser = get_args_parser()
    parser.allow_abbrev = False  # Hydra would answer to --hel with its own help
    parser.add_argument("--json", action="store_true")
    parser.error = partial(_refuse, flags=list(parser._option_string_actions))
    return parser


def _refuse(message: str, flags: list[str]) -> NoReturn:
    raise UserError(refusal("minigpt train", message, flags, takes_overrides=True))


def flags_first(arguments: list[str]) -> list[str]:
    """Move flags before overrides: argparse does not accept flags between overrides."""
    flags, overrides = [], []
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("-"):
            overrides.append(argument)
            continue
        flags.append(argument)
        if argument in FLAGS_WITH_VALUE:
            value = next(rest, None)
            flags.extend([] if value is None else [value])
    return [*flags, *overrides]


# ---- sweeps ----


@dataclass(frozen=True)
class Multirun:
    """A sweep requested with -m: the overrides of its jobs, and how to launch them.

    `launcher`: the class name of Hydra's launcher; `settings`: its config as plain values.
    """

    jobs: list[list[str]]
    directory: str
    launcher: str
    settings: dict[str, Any]
    _context: HydraContext
    _config: DictConfig

    def section(self, cls: type[T], key: str) -> T:
        """Return a section of the config as a typed object. Raises UserError."""
        from minigpt.config.compose import to_options

        return to_options(cls, self._config, key)

    def compose(self, job: list[str]) -> Composed:
        """Compose the config of one job. Raises HydraException."""
        composed = self._context.config_loader.load_sweep_config(self._config, job)
        return composed_run(composed, composed.hydra, self.directory)

    def launch(
        self, task: TaskFunction, jobs: list[list[str]], settings: dict[str, Any] | None = None
    ) -> None:
        """Call `task` once per job, in processes that the launcher chooses.

        `settings` are merged into the launcher's config. Raises the launcher's exceptions.
        """
        launcher = self._config.hydra.launcher
        with open_dict(launcher):
            launcher.merge_with(settings or {})
        chosen = Plugins.instance().instantiate_launcher(
            hydra_context=self._context, task_function=task, config=self._config
        )
        for job in chosen.launch(jobs, initial_job_idx=0):
            _ = job.return_value  # raises exceptions that the launcher caught


def multirun(
    context: HydraContext, config: DictConfig, params: dict[str, str], arguments: list[str]
) -> Multirun:
    """Expand a sweep over `arguments` and the `params` of an experiment. Raises UserError."""
    of_experiment = [f"{key}={value}" for key, value in params.items()]
    require_current_overrides(of_experiment)
    parser = OverridesParser.create(config_loader=context.config_loader)
    jobs = jobs_of(parser.parse_overrides([*of_experiment, *arguments]))
    settings = OmegaConf.to_container(config.hydra.launcher, resolve=True)
    assert isinstance(settings, dict)
    target = settings.pop("_target_")
    return Multirun(
        jobs=jobs,
        directory=config.hydra.sweep.dir,
        launcher=target.rpartition(".")[2],
        settings={str(key): value for key, value in settings.items()},
        _context=context,
        _config=config,
    )


def compose_multirun(overrides: list[str]) -> Multirun:
    """Return the sweep that `minigpt train -m` would run. Raises UserError."""
    register()
    overrides = [quoted(override) for override in overrides]
    require_current_overrides(overrides)
    require_choices(overrides)
    directory = str(config_directory())
    with one_line_errors(overrides), initialize_config_dir(directory, version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        config = loader.load_configuration(ROOT, overrides, RunMode.MULTIRUN)
        context = HydraContext(config_loader=loader, callbacks=Callbacks(config))
        params, arguments = config.hydra.sweeper.params or {}, list(config.hydra.overrides.task)
        return multirun(context, config, params, arguments)


def job_number() -> int:
    """Return the number of the job that runs in this process."""
    return HydraConfig.get().job.num
