"""From command-line overrides to a composed config, with Hydra's errors in one line."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    Glob,
    IntervalSweep,
    Override,
    Sweep,
    Transformer,
)
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    GrammarParseError,
    InterpolationResolutionError,
    OmegaConfBaseException,
)

from minigpt.config.comments import one_line_yaml_errors
from minigpt.config.foreign import our_value
from minigpt.config.groups import (
    ROOT,
    choices,
    choices_with,
    config_directory,
    config_groups,
    register,
    section_of,
)
from minigpt.config.pairs import parse_override, similar_option
from minigpt.config.renamed import require_current_overrides
from minigpt.errors import UserError, did_you_mean, first_line
from minigpt.extras import LAUNCHERS, install
from minigpt.files import user_path

# Options whose values are texts, taken as typed. The default of the first ones is null.
NULLABLE_TEXTS = (
    *("name", "group", "init", "resume", "data.dir", "data.document_separator"),
    *("trainer.sample_prompt", "objective.teacher", "logger.entity"),
)
TEXT_OPTIONS = (
    *NULLABLE_TEXTS,
    *("tags", "hydra.run.dir", "hydra.sweep.dir", "data.path", "tokenizer.encoding"),
    "logger.project",
)
INTERPOLATION_ERRORS = (InterpolationResolutionError, GrammarParseError)
FOLDERS = ("hydra.run.dir", "hydra.sweep.dir")  # Hydra creates them, and expands no ~
FUNCTIONS = ("choice", "range", "interval", "tag", "int", "float", "glob", "sort", "shuffle")
EXAMPLE = "optimizer.lr='tag(log, interval(1e-4, 1e-2))' or model=rope,alibi"


@dataclass(frozen=True)
class Composed:
    """The config of one run as composed by Hydra; `compose.to_config` converts it to `Config`.

    `values`: everything except Hydra's own section. `resume`, `init`: the run to resume, or to
    start from. `swept`: keys that a preset or an experiment varies with -m. `directory`: the run
    directory, relative if possible.
    """

    values: DictConfig
    overrides: list[str]
    resume: str | None
    init: str | None
    swept: list[str]
    directory: Path


@contextmanager
def _initialized_hydra() -> Iterator[None]:
    """Initialize Hydra for one config, also within one of its own jobs."""
    state = GlobalHydra.instance()
    outer, state.hydra = state.hydra, None
    try:
        with initialize_config_dir(str(config_directory()), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = outer


def compose_overrides(overrides: list[str]) -> Composed:
    """Compose the config of one run with Hydra's compose API. Raises UserError."""
    register()
    overrides = [quoted(override) for override in overrides]
    require_current_overrides(overrides)
    with one_line_errors(overrides):
        with _initialized_hydra():
            composed = compose(ROOT, overrides, return_hydra_config=True)
        return composed_run(composed, composed.hydra, composed.hydra.run.dir)


def composed_run(composed: DictConfig, hydra: Any, directory: str) -> Composed:
    """Split a config that Hydra composed into a `Composed`. `hydra`: Hydra's own section."""
    runs = (composed.get("resume"), composed.get("init"))
    resume, init = (None if name is None else str(name) for name in runs)
    path, here = Path(os.path.abspath(directory)), Path.cwd()
    overrides = list(hydra.overrides.task)
    values = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    reset_replaced_parts(values, {override.partition("=")[0] for override in overrides})
    return Composed(
        values=values,
        overrides=overrides,
        resume=resume,
        init=init,
        swept=list(hydra.sweeper.params or {}),
        directory=path.relative_to(here) if path.is_relative_to(here) else path,
    )


