"""`--help` of commands that take overrides: the config groups, their choices and options."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from minigpt.config.explain import Group, Option

USAGE = """\
usage: minigpt train [key=value ...] [group=choice ...] [-m] [--cfg job]
       minigpt train --help [GROUP ...] [GROUP=CHOICE ...] [KEY ...] [--json]

Train a small GPT. Each run writes a directory in runs/.

  minigpt train model=rope                      one run
  minigpt train -m model=rope,alibi seed=1,2    four runs; type it again to finish them
  minigpt train -m sweep=positional             all schemes, five seeds each
  minigpt train experiment=nanogpt_cpu          a preset experiment
  minigpt train resume=latest                   resume a stopped run
  minigpt train model=llama --cfg job           print all values without training
  minigpt train --help positional               explain a group, its choices and options
"""
FOOTER = """\
--key=value is key=value, for W&B's agent.
Shell completion: eval "$(minigpt -sc install=bash)"
Hydra's own options: minigpt train --hydra-help"""
PIPE_WIDTH = 120
HELP_FLAGS = {"-h", "--help"}


def topics_of_plain_help(arguments: Sequence[str]) -> list[str] | None:
    """Return the topics of --help without other flags than --json; None for other arguments.

    Hydra's parser reads other flags; it takes longer to import than the help takes.
    """
    flags = {argument for argument in arguments if argument.startswith("-")}
    if not flags & HELP_FLAGS or not flags <= {*HELP_FLAGS, "--json"}:
        return None
    return [argument for argument in arguments if argument not in flags]


def print_help(
    topics: Sequence[str], config_dir: Path | None = None, as_json: bool = False
) -> None:
    """Print what there is to say about groups, choices and options, or without topics about all.

    `config_dir`: a folder with more choices. Raises UserError for an unknown topic.
    """
    from minigpt.config.comments import one_line_yaml_errors
    from minigpt.config.explain import explained, with_types
    from minigpt.console import PipeConsole
    from minigpt.files import to_json

    console = PipeConsole(highlight=False, markup=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPE_WIDTH
    with one_line_yaml_errors():
        groups = explained(topics, config_dir)
    if not topics and not as_json:
        _print_overview(groups, console)
        return

    from minigpt.sweep.match import SweepConfig

    groups = [with_types(group, {"sweep": SweepConfig}) for group in groups]
    if as_json:
        print(to_json([asdict(group) for group in groups]))
        return
    for group in groups:
        _print_group(group, console)


def _print_overview(groups: list[Group], console: Console) -> None:
    """Print the groups, and every option of the default choices."""
    _print(USAGE, console)
    _print("Config groups (group=choice):", console)
    named = [group for group in groups if group.name]
    names = [[one.name for one in group.choices if "/" not in one.name] for group in named]
    rows = zip(named, names, strict=True)
    _print_rows([(group.name, f"{group.text}: {', '.join(of)}") for group, of in rows], console)
    _print("\nOptions (key=default) with the default choices:", console)
    options = [option for group in groups for option in _default_options(group)]
    _print_rows([(_typed(option), option.text) for option in options], console)
    _print(f"\n{FOOTER}", console)


def _default_options(group: Group) -> list[Option]:
    chosen = (one.options for one in group.choices if one.name == group.default)
    return [*group.options, *next(chosen, [])]


def _print_group(group: Group, console: Console) -> None:
    """Print a group, its choices, the options of all choices, and those of each."""
    if group.name:
        default = f" (default: {group.default})" if group.default else ""
        _print(f"{group.name}=CHOICE{default}: {group.text}", console)
        _print_rows([(one.name, one.text) for one in group.choices], console)
    _print_options(
        f"options of every {group.name}" if group.name else "options", group.options, console
    )
    for choice in group.choices:
        _print_options(f"options of {group.name}={choice.name}", choice.options, console)
    for choice in group.choices:
        if choice.sets:
            _print(f"\n{group.name}={choice.name} stands for\n  {' '.join(choice.sets)}", console)
    _print("", console)


def _print_options(title: str, options: list[Option], console: Console) -> None:
    if options:
        _print(f"\n{title} (key=default, type)", console)
        _print_rows([(_typed(one), one.type, one.text) for one in options], console)


def _typed(option: Option) -> str:
    """Return an option with its default, as they are typed."""
    return f"{option.key}={option.typed}"


def _print_rows(rows: Sequence[tuple[str, ...]], console: Console) -> None:
    """Print rows in columns; only the last column wraps."""
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2))
    for _ in rows[0][:-1] if rows else ():
        table.add_column(no_wrap=True, overflow="fold")
    for row in rows:
        table.add_row(*row)
    _print(table, console)


def _print(what: RenderableType, console: Console) -> None:
    """Print a text or a table, without Rich's spaces at the ends of lines."""
    lines = console.render_lines(what, pad=False)
    texts = ["".join(segment.text for segment in line).rstrip() for line in lines]
    console.print("\n".join(texts), soft_wrap=True)
