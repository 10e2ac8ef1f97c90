"""The reference as Markdown, made from the YAML files, the dataclasses and the commands."""

from __future__ import annotations

import importlib
import io
import os
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout, suppress
from typing import Any
from unittest.mock import patch

from sphinx.errors import ExtensionError

from minigpt.cli import COMMANDS, usage
from minigpt.commands.bench import BENCHMARKS
from minigpt.config.capabilities import (
    Footnotes,
    attention_table,
    backend_table,
    objective_table,
)
from minigpt.config.comments import Option
from minigpt.config.explain import (
    BASES,
    Group,
    all_groups,
    class_of,
    variant_of,
    with_types,
)
from minigpt.config.foreign import FLAGS, OPTIONS, Entry
from minigpt.config.groups import ROOT
from minigpt.model.attention import ATTENTION
from minigpt.model.positional import POSITIONAL
from minigpt.registry import Registry
from minigpt.sweep.match import SweepConfig

SECTIONS: dict[str, type] = {"sweep": SweepConfig}
HELP_WIDTH = "100"  # characters in a line of --help
PYTHON = {
    "Runs": {
        "autofunction": ["minigpt.load_run", "minigpt.runs"],
        "autoclass": [
            *("minigpt.api.LoadedRun", "minigpt.run.load.TrainedRun"),
            *("minigpt.evaluate.loss.Evaluation", "minigpt.inference.fill.Filled"),
            "minigpt.inference.fill.Candidate",
        ],
    },
    "The model": {
        "autoclass": [
            *("minigpt.model.gpt.GPT", "minigpt.model.config.ModelConfig"),
            *("minigpt.model.stack.Stack", "minigpt.model.block.Block"),
            *("minigpt.model.self_attention.SelfAttention", "minigpt.model.shape.ModelShape"),
        ],
    },
    "Configs": {
        "autoclass": ["minigpt.config.schema.Config", "minigpt.config.schema.TrainerConfig"],
    },
}


def text(value: str) -> str:
    """Return text so that Markdown shows it as it is."""
    return re.sub(r"([\\`*_{}\[\]<>|#$~&])", r"\\\1", value)


def code(value: str) -> str:
    """Return code in Markdown, also inside a table; nothing for an empty text."""
    fence = "``" if "`" in value else "`"
    return f"{fence}{value}{fence}".replace("|", "\\|") if value else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def fenced(value: str) -> str:
    """Return what a command prints as a block."""
    return f"```text\n{value.rstrip()}\n```"


def directive(name: str, of: str, *options: str) -> str:
    """Return a directive of autodoc."""
    lines = [f".. {name}:: {of}", *(f"   :{option}:" for option in options)]
    return "\n".join(["```{eval-rst}", *lines, "```"])


# ---- options ----


def options(groups: Sequence[Group] | None = None) -> str:
    """Return every config group with its choices, and every option with its default and meaning.

    Raises ExtensionError for one that no comment explains.
    """
    groups = [with_types(group, SECTIONS) for group in groups or all_groups()]
    require_explained(groups)
    return "\n\n".join(part for group in groups for part in _group(group))


def require_explained(groups: Iterable[Group]) -> None:
    """Raise ExtensionError with every group, choice and option that has no comment."""
    texts = {
        name: explanation
        for group in groups
        for name, explanation in (
            *([(f"{group.name}=", group.text)] if group.name else []),
            *((f"{group.name}={one.name}", one.text) for one in group.choices),
            *((one.key, one.text) for one in group.options),
            *((one.key, one.text) for choice in group.choices for one in choice.options),
        )
    }
    if missing := [name for name, explanation in texts.items() if not explanation]:
        raise ExtensionError(f"no comment in configs/ explains {', '.join(missing)}")


def _group(group: Group) -> list[str]:
    if not group.name:
        return ["## Outside of groups", *_options(group.options, "", f"{ROOT}.yaml")]
    meaning = text(f"{group.text[:1].upper()}{group.text[1:]}.")
    default = f" Default: {code(f'{group.name}={group.default}')}." if group.default else ""
    parts = [f"## {group.name}", meaning + default, _choices(group)]
    if group.options:
        (file,) = (file for file, of in BASES.items() if group.options[0].is_below(of))
        parts += [f"### Options of every {group.name}", *_options(group.options, "", file)]
    for choice in group.choices:
        if choice.options:
            file = f"{group.name}/{choice.name}.yaml"
            table_of_choice = _options(choice.options, variant_of(choice), file)
            parts += [f"### {group.name}={choice.name}", *table_of_choice]
    return parts


def _choices(group: Group) -> str:
    """Return a table of the choices, if need be with what each stands for."""
    columns = {
        "choice": [code(f"{group.name}={one.name}") for one in group.choices],
        "meaning": [text(one.text) for one in group.choices],
        "stands for": [" ".join(map(code, one.sets)) for one in group.choices],
    }
    shown = {name: column for name, column in columns.items() if any(column)}
    return table([*shown], zip(*shown.values(), strict=True))