def reset_replaced_parts(values: DictConfig, overridden: set[str]) -> None:
    """Reset the options that model=NAME sets of a part, if overrides have chosen another one.

    So `model=gpt_neox positional=alibi` has no fraction of RoPE. Options in `overridden` stay.
    """
    folder = config_directory()
    file = folder / f"model/{OmegaConf.select(values, 'model.name')}.yaml"
    if not file.is_file():
        return
    design = OmegaConf.load(file)
    for group in overridden & {"attention", "ffn", "positional"} & {*design.model}:
        chosen = folder / f"{group}/{values.model[group].name}.yaml"
        if {f"override /{group}": chosen.stem} in design.defaults or not chosen.is_file():
            continue
        defaults = OmegaConf.load(chosen)
        section = values.model[group]
        for option, value in design.model[group].items():
            if f"model.{group}.{option}" in overridden or section[option] != value:
                continue  # set by an override or an experiment
            section.pop(option)
            if option in defaults:
                section[option] = defaults[option]


def require_choices(overrides: list[str]) -> None:
    """Raise UserError if a config group is set to an invalid choice, or through another key."""
    groups = {section_of(group): group for group in config_groups()}
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if key == "hydra/sweeper":
            why = "other sweepers cannot skip finished runs; leave it out"
            raise UserError(f"{override}: {why}, and search with `minigpt tune`")
        if "null" in value.split(",") and key in set(config_groups()) - {"experiment"}:
            known = ", ".join(choices(key))
            raise UserError(f"{override}: needs a choice; use one of {known}")
        section = key.removesuffix(".name")
        group = groups.get(section)
        if group is None or key == group:
            continue
        options = set(choices(group).get(value, ())) - {"name"}
        if key == section or options:
            why = f", which sets {', '.join(sorted(options))}" if options else ""
            raise UserError(f"{override}: is a choice of a config group; use {group}={value}{why}")


# ---- Hydra's grammar of overrides ----


def quoted(override: str) -> str:
    """Return the override with its value in quotes where Hydra would not read it as typed.

    It cannot parse some values, and would convert those of TEXT_OPTIONS: 1e3 to a number, for one.
    """
    key, _, text = override.partition("=")
    if not text:
        return override
    if key in FOLDERS:
        text = str(user_path(key, text))
        override = f"{key}={text}"
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException:
        return f"{key}={_in_quotes(text)}"
    name = key.lstrip("+~")
    is_text = name in TEXT_OPTIONS
    if text == "None" and (name in NULLABLE_TEXTS or not is_text):  # how W&B's agent writes null
        return f"{key}=null"
    return f"{key}={_as_typed(text, parsed.value())}" if is_text else override


def _as_typed(text: str, value: Any) -> str:
    """Return the text of a value so that Hydra reads it, or its elements, as text."""
    if isinstance(value, list | ChoiceSweep):
        is_list = isinstance(value, list)
        elements: list[Any] = value if is_list else value.list
        texts = (text.strip()[1:-1] if is_list else text).split(",")
        if len(texts) != len(elements):  # commas in quotes or brackets
            return text
        pairs = zip(texts, elements, strict=True)
        joined = ",".join(_as_typed(part.strip(), element) for part, element in pairs)
        return f"[{joined}]" if is_list else joined
    is_quoted = text.strip().startswith(("'", '"'))
    is_plain = isinstance(value, str) and text == text.strip()
    if value is None or isinstance(value, Sweep) or is_quoted or is_plain:
        return text
    return _in_quotes(text)


def _in_quotes(text: str) -> str:
    """Return a text as Hydra's grammar quotes it: backslashes are special only before a quote."""
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text)
    return f"'{escaped}'"


