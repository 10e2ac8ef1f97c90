"""The config.yaml of a run: written, read, and changed where a trained run may differ from it.

It contains the values as requested, some of them `auto` or null. The manifest of the run contains
the values that replaced them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from minigpt.config.comments import explain_yaml, require_own_values
from minigpt.config.compose import plain_values, require_effect, to_config, typed_config
from minigpt.config.groups import config_directory, config_groups, section_of
from minigpt.config.overrides import TEXT_OPTIONS, Composed
from minigpt.config.pairs import flat, is_below, parse_override
from minigpt.config.renamed import rename_keys
from minigpt.config.schema import Config
from minigpt.errors import UserError, first_line, require
from minigpt.files import CONTENT, sha256, write_text
from minigpt.model import ModelConfig
from minigpt.model.positional import POSITIONAL
from minigpt.objective import OBJECTIVES

# What a resumed run may change: its length, which schedules scale to; what it writes; the machine.
RESUME_MAY_CHANGE = (
    *("trainer.max_steps", "trainer.patience", "trainer.guessing_patience"),
    *("trainer.log_every", "trainer.checkpoint_every", "trainer.sample_every"),
    *("trainer.device", "trainer.precision", "trainer.compile", "trainer.graph"),
    *("trainer.parallel", "trainer.processes", "trainer.timeout"),
    *("trainer.threads", "data.dir", "data.path", "logger"),
)

# What a run may change of the design whose weights it starts from.
INITIAL_MAY_CHANGE = (
    *("model.dropout", "model.block_size", "model.positional", "model.backend", "backend"),
)
INITIAL_CHANGES = "model.dropout, model.block_size, options of model.positional, and backend"

# What may be changed in the config of a trained run when it is loaded.
TRAINED_MAY_CHANGE = ("model.positional.", "model.backend.name", "data.path")
TRAINED_KEEPS = ("model.positional.name", "model.positional.")

INTERPOLATION = re.compile(r"(\\*)\$\{")  # OmegaConf's; an odd number of backslashes escapes it


def save_config(config: Config, path: Path, remarks: Sequence[str] = ()) -> None:
    """Write config.yaml with all values; --config-dir and --config-name train it again.

    It begins with the lines of `remarks`, as comments.
    """
    directory = path.parent.resolve()
    header = "".join(f"# {line}\n" for line in remarks) + (
        "# All values of this run, as requested. To train it again, also with other values:\n"
        f"#   minigpt train --config-dir '{directory}' --config-name {path.stem} seed=2\n"
    )
    content = {"defaults": ["runtime", "_self_"], "resume": None, **_escaped(config.to_dict())}
    values = OmegaConf.to_yaml(OmegaConf.create(content))
    write_text(path, f"{header}# {CONTENT}: {sha256(values)}\n{values}")


def read_config(path: Path, changes: Sequence[str] = ()) -> Config:
    """Return a config.yaml, with `changes` of the form KEY=VALUE.

    Raises UserError if the file is missing or damaged, and for a change that the weights of a
    trained run do not allow.
    """
    return _changed(_read_yaml(path), f"{path}:", changes)


def changed_config(values: dict[str, Any], source: str, changes: Sequence[str] = ()) -> Config:
    """Return the config of nested plain values from the file `source`. See `read_config`."""
    current = _escaped(values)
    rename_keys(current)
    saved = OmegaConf.create(current)
    assert isinstance(saved, DictConfig)
    return _changed(saved, f"{source}:", changes)


def _changed(saved: DictConfig, source: str, changes: Sequence[str]) -> Config:
    keys = [change.partition("=")[0] for change in changes]
    for key, change in zip(keys, changes, strict=True):
        if "=" not in change or not key.startswith(TRAINED_MAY_CHANGE) or key in TRAINED_KEEPS:
            raise UserError(
                f"--set {change}: a trained run can change only the options of its positional "
                f"scheme, such as model.positional.scaling=linear, model.backend.name, and "
                f"data.path of a text that was moved; train a new run for anything else"
            )
        if keys.count(key) > 1:
            raise UserError(f"--set {change}: {key} is given twice; leave one of them out")
        if key in TEXT_OPTIONS:
            OmegaConf.update(saved, key, _escaped(change.partition("=")[2]))
        else:
            merged = OmegaConf.merge(saved, OmegaConf.from_dotlist([change]))
            assert isinstance(merged, DictConfig)
            saved = merged
    try:
        return typed_config(saved)
    except UserError as error:
        raise UserError(f"{'--set' if changes else source} {error}") from None


def resumed_config(path: Path, composed: Composed) -> Config:
    """Return a saved config with the changes among RESUME_MAY_CHANGE that `composed` makes.

    Raises UserError for an override of any other key, and for an option without effect.
    """
    saved = _read_yaml(path)
    changed = OmegaConf.create(_escaped(OmegaConf.to_container(composed.values, resolve=True)))
    for override in composed.overrides:
        key, value = parse_override(override)
        if key == "resume" or (key, value) == ("data", saved.data.name):
            continue
        require_resumable(override)
        OmegaConf.update(saved, key, OmegaConf.select(changed, key), merge=False)
    config = typed_config(saved)
    require_effect(config)
    return config


def require_resumable(override: str) -> None:
    """Raise UserError for an override of what a resumed run must keep."""
    key = parse_override(override).key
    if key not in RESUME_MAY_CHANGE and not key.startswith("logger."):
        raise UserError(
            f"{override}: a resumed run keeps its config and may change only "
            f"{', '.join(RESUME_MAY_CHANGE)}; for anything else start a new run"
        )


def initial_config(composed: Composed, saved: Config, path: str) -> Config:
    """Return the config of a run that starts from the weights of a `saved` one at `path`.

    Its design and tokenizer are the saved ones, except for overrides among INITIAL_MAY_CHANGE, and
    so is its objective, unless an override gives one. Raises UserError for an override of any other
    part of them, and for an objective that needs another model.
    """
    values, plain = composed.values.copy(), _escaped(saved.to_dict())
    if not any(is_below(parse_override(o).key, ("objective",)) for o in composed.overrides):
        kind = OBJECTIVES.variant(saved.objective.name)
        if not kind.predicts_all:  # a teacher is of the base's own training
            values.objective = plain["objective"]
    values.model, values.tokenizer, values.init = plain["model"], plain["tokenizer"], _escaped(path)
    for override in composed.overrides:
        key, value = parse_override(override)
        _require_initial_design(override, key, value, composed.init)
        if is_below(key, INITIAL_MAY_CHANGE):
            key = "model.backend" if key == "backend" else key
            OmegaConf.update(values, key, OmegaConf.select(composed.values, key), merge=False)
    config = to_config(replace(composed, values=values, init=None))
    why = (
        f"needs another model than objective={saved.objective.name}, with which {path} was trained"
    )
    fits = _same_weights(saved.model, config.model)
    require(fits, "objective", config.objective.name, f"{why}; leave objective out")
    return config


def _same_weights(saved: ModelConfig, other: ModelConfig) -> bool:
    """Return whether two designs that differ in what an objective decides have the same weights."""
    if saved.n_special_tokens != other.n_special_tokens:
        return False
    decoders = {saved.architecture, other.architecture} == {"decoder", "prefix_decoder"}
    by_sign = POSITIONAL.variant(saved.positional.name).by_signed_distance
    return saved.architecture == other.architecture or (decoders and not by_sign)


def _require_initial_design(override: str, key: str, value: str, init: str | None) -> None:
    """Raise UserError for an override of the design or the tokenizer that `init` gives."""
    if key == "tokenizer" or key.startswith("tokenizer."):
        why = f"the tokenizer comes from init={init}, whose weights fit no other vocabulary"
        raise UserError(f"{override}: {why}; leave it out")
    groups = [group for group in config_groups() if section_of(group).startswith("model")]
    file = config_directory() / "experiment" / f"{value}.yaml"
    if key == "experiment" and file.is_file():
        content = OmegaConf.load(file)
        assert isinstance(content, DictConfig)  # Hydra has composed it
        lines = [line for line in content.get("defaults", []) if OmegaConf.is_dict(line)]
        defaults = {str(name) for line in lines for name in line}
        of_design = {f"override /{group}" for group in ("model", "tokenizer", *groups)}
        if "model" in content or "tokenizer" in content or defaults & of_design:
            why = f"sets options of the design, which comes from init={init}"
            raise UserError(f"{override}: {why}; use an experiment without")
    may_change = is_below(key, INITIAL_MAY_CHANGE) and not key.endswith(".name")
    if is_below(key, ("model", *groups)) and not may_change:
        why = f"the design comes from init={init}, and only {INITIAL_CHANGES} can change"
        raise UserError(f"{override}: {why}; leave it out")


def resolved_values(requested: Config, resolved: Config) -> dict[str, Any]:
    """Return by full key the values of `resolved` that differ from the requested ones."""
    before, after = flat(requested.to_dict()), flat(resolved.to_dict())
    return {key: value for key, value in after.items() if value != before[key]}


def with_resolved(config: Config, saved: Config, resolved: dict[str, Any]) -> Config:
    """Return `config` with `resolved` values in place of requested ones.

    Where `config` differs from the `saved` config, its value was changed since and is kept.
    """
    now, before = flat(config.to_dict()), flat(saved.to_dict())
    values = OmegaConf.create(_escaped(config.to_dict()))
    for key, value in _escaped(resolved).items():
        if now.get(key) == before.get(key):
            OmegaConf.update(values, key, value)
    assert isinstance(values, DictConfig)
    return typed_config(values)


def _read_yaml(path: Path) -> DictConfig:
    """Read config.yaml as the current version would have written it, without Hydra's lines."""
    try:
        saved = OmegaConf.load(path)
    except FileNotFoundError:
        raise UserError(f"{path}: does not exist; is this a run directory?") from None
    except yaml.MarkedYAMLError as error:
        raise UserError(explain_yaml(error)) from None
    except Exception as error:
        raise UserError(f"{path}: not readable YAML ({first_line(error)}); restore it") from None
    if not isinstance(saved, DictConfig):
        raise UserError(f"{path}: not a config that minigpt wrote")
    values = plain_values(saved)
    for key in ("defaults", "resume"):
        values.pop(key, None)
    rename_keys(values)
    for key, value in flat(values).items():
        for text in map(str, value if isinstance(value, list) else [value]):
            plain = all(len(backslashes) % 2 for backslashes in INTERPOLATION.findall(text))
            why = "a saved config contains values, not interpolations; write the value instead"
            require(plain, f"{path}: {key}", text, why)
    try:
        require_own_values(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); restore it") from None
    model = values.get("model")
    if isinstance(model, dict):  # the first versions had only full attention
        model.setdefault("attention", {"name": "full"})
    values.setdefault("adapter", {"name": "none"})
    return OmegaConf.create(values)


def _escaped(value: Any) -> Any:
    """Return nested values as OmegaConf reads them back: `${` as text, not as an interpolation."""
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    if isinstance(value, str):
        return INTERPOLATION.sub(lambda match: match[1] * 2 + r"\${", value)
    return value