def _options(options: Sequence[Option], variant: str, file: str) -> list[str]:
    """Return a table of options, and where they are written: a YAML file, and dataclasses."""
    rows = [(code(one.key), text(one.type), code(one.typed), text(one.text)) for one in options]
    sections = dict.fromkeys(one.key.rpartition(".")[0] for one in options)
    classes = (class_of(section, variant, SECTIONS) for section in sections)
    names = dict.fromkeys(f"{cls.__module__}.{cls.__qualname__}" for cls in classes)
    where = f"Defaults: {code(f'configs/{file}')}. Types: {', '.join(map(code, names))}."
    return [table(("option", "type", "default", "meaning"), rows), where]


# ---- commands ----


def commands() -> str:
    """Return --help of every command and benchmark."""
    parts = [fenced(usage())]
    for name in COMMANDS:
        parts += [f"## minigpt {name}", fenced(help_of(name))]
        if name == "bench":
            for benchmark in BENCHMARKS:
                parts += [f"### minigpt bench {benchmark}", fenced(help_of(name, benchmark))]
    return "\n\n".join(parts)


def help_of(command: str, *arguments: str) -> str:
    """Return what `minigpt COMMAND ... --help` prints."""
    module = importlib.import_module(f"minigpt.commands.{command}")
    printed = io.StringIO()
    with patch.dict(os.environ, COLUMNS=HELP_WIDTH), redirect_stdout(printed), suppress(SystemExit):
        module.main([*arguments, "--help"])
    return printed.getvalue()


def foreign(entries: Iterable[Entry], head: str) -> str:
    """Return the names of other projects, and ours."""
    rows = [
        (" ".join(map(code, entry.names.split())), code(entry.ours), text(entry.hint))
        for entry in entries
    ]
    return table((head, "here", "remark"), rows)


# ---- tables of what goes with what ----


def combinations() -> str:
    """Return the tables of `minigpt doctor --table`, each with its reasons."""
    tables: dict[str, Callable[[Footnotes], list[list[str]]]] = {
        "Backends by positional scheme": lambda notes: backend_table("positional", notes),
        "Backends by attention": lambda notes: backend_table("attention", notes),
        "Choices by attention": attention_table,
        "Choices by objective": objective_table,
    }
    legend = "t: training, i: inference. A number is a reason why not."
    parts = []
    for title, make in tables.items():
        notes = Footnotes()
        head, *rows = make(notes)
        head = [text(name.replace("\n", "")) for name in head]
        cells = [[code(name), *map(text, others)] for name, *others in rows]
        reasons = [f"{number}. {text(reason)}" for reason, number in notes.items()]
        explained = [legend] if title.startswith("Backends") else []
        parts += [f"## {title}", *explained, table(head, cells), "\n".join(reasons)]
    return "\n\n".join(parts)


# ---- Python ----


def python() -> str:
    """Return the classes and functions of PYTHON."""
    parts = []
    for title, directives in PYTHON.items():
        parts.append(f"## {title}")
        for name, objects in directives.items():
            members = ["members"] if name == "autoclass" else []
            parts += [directive(name, of, *members) for of in objects]
    return "\n\n".join(parts)


def variants(registry: Registry[Any]) -> str:
    """Return each variant of a registry: the comment of its YAML file, and its docstring."""
    (group,) = (group for group in all_groups() if group.name == registry.group)
    comments = {choice.name: choice.text for choice in group.choices}
    parts = []
    for name in registry.names():
        cls = registry.variant(name)
        is_base = any(cls in one.__bases__ for one in registry.variants())
        members = ["members"] if is_base else []
        documented = directive("autoclass", f"{cls.__module__}.{cls.__qualname__}", *members)
        parts += [f"### {name}", text(comments[name]), documented]
    return "\n\n".join(parts)


def interface(*objects: str) -> str:
    """Return base classes with their members."""
    return "\n\n".join(directive("autoclass", of, "members") for of in objects)


PARTS: dict[str, Callable[[], str]] = {
    "options": options,
    "commands": commands,
    "combinations": combinations,
    "python": python,
    "foreign-options": lambda: foreign(OPTIONS, "there"),
    "foreign-flags": lambda: foreign(FLAGS, "there"),
    "positional": lambda: variants(POSITIONAL),
    "positional-interface": lambda: interface(
        "minigpt.model.positional.base.PositionalScheme",
        "minigpt.model.positional.base.LearnedBiasScheme",
        "minigpt.model.positional.base.DenseScoreMod",
        "minigpt.model.positional.base.DistanceScoreMod",
    ),
    "attention": lambda: variants(ATTENTION),
    "attention-interface": lambda: interface(
        "minigpt.model.attention.base.AttentionConfig",
        "minigpt.model.attention.base.AlternatingAttentionConfig",
        "minigpt.model.attention.base.QueryBlocks",
    ),
}
