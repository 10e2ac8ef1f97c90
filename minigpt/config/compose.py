"""From composed overrides or a saved config.yaml to one typed Config."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from minigpt.config.overrides import Composed, compose_overrides
from minigpt.config.pairs import parse_override
from minigpt.config.renamed import rename_keys, require_current_keys
from minigpt.config.schema import REGISTRIES, Config
from minigpt.errors import UserError, did_you_mean, first_line, require
from minigpt.files import write_text

T = TypeVar("T")


# What a resumed run may change: its length, which schedules scale to, and what it writes.
RESUME_MAY_CHANGE = (
    *("trainer.max_steps", "trainer.patience", "trainer.threads"),
    "trainer.guessing_patience",
    *("trainer.log_every", "trainer.checkpoint_every", "trainer.sample_every"),
)

# Keys of the command line that are not part of a run's config.
NOT_SAVED = ("resume", "sweep")

# What may be changed in the config of a trained run when it is loaded.
TRAINED_MAY_CHANGE = ("model.positional.", "model.backend.name")
TRAINED_KEEPS = ("model.positional.name", "model.positional.")


def composed_config(overrides: list[str]) -> Config:
    """Return the typed config that command-line overrides give. Raises UserError."""
    return to_config(compose_overrides(overrides))


def to_config(composed: Composed) -> Config:
    """Return the composed config as typed objects.

    Raises UserError with the full key for an unknown or renamed key, a wrong type, a value out of
    range or an unsupported combination.
    """
    keys = [str(key) for key in composed.values if key not in NOT_SAVED]
    return _typed(OmegaConf.masked_copy(composed.values, keys))


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


def _typed(values: DictConfig) -> Config:
    """Convert to Config. Each variant's section has the options that its `name` registers."""
    require_current_keys(_plain(values))
    try:
        schema = _schema(Config, values, prefix="")
        config = OmegaConf.to_object(OmegaConf.merge(schema, values))
    except OmegaConfBaseException as error:
        raise UserError(_one_line(error, values)) from None
    assert isinstance(config, Config)
    _require_finite(config.to_dict(), prefix="")
    return config


def _require_finite(values: dict[str, Any], prefix: str) -> None:
    for name, value in values.items():
        if isinstance(value, dict):
            _require_finite(value, f"{prefix}{name}.")
        elif isinstance(value, float):
            why = "must be a finite number"
            require(math.isfinite(value), f"{prefix}{name}", value, why)


def load_config(path: Path, changes: Sequence[str] = ()) -> Config:
    """Return the config.yaml of a run directory with `changes` of the form KEY=VALUE.

    Raises UserError if the file is missing or damaged, and for a change that the weights do not
    allow.
    """
    saved = _read_yaml(path)
    keys = [change.partition("=")[0] for change in changes]
    for key, change in zip(keys, changes, strict=True):
        if "=" not in change or not key.startswith(TRAINED_MAY_CHANGE) or key in TRAINED_KEEPS:
            raise UserError(
                f"--set {change}: a trained run can change only the options of its positional "
                f"scheme, as model.positional.scaling=linear, and model.backend.name; train a new "
                f"run for anything else"
            )
        if keys.count(key) > 1:
            raise UserError(f"--set {change}: {key} is given twice; leave one of them out")
        saved = OmegaConf.merge(saved, OmegaConf.from_dotlist([change]))
    assert isinstance(saved, DictConfig)
    try:
        return _typed(saved)
    except UserError as error:
        source = "--set" if changes else f"{path}:"
        raise UserError(f"{source} {error}") from None


def resumed_config(path: Path, composed: Composed) -> Config:
    """Return a saved config with the changes among RESUME_MAY_CHANGE that `composed` makes.

    Raises UserError for an override of any other key.
    """
    saved = _read_yaml(path)
    for override in composed.overrides:
        key = parse_override(override).key
        if key == "resume":
            continue
        if key not in RESUME_MAY_CHANGE:
            raise UserError(
                f"{override}: a resumed run keeps its config and may change only "
                f"{', '.join(RESUME_MAY_CHANGE)}; for anything else start a new run"
            )
        OmegaConf.update(saved, key, OmegaConf.select(composed.values, key))
    return _typed(saved)


def _read_yaml(path: Path) -> DictConfig:
    """Read config.yaml as the current version would have written it, without Hydra's lines."""
    try:
        saved = OmegaConf.load(path)
    except FileNotFoundError:
        raise UserError(f"{path}: does not exist; is this a run directory?") from None
    except Exception as error:
        raise UserError(f"{path}: not readable YAML ({first_line(error)})") from None
    if not isinstance(saved, DictConfig):
        raise UserError(f"{path}: not a config that minigpt wrote")
    values = _plain(saved)
    for key in ("defaults", "resume"):
        values.pop(key, None)
    rename_keys(values)
    model = values.get("model")
    if isinstance(model, dict):  # the first versions had only full attention
        model.setdefault("attention", {"name": "full"})
    return OmegaConf.create(values)


def save_config(config: Config, path: Path) -> None:
    """Write config.yaml with all values; --config-dir and --config-name train it again."""
    directory = path.parent.resolve()
    header = (
        "# All values of this run, resolved. To train it again, also with other values:\n"
        f"#   minigpt train --config-dir '{directory}' --config-name {path.stem} seed=2\n"
    )
    content = {"defaults": ["runtime", "_self_"], "resume": None, **config.to_dict()}
    write_text(path, header + OmegaConf.to_yaml(OmegaConf.create(content)))


def _plain(values: DictConfig) -> dict[str, Any]:
    """Return nested plain values, interpolations unresolved."""
    plain = OmegaConf.to_container(values)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _schema(cls: type, values: DictConfig, prefix: str) -> DictConfig:
    """Return the typed schema of a dataclass, with the options that each variant registers."""
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
        return f"{key}: no such option.{did_you_mean(unknown[1], siblings)}"
    if isinstance(error, MissingMandatoryValue):
        return f"{key}: missing; give it a value, as {key}=..."
    value = OmegaConf.select(values, key, throw_on_missing=False) if key else None
    if value is None and why.startswith(("Incompatible value", "field")):
        return f"{key}=null: needs a value"
    if "is not a ListConfig" in why:
        return f"{key}={value}: must be a list; use {key}=[{value}]"
    converted = re.match(r"Value '(.*)' of type '.*' could not be converted to (\w+)", why)
    if converted:
        return f"{key}={converted[1]}: not a valid {converted[2].lower()}"
    return f"{key}={value}: {why}"
