"""Hydra under `minigpt train`: where configs are, argument order, and errors in one line.

Imports no torch, so that --help, --cfg and shell completion answer at once.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, cast

import hydra
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from minigpt.config.overrides import parse_override
from minigpt.errors import UserError, did_you_mean, first_line

FLAGS_WITH_VALUE = (
    *("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn"),
    *("--config-dir", "-cd", "--info", "-i", "--experimental-rerun"),
)
# The extras that bring Hydra's launchers.
LAUNCHERS = {"joblib": "joblib", "ray": "ray"} | dict.fromkeys(
    ("submitit_local", "submitit_slurm"), "slurm"
)
ROOT = "train"  # configs/train.yaml


def config_directory() -> Path:
    """The folder of YAML files: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parent.parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def register_resolvers() -> None:
    """Offer the interpolations that configs/runtime.yaml names."""
    OmegaConf.register_new_resolver(
        "short_id", lambda: secrets.token_hex(2), use_cache=True, replace=True
    )
    OmegaConf.register_new_resolver("run_label", _run_label, replace=True)


def register_designs() -> None:
    """Offer model=NAME for every positional scheme: the common design with that scheme."""
    for file in (config_directory() / "positional").glob("*.yaml"):
        ConfigStore.instance().store(
            group="model",
            name=file.stem,
            package="_global_",
            node={
                "defaults": ["/model_base", {"override /positional": file.stem}, "_self_"],
                "model": {"name": file.stem},
            },
        )


def _run_label(name: str | None, design: str, overrides: list[str]) -> str:
    """What a run is called: its name, else its design and other choices."""
    groups = set(config_groups()) - {"model", "logger", "trainer"}
    choices = [o.value for o in map(parse_override, overrides) if o.key in groups]
    return file_name(name or "_".join([design, *choices]))


def file_name(text: str) -> str:
    """A text as a file name: no separators, and no more bytes than a file system takes."""
    name = re.sub(r"[^\w.=+-]+", "_", text).encode("utf-8")[:100].decode("utf-8", "ignore")
    return name.strip("_") or "run"


def run_hydra(task: Callable[[DictConfig], Any], arguments: list[str]) -> None:
    """Hand arguments to Hydra, flags before overrides: it runs `task`, or with -m a sweep.

    Raises UserError for whatever Hydra refuses.
    """
    register_resolvers()
    register_designs()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors reach us instead of printing and exiting
    arguments = flags_first(arguments)
    parser = get_args_parser()
    parser.error = _refuse  # one line instead of the usage
    parsed = parser.parse_args(arguments)
    readable = [quoted(override) for override in parsed.overrides]
    _require_choices(readable)
    flags = arguments[: len(arguments) - len(readable)]
    if parsed.multirun and not any(o.startswith("hydra.sweep.dir=") for o in readable):
        from minigpt.sweep.directory import sweep_directory

        # An override, so that it is the same in every process of the sweep.
        root = {"--config-name": parsed.config_name, "--config-dir": parsed.config_dir}
        other = [f"{flag}={value}" for flag, value in root.items() if value is not None]
        folder = sweep_directory([*other, *readable], list(_swept_keys(readable)))
        readable.append(f"hydra.sweep.dir={folder}")
    sys.argv = [sys.argv[0], *flags, *readable]
    app = hydra.main(version_base="1.3", config_path=str(config_directory()), config_name=ROOT)
    try:
        app(task)()
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error, readable)) from None


def compose_config(overrides: list[str]) -> DictConfig:
    """The config that overrides give, without running anything. Raises UserError."""
    register_resolvers()
    register_designs()
    try:
        with initialize_config_dir(str(config_directory()), version_base="1.3"):
            return compose(ROOT, [quoted(override) for override in overrides])
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error, overrides)) from None


def swept_by_experiment(overrides: list[str]) -> list[str]:
    """Keys that a preset or an experiment among the overrides has a sweep vary."""
    with initialize_config_dir(str(config_directory()), version_base="1.3"):
        composed = compose(ROOT, [quoted(o) for o in overrides], return_hydra_config=True)
    return list(composed.hydra.sweeper.params or {})


def _require_choices(overrides: list[str]) -> None:
    """Raise UserError for a choice of a config group that is none, or is made by another key."""
    groups = {section_of(group): group for group in config_groups()}
    for override in overrides:
        parsed = parse_override(override)
        key, value = parsed.key, parsed.value
        if key == "hydra/sweeper":
            why = "another sweeper knows no runs that are done; leave it out"
            raise UserError(f"{override}: {why}, and search with `minigpt tune`")
        if "null" in value.split(",") and key in set(config_groups()) - {"experiment"}:
            known = ", ".join(choices(key))
            raise UserError(f"{override}: needs a choice; use one of {known}")
        section = key.removesuffix(".name")
        group = groups.get(section)
        if group is None or key == group:
            continue
        brings = set(choices(group).get(value, ())) - {"name"}
        if key == section or brings:
            why = f", which brings {', '.join(sorted(brings))}" if brings else ""
            raise UserError(f"{override}: is a choice of a config group; use {group}={value}{why}")


