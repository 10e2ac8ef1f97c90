"""The commands on the pages are understood: they parse, and their overrides make valid configs."""

from __future__ import annotations

import importlib
import re
import shlex
from argparse import Namespace
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from minigpt.cli import COMMANDS
from minigpt.commands.options import Parser
from minigpt.config.compose import composed_config, to_config
from minigpt.config.explain import explained
from minigpt.config.hydra_main import as_overrides, compose_multirun
from minigpt.config.overrides import (
    Interval,
    compose_overrides,
    one_line_errors,
    parse_values,
    require_choices,
)
from minigpt.errors import UserError

REPOSITORY = Path(__file__).parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
WITH_A_RUN = ("init", "resume")  # their value is a run, with a config of its own


def commands_on(page: Path) -> list[str]:
    """Return the minigpt commands in the code blocks of a page, each in one line."""
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    blocks = [one.content for one in tokens if one.type in ("fence", "code_block")]
    lines = re.sub(r"\\\n\s*", "", "\n".join(blocks)).splitlines()
    return [line.strip() for line in lines if line.startswith("minigpt ")]


COMMANDS_ON_PAGES = dict.fromkeys(
    shlex.join(shlex.split(command, comments=True))
    for page in PAGES
    for command in commands_on(page)
)


class Parsed(Exception):
    """Carries what a parser made of a command."""

    def __init__(self, options: Namespace) -> None:
        self.options = options


def test_every_command_is_on_a_page() -> None:
    assert {command.split()[1] for command in COMMANDS_ON_PAGES} == COMMANDS.keys()


@pytest.mark.parametrize("command", COMMANDS_ON_PAGES)
def test_a_command_on_a_page_is_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check(command, monkeypatch)


@pytest.mark.parametrize(
    "command",
    [
        "minigpt train model=ropee",
        "minigpt train seed=1,2",
        "minigpt train -m norm=pre,pots",
        "minigpt train --help positionl",
        "minigpt eval latest --lenghts 32",
        "minigpt bench train --step 3",
        "minigpt bench train model.n_embd=100 model.n_head=3",
        "minigpt tune optimizer.l='interval(1e-3,1e-2)'",
    ],
)
def test_a_wrong_command_would_be_noticed(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError):
        check(command, monkeypatch)


def check(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise UserError for a command that minigpt would refuse before it reads a run or a text."""
    _, name, *arguments = shlex.split(command)
    if "--help" in arguments:
        explained([topic for topic in arguments if topic != "--help"])
    elif name == "train":
        check_training(without_flags(as_overrides(arguments)), sweeps="-m" in arguments)
    else:
        check_designs(getattr(parsed(name, arguments, monkeypatch), "overrides", []))


def without_flags(arguments: list[str]) -> list[str]:
    """Return the overrides alone, without Hydra's flags and their values."""
    flags = r"-m|--cfg \S+|--config-dir \S+|--config-name \S+"
    return shlex.split(re.sub(rf"(?<!\S)({flags})(?!\S)", "", shlex.join(arguments)))


def check_training(overrides: list[str], sweeps: bool) -> None:
    """Compose the config of a run, or of the first and the last job of a sweep."""
    if sweeps:
        sweep = compose_multirun(overrides)
        assert len(sweep.jobs) > 1
        for job in (sweep.jobs[0], sweep.jobs[-1]):
            with one_line_errors(job):
                to_config(sweep.compose(job))
        return
    require_choices(overrides)
    composed = compose_overrides(overrides)
    assert not composed.swept
    if not any(override.partition("=")[0] in WITH_A_RUN for override in overrides):
        to_config(composed)


def parsed(name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> Namespace:
    """Return what a command parses, without running it."""
    parse = Parser.parse

    def stop(parser: Parser, arguments: list[str]) -> Namespace:
        options = parse(parser, arguments)
        if parser.prog == "minigpt bench":  # the options of a benchmark have a parser of their own
            return options
        raise Parsed(options)

    monkeypatch.setattr(Parser, "parse", stop)
    try:
        importlib.import_module(f"minigpt.commands.{name}").main(arguments)
    except Parsed as caught:
        return caught.options
    raise AssertionError(f"minigpt {name} has no parser")


def check_designs(overrides: list[str]) -> None:
    """Compose the config of the first values of all overrides."""
    first = []
    for override in overrides:
        key, values = parse_values(override)
        if isinstance(values, Interval):
            first.append(f"{key}={values.low}")
        else:
            first.append(override if values is None else f"{key}={values[0]}")
    composed_config(first)