@dataclass(frozen=True)
class Interval:
    """All numbers from `low` to `high`. `tags`: Hydra's tags of the interval: log, int."""

    low: float
    high: float
    tags: frozenset[str]

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are meant: int(interval(1, 9)) or tag(int, interval(1, 9))."""
        return "int" in self.tags or (isinstance(self.low, int) and isinstance(self.high, int))

    def check(self, text: str) -> None:
        """Raise UserError unless it has numbers and known tags. `text`: as typed."""
        for tag in self.tags - {"log", "int"}:
            raise UserError(f"{text}: no such tag: {tag}; use log or int")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise UserError(f"{text}: the second bound must be above the first, and both finite")
        if "log" in self.tags and self.low <= 0:
            raise UserError(f"{text}: log needs bounds above 0")


def parse_values(text: str) -> tuple[str, list[Any] | Interval | None]:
    """Return an override's key and its values: a list, an interval, or None for a single value.

    Numbers, booleans and null become Python values; other values stay text. Raises UserError.
    """
    override = _parse(text)
    key = override.get_key_element()
    if not override.is_sweep_override():
        return key, None
    value = override.value()
    if isinstance(value, IntervalSweep):
        assert value.start is not None and value.end is not None
        interval = Interval(value.start, value.end, frozenset(map(str, value.tags)))
        interval.check(text)
        return key, interval
    if isinstance(value, Glob):
        raise UserError(f"{text}: a search takes lists; use a list such as model=rope,alibi")
    return key, list(override.sweep_iterator(transformer=_number_or_text))


def _number_or_text(element: Any) -> Any:
    if element is None or isinstance(element, bool | int | float):
        return element
    return Transformer.str(element)


def _parse(text: str) -> Override:
    parser = OverridesParser.create()
    try:
        return parser.parse_override(text)
    except HydraException as error:
        value = text.partition("=")[2]
        if re.match(rf"({'|'.join(FUNCTIONS)})\(", value):  # quotes would make it a plain text
            why = first_line(error)
            raise UserError(f"{text}: cannot be parsed ({why}); write it as {EXAMPLE}") from None
    with one_line_errors([text]):
        return parser.parse_overrides([quoted(text)])[0]


def combinations(overrides: list[str]) -> list[list[str]]:
    """Return the overrides of each job of a sweep: the product of all values. Raises UserError."""
    with one_line_errors(overrides):
        parser = OverridesParser.create()
        return jobs_of(parser.parse_overrides([quoted(override) for override in overrides]))


def jobs_of(overrides: list[Override]) -> list[list[str]]:
    """Return the product of the overrides' values. If a key is given twice, the last one counts."""
    values: dict[str, list[str]] = {}
    for override in overrides:
        key = override.get_key_element()
        if not override.is_sweep_override():
            texts = [override.get_value_element_as_str()]
        elif isinstance(override.value(), Glob):
            texts = _matching(override)
        elif override.is_discrete_sweep():
            texts = list(override.sweep_string_iterator())
        else:
            raise HydraException(f"{override.input_line}: a sweep takes lists, not intervals")
        values[key] = [f"{key}={text}" for text in texts]
    return [list(job) for job in itertools.product(*values.values())]


def _matching(override: Override) -> list[str]:
    """Return the choices that a glob matches, also those in a folder: experiment=glob(claims/*).

    Raises HydraException if there are none.
    """
    glob, loader = override.value(), override.config_loader
    assert isinstance(glob, Glob)
    if loader is None:
        raise HydraException(f"{override.input_line}: a search takes lists, not globs")
    names: list[str] = []
    for folder in dict.fromkeys(pattern.rpartition("/")[0] for pattern in glob.include):
        group = f"{override.key_or_group}/{folder}".rstrip("/")
        found = loader.get_group_options(group, results_filter=ObjectType.CONFIG)
        names += [f"{folder}/{name}".lstrip("/") for name in found]
    matching = glob.filter(names)
    if not matching:
        raise HydraException(f"{override.input_line}: no choice of {override.key_or_group} matches")
    return matching


def swept_keys(overrides: list[str]) -> list[str]:
    """Return the keys that have several values."""
    parsed = [OverridesParser.create().parse_override(override) for override in overrides]
    return [override.key_or_group for override in parsed if override.is_sweep_override()]


# ---- errors ----


