"""From YAML and the command line to one typed object. Nothing below this file knows omegaconf."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from minigpt.config.hydra_main import compose_config
from minigpt.config.overrides import parse_override
from minigpt.config.schema import REGISTRIES, Config
from minigpt.errors import UserError, did_you_mean, first_line, require
from minigpt.files import write_text

T = TypeVar("T")


# What a resumed run may change: its end (to which schedules stretch) and what it writes on the way.
RESUME_MAY_CHANGE = (
    *("trainer.max_steps", "trainer.patience", "trainer.threads"),
    *("trainer.log_every", "trainer.checkpoint_every", "trainer.sample_every"),
)

# Values of the command line that are no part of a run's config.
OF_THE_COMMAND = ("resume", "sweep")

# What may be changed of a trained run when it is used.
TRAINED_MAY_CHANGE = ("model.positional.", "model.backend.name")
TRAINED_KEEPS = ("model.positional.name", "model.positional.")


def to_config(composed: DictConfig) -> Config:
    """Convert a composed config to typed objects, once, at the door.

    Each variant's section takes the options dataclass its `name` registers. Raises UserError
    with the full key for an unknown key, a wrong type, a value out of range or a combination
    that cannot be honoured.
    """
    try:
        schema = _schema(Config, composed, prefix="")
        config = OmegaConf.to_object(OmegaConf.merge(schema, composed))
    except OmegaConfBaseException as error:
        raise UserError(_one_line(error, composed)) from None
    assert isinstance(config, Config)
    _require_finite(config.to_dict(), prefix="")
    return config


def to_options(cls: type[T], composed: DictConfig, key: str) -> T:
    """A section of a composed config that is no part of a run's, as a typed object."""
    section = composed.get(key) or {}
    try:
        schema = OmegaConf.create({key: OmegaConf.structured(cls)})
        options = OmegaConf.to_object(OmegaConf.merge(schema, {key: section}))
    except OmegaConfBaseException as error:
        raise UserError(_one_line(error, composed)) from None
    assert isinstance(options, dict)
    return options[key]


def _require_finite(values: dict[str, Any], prefix: str) -> None:
    for name, value in values.items():
        if isinstance(value, dict):
            _require_finite(value, f"{prefix}{name}.")
        elif isinstance(value, float):
            why = "must be a finite number"
            require(math.isfinite(value), f"{prefix}{name}", value, why)


def composed_config(overrides: list[str]) -> Config:
    """The typed config that command-line overrides give. Raises UserError."""
    composed = compose_config(overrides)
    OmegaConf.set_struct(composed, False)
    for key in OF_THE_COMMAND:
        composed.pop(key)
    return to_config(composed)


def load_config(path: Path, changes: Sequence[str] = ()) -> Config:
    """Read the config.yaml of a run directory, with `changes` of the form KEY=VALUE.

    Raises UserError if the file is missing or broken, and for what a trained run cannot change.
    """
    saved = _read_yaml(path)
    keys = [change.partition("=")[0] for change in changes]
    for key, change in zip(keys, changes, strict=True):
        if "=" not in change or not key.startswith(TRAINED_MAY_CHANGE) or key in TRAINED_KEEPS:
            raise UserError(
                f"--set {change}: of a trained run the options of its positional scheme and "
                f"model.backend.name may be changed, as model.positional.scaling=linear; train "
                f"anew for anything else"
            )
        if keys.count(key) > 1:
            raise UserError(f"--set {change}: {key} is given twice; leave one of them out")
        saved = OmegaConf.merge(saved, OmegaConf.from_dotlist([change]))
    assert isinstance(saved, DictConfig)
    try:
        return to_config(saved)
    except UserError as error:
        source = "--set" if changes else f"{path}:"
        raise UserError(f"{source} {error}") from None


def resumed_config(path: Path, composed: DictConfig, overrides: list[str]) -> Config:
    """A run's own config with the few changes a resumed run may make, taken from `composed`.

    Raises UserError for an override of anything else.
    """
    saved = _read_yaml(path)
    for override in overrides:
        key = parse_override(override).key
        if key == "resume":
            continue
        if key not in RESUME_MAY_CHANGE:
            raise UserError(
                f"{override}: a resumed run keeps its config and may change only "
                f"{', '.join(RESUME_MAY_CHANGE)}; for anything else start a new run"
            )
        OmegaConf.update(saved, key, OmegaConf.select(composed, key))
    return to_config(saved)


def _read_yaml(path: Path) -> DictConfig:
    """A run's config.yaml without the lines that make it re-runnable by Hydra."""
    try:
        saved = OmegaConf.load(path)
    except FileNotFoundError:
        raise UserError(f"{path}: not there; is this a run directory?") from None
    except Exception as error:
        raise UserError(f"{path}: not readable YAML ({first_line(error)})") from None
    if not isinstance(saved, DictConfig):
        raise UserError(f"{path}: not a config that minigpt wrote")
    saved.pop("defaults", None)
    saved.pop("resume", None)
    if "model" in saved and "attention" not in saved.model:  # a run from before there was a choice
        saved.model.attention = {"name": "full"}
    return saved


def save_config(config: Config, path: Path) -> None:
    """Write config.yaml: every value resolved, re-runnable with --config-dir and --config-name."""
    directory = path.parent.resolve()
    header = (
        "# Every value of this run, resolved. Run it again, with other values if you like:\n"
        f"#   minigpt train --config-dir '{directory}' --config-name {path.stem} seed=2\n"
    )
    content = {"defaults": ["runtime", "_self_"], "resume": None, **config.to_dict()}
    write_text(path, header + OmegaConf.to_yaml(OmegaConf.create(content)))


def _schema(cls: type, composed: DictConfig, prefix: str) -> DictConfig:
    """A typed, empty config of a dataclass; a variant takes the options its name registers."""
    schema = OmegaConf.structured(cls)
    for name, kind in get_type_hints(cls).items():
        if not dataclasses.is_dataclass(kind):
            continue
        key = f"{prefix}{name}"
        if key in REGISTRIES:
            kind = REGISTRIES[key].options(OmegaConf.select(composed, f"{key}.name"))
        assert isinstance(kind, type)
        schema[name] = _schema(kind, composed, f"{key}.")
    return schema


def _one_line(error: OmegaConfBaseException, composed: DictConfig) -> str:
    """omegaconf's several lines as 'key=value: why.' with a suggestion for unknown keys."""
    key = error.full_key or ""
    why = first_line(error)
    unknown = re.match(r"Key '(.*)' not in '(.*)'", why)
    if unknown:
        siblings = [field.name for field in dataclasses.fields(error.object_type or Config)]
        return f"{key}: no such option.{did_you_mean(unknown[1], siblings)}"
    if isinstance(error, MissingMandatoryValue):
        return f"{key}: missing; give it a value, as {key}=..."
    value = OmegaConf.select(composed, key, throw_on_missing=False) if key else None
    if value is None and why.startswith(("Incompatible value", "field")):
        return f"{key}=null: needs a value"
    if "is not a ListConfig" in why:
        return f"{key}={value}: must be a list; use {key}=[{value}]"
    converted = re.match(r"Value '(.*)' of type '.*' could not be converted to (\w+)", why)
    if converted:
        return f"{key}={converted[1]}: not a valid {converted[2].lower()}"
    return f"{key}={value}: {why}"