def _refuse(message: str) -> NoReturn:
    raise UserError(f"minigpt train: {message}; see minigpt train --help")


def quoted(override: str) -> str:
    """The override with its value in quotes, if Hydra's grammar does not take it as it is."""
    key, separator, value = override.partition("=")
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        if separator and value:
            escaped = value.replace("\\", "\\\\").replace("'", "\\'")
            return f"{key}='{escaped}'"
    return override


def combinations(overrides: list[str]) -> list[list[str]]:
    """The overrides of each job that a sweep over them has. Raises UserError."""
    parser = OverridesParser.create()
    try:
        parsed = parser.parse_overrides([quoted(override) for override in overrides])
        (jobs,) = BasicSweeper.split_arguments(parsed, None)
    except HydraException as error:
        raise UserError(explain(error, overrides)) from None
    return [list(job) for job in jobs]


def _swept_keys(overrides: list[str]) -> Iterator[str]:
    for override in overrides:
        with contextlib.suppress(HydraException):  # Hydra will refuse it
            parsed = OverridesParser.create().parse_override(override)
            if parsed.is_sweep_override():
                yield parsed.key_or_group


def flags_first(arguments: list[str]) -> list[str]:
    """The same arguments with flags before overrides: argparse stops reading flags between them."""
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


def explain(error: Exception, overrides: list[str]) -> str:
    """Hydra's several lines as 'key=value: why. Did you mean ...?', of what was asked for."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        options = error.options or []
        if not group:
            return f"--config-name={name}: no such config in {config_directory()} or --config-dir"
        if group == "hydra/launcher" and name in LAUNCHERS:
            return f"{group}={name}: not installed; pip install 'minigpt[{LAUNCHERS[name]}]'"
        return (
            f"{group}={name}: no such {group}.{did_you_mean(name, options)} "
            f"Known: {', '.join(options)}."
        )
    if isinstance(error, OverrideParseException):
        return f"{error.override}: not understood; write key=value, special characters in quotes"
    message = str(error).strip()
    unknown = re.match(r"Could not override '(.*)'", message)
    if unknown:
        return _unknown_key(unknown[1], overrides)
    ambiguous = re.match(r"Ambiguous value for argument '(.*)'", message)
    if ambiguous:
        return f"{ambiguous[1]}: several values; add -m to run each of them"
    cause = error.__cause__
    return first_line(error) + (f" ({first_line(cause)})" if cause is not None else "")


def _unknown_key(key: str, overrides: list[str]) -> str:
    if key in config_groups():  # the root config has them all, so this is another
        return f"{key}: a saved config takes values (key=value) and no choice of a config group"
    section, _, option = key.rpartition(".")
    owners = [
        f"{group}={name}"
        for group in config_groups()
        if section and section_of(group) == section
        for name, values in choices(group).items()
        if option in values
    ]
    if owners:
        return f"{key}: an option of {' or '.join(owners)}; choose that too"
    chosen = [
        f"{override.key}={override.value.split(',')[0]}"
        for override in map(parse_override, overrides)
        if override.key in config_groups()
    ]
    known = [*config_groups(), *_keys(compose_config(chosen))]
    ending = [name for name in known if name.endswith(f".{key}")]
    guess = f" Did you mean {' or '.join(ending)}?" if ending else did_you_mean(key, known)
    return f"{key}: no such option or config group.{guess} See them all: minigpt train --cfg job"


def config_groups() -> list[str]:
    """Names of the config groups."""
    return sorted(path.name for path in config_directory().iterdir() if path.is_dir())


def choices(group: str) -> dict[str, DictConfig]:
    """The values that each choice of a config group sets, by its name."""
    files = sorted((config_directory() / group).glob("*.yaml"))
    return {file.stem: cast(DictConfig, OmegaConf.load(file)) for file in files}


def section_of(group: str) -> str:
    """Where the values of a config group stand in the config; _global_ for all over it."""
    file = min((config_directory() / group).glob("*.yaml"))
    package = re.search(r"^# @package (\S+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return group if package is None else package[1]


def _keys(config: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in config:
        yield f"{prefix}{key}"
        if OmegaConf.is_dict(config._get_node(key)):
            yield from _keys(config[key], f"{prefix}{key}.")