@contextmanager
def one_line_errors(overrides: list[str]) -> Iterator[None]:
    """Turn Hydra's and OmegaConf's errors in this block into a UserError of one line."""
    try:
        with one_line_yaml_errors():
            yield
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_explain(error, overrides)) from None
    except UserError:
        raise
    except ValueError as error:  # of Hydra, for a defaults list that is none
        raise UserError(f"--config-dir: {first_line(error)}; correct that file") from None


def _explain(error: Exception, overrides: list[str]) -> str:
    """Return 'key=value: why. Did you mean ...?' for an error of Hydra."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _explain_missing(error.missing_cfg_file, error.options or [])
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be parsed; write key=value, special characters in quotes"
    message = str(error).strip()
    unknown = re.match(r"Could not override '(.*)'", message)
    if unknown:
        return _explain_unknown(unknown[1], overrides)
    ambiguous = re.match(r"Ambiguous value for argument '(.*)'", message)
    if ambiguous:
        key, _, value = ambiguous[1].partition("=")
        quote = f"""; quote a comma that is part of a text: '{key}="{value}"'"""
        is_text = key in TEXT_OPTIONS
        return f"{ambiguous[1]}: several values; add -m to train one run for each{quote * is_text}"
    if isinstance(error, INTERPOLATION_ERRORS):
        # A job of `combinations` has braces and colons escaped.
        plain = [re.sub(r"\\([{}:])", r"\1", override) for override in overrides]
        typed = next((override for override in plain if "${" in override), None)
        return explain_interpolation(typed or str(error.full_key), error)
    cause = error.__cause__
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].endswith(":"):
        return f"{lines[0]} {lines[1]}"
    return first_line(error) + (f" ({first_line(cause)})" if cause is not None else "")


def explain_interpolation(assignment: str, error: Exception) -> str:
    """Return the message for KEY=VALUE with a `${...}` that cannot be resolved."""
    return f"{assignment}: {first_line(error)}; for the text itself write \\${{...}}"


def _explain_missing(file: str, options: Sequence[str]) -> str:
    group, _, name = file.rpartition("/")
    if not group:
        return f"--config-name={name}: no such config in {config_directory()} or --config-dir"
    if group == "hydra/launcher" and name in LAUNCHERS:
        return f"{group}={name}: not installed; {install(LAUNCHERS[name])}"
    known, guess = ", ".join(options), our_value(group, name) or did_you_mean(name, options)
    return f"{group}={name}: no such {group}.{guess} Known: {known}."


def _explain_unknown(key: str, overrides: list[str]) -> str:
    """Explain the unknown option `key`, and all other unknown ones of the command."""
    groups = config_groups()
    if key in groups:  # configs/train.yaml has all of them, so this is another root config
        return f"{key}: a saved config has no config groups; override its values with key=value"
    owners = choices_with(key)
    if owners:
        return f"{key}: an option of {' or '.join(owners)}; choose that too"
    values = dict(parse_override(one) for one in overrides if not one.startswith(("+", "~")))
    known = [*groups, *_known_keys(values)]
    others = [name for name in values if not (name in known or choices_with(name))]
    why = f"no such option or config group.{similar_option(key, values.get(key, ''), known)}"
    for name in others:
        if name != key and not name.startswith("hydra"):
            why += f" {name}:{similar_option(name, values[name], known) or ' no such option.'}"
    return f"{key}: {why} See them all: minigpt train --help"


def _known_keys(values: dict[str, str]) -> list[str]:
    """Return all keys of the config with the choices among `values`."""
    groups = config_groups()
    chosen = [f"{key}={value.split(',')[0]}" for key, value in values.items() if key in groups]
    try:
        return list(_keys(compose_overrides(chosen).values))
    except UserError:  # a choice in the folder of --config-dir
        return list(_keys(compose_overrides([]).values))


def _keys(config: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in config:
        yield f"{prefix}{key}"
        if OmegaConf.is_dict(config._get_node(key)):
            yield from _keys(config[key], f"{prefix}{key}.")
