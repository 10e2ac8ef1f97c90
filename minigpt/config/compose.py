"""From composed overrides to one typed Config."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any, TypeVar, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from minigpt.config.foreign import our_option
from minigpt.config.overrides import (
    INTERPOLATION_ERRORS,
    Composed,
    compose_overrides,
    explain_interpolation,
)
from minigpt.config.pairs import flat
from minigpt.config.renamed import require_current_keys
from minigpt.config.schema import CHOICES_OF_COMPILE, REGISTRIES, Config
from minigpt.errors import UserError, did_you_mean, first_line, require
from minigpt.logger import LOGGERS
from minigpt.objective.base import CausalConfig

T = TypeVar("T")

# Keys of the command line that are not part of a run's config.
NOT_SAVED = ("resume", "sweep")


def composed_config(overrides: list[str]) -> Config:
    """Compose command-line overrides into a typed config. Raises UserError."""
    return to_config(compose_overrides(overrides))


def to_config(composed: Composed) -> Config:
    """Return the composed config as typed objects.

    Raises UserError with the full key for an unknown or renamed key, a wrong type, a value out of
    range, an unsupported combination or an option without effect.
    """
    why = "only train, compare and tune start from trained weights; leave it out"
    require(composed.init is None, "init", composed.init, why)
    keys = [str(key) for key in composed.values if key not in NOT_SAVED]
    config = typed_config(OmegaConf.masked_copy(composed.values, keys))
    require_labels(config)
    require_effect(config)
    return config


def require_effect(config: Config) -> None:
    """Raise UserError for an option that training would ignore; saved configs may have some."""
    trainer = config.trainer
    why = (
        "counts evaluations, and trainer.eval_every=null evaluates only after the last step; give "
        "trainer.eval_every a number of steps, or use trainer.patience=null"
    )
    used = trainer.patience is None or trainer.eval_every is not None
    require(used, "trainer.patience", trainer.patience, why)
    objective, default = config.objective, CausalConfig()
    if isinstance(objective, CausalConfig):
        for name in ("temperature", "weight"):
            value, why = getattr(objective, name), "is of distillation; give objective.teacher"
            used = objective.teacher is not None or value == getattr(default, name)
            require(used, f"objective.{name}", value, why)


def require_labels(config: Config) -> None:
    """Raise UserError for a group, a tag or a project that the tracker never accepts."""
    logger = LOGGERS.variant(config.logger.name)
    logger.check_labels(config.logger, config.group, config.tags)


def to_options(cls: type[T], values: DictConfig, key: str) -> T:
    """Return a section that is not part of a run's config as a typed object."""
    section = values.get(key) or {}
    try:
        schema = OmegaConf.create({key: OmegaConf.structured(cls)})
        options = OmegaConf.to_object(OmegaConf.merge(schema, {key: section}))
    except OmegaConfBaseException as error:
        raise UserError(_one_line(error, values)) from None
    assert isinstance(options, dict)
    return options[key]


def typed_config(values: DictConfig) -> Config:
    """Convert to Config. The `name` in a section selects the dataclass of its options."""
    require_current_keys(plain_values(values))
    try:
        schema = _schema(Config, values, prefix="")
        config = OmegaConf.to_object(OmegaConf.merge(schema, values))
    except OmegaConfBaseException as error:
        raise UserError(_one_line(error, values)) from None
    assert isinstance(config, Config)
    _require_valid(config.to_dict(), prefix="")
    _require_booleans(flat(config.to_dict()), flat(plain_values(values)))
    return config


def _require_booleans(typed: dict[str, Any], given: dict[str, Any]) -> None:
    """Raise UserError for a number where a boolean belongs, which OmegaConf would convert."""
    for key, value in typed.items():
        number = given.get(key)
        if isinstance(value, bool) and isinstance(number, int | float):
            require(isinstance(number, bool), key, number, "must be true or false")


def _require_valid(values: dict[str, Any], prefix: str) -> None:
    for name, value in values.items():
        if isinstance(value, dict):
            _require_valid(value, f"{prefix}{name}.")
        elif isinstance(value, float):
            why = "must be a finite number"
            require(math.isfinite(value), f"{prefix}{name}", value, why)
        for text in value if isinstance(value, list) else [value]:
            readable = str(text).encode("utf-8", "backslashreplace").decode("utf-8")
            why = "not UTF-8, which config.yaml is; write it in another way"
            require(str(text) == readable, f"{prefix}{name}", readable, why)


def plain_values(values: DictConfig) -> dict[str, Any]:
    """Return nested plain values; interpolations stay unresolved."""
    plain = OmegaConf.to_container(values)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _schema(cls: type, values: DictConfig, prefix: str) -> DictConfig:
    """Return the typed schema of a dataclass, including the registered options of each variant."""
    schema = OmegaConf.structured(cls)
    for name, kind in get_type_hints(cls).items():
        if not dataclasses.is_dataclass(kind):
            continue
        key = f"{prefix}{name}"
        if key in REGISTRIES:
            kind = REGISTRIES[key].options(OmegaConf.select(values, f"{key}.name"))
        assert isinstance(kind, type)
        schema[name] = _schema(kind, values, f"{key}.")
    return schema


def _one_line(error: OmegaConfBaseException, values: DictConfig) -> str:
    """Return OmegaConf's error as 'key=value: why', with a suggestion for an unknown key."""
    key = error.full_key or ""
    why = first_line(error)
    unknown = re.match(r"Key '(.*)' not in '(.*)'", why)
    if unknown:
        siblings = [field.name for field in dataclasses.fields(error.object_type or Config)]
        return f"{key}: no such option.{our_option(key) or did_you_mean(unknown[1], siblings)}"
    if isinstance(error, INTERPOLATION_ERRORS):
        return explain_interpolation(f"{key}={flat(plain_values(values)).get(key)}", error)
    if isinstance(error, MissingMandatoryValue):
        return f"{key}: missing; set it with {key}=VALUE"
    value = OmegaConf.select(values, key, throw_on_missing=False) if key else None
    if value is None and why.startswith(("Incompatible value", "field", "Value 'None' is")):
        return f"{key}=null: needs a value"
    if "is not a ListConfig" in why:
        return f"{key}={value}: must be a list; use {key}=[{value}]"
    if "Union[bool, str]" in why:
        names = f"must be true, false or a name; minigpt train --help {key} lists them"
        return f"{key}={value}: {CHOICES_OF_COMPILE if key == 'trainer.compile' else names}"
    if re.match("Cannot convert '(List|Dict)Config' to string", why):
        return f"{key}={value}: must be one value"
    converted = re.match(r"Value '(.*)' of type '.*' could not be converted to (\w+)", why)
    if converted:
        why = f"not a valid {converted[2].lower()}"
        if converted[2] == "Integer" and re.fullmatch(r"-?\d+\.0", converted[1]):
            why += "; for whole numbers write int(interval(LOW, HIGH))"
        return f"{key}={converted[1]}: {why}"
    return f"{key}={value}: {why}"
