"""--help explains every group, choice and option with the comments of the YAML files."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from minigpt.commands.options import Parser
from minigpt.config.comments import CommentedFile, Option
from minigpt.config.compose import plain_values
from minigpt.config.explain import Group, all_groups, all_options, with_types
from minigpt.config.groups import choices, config_directory, config_groups, section_of
from minigpt.config.overrides import compose_overrides
from minigpt.config.pairs import flat
from minigpt.sweep.match import SweepConfig
from tests.conftest import Cli

GROUPS = {group.name: with_types(group, {"sweep": SweepConfig}) for group in all_groups()}


def composed(*overrides: str) -> dict[str, object]:
    """Return every value of the composed config by full key."""
    return flat(plain_values(compose_overrides(["logger=none", *overrides]).values))


def explained_keys(overrides: dict[str, str]) -> dict[str, Option]:
    """Return the options of all groups, with the given choices and the default ones."""
    chosen = {name: overrides.get(name, group.default) for name, group in GROUPS.items()}
    return {
        option.key: option
        for name, group in GROUPS.items()
        for options in (
            group.options,
            *(c.options for c in group.choices if c.name == chosen[name]),
        )
        for option in options
    }


def changed_by_design(name: str) -> set[str]:
    """Return the keys that the file of a design sets."""
    file = config_directory() / f"model/{name}.yaml"
    return set(flat({"model": yaml.safe_load(file.read_text())})) if file.exists() else set()


@pytest.mark.parametrize("group", GROUPS.values(), ids=lambda group: group.name or "top level")
def test_every_choice_and_option_has_an_explanation_a_type_and_a_default(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, group: Group
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    topics = [group.name] if group.name else [option.key for option in group.options]
    lines = [line.split() for line in cli("train", "--help", *topics).out.splitlines()]
    for choice in group.choices:
        assert choice.text and [choice.name, *choice.text.split()] in lines
    assert group.text or not group.name
    for option in all_options(group):
        assert option.text and option.type
        typed = f"{option.key}={option.typed}"
        assert [typed, *option.type.split(), *option.text.split()] in lines, typed


def test_explained_options_are_those_of_the_config() -> None:
    variants = [{}] + [
        {group: choice}
        for group in (
            "data",
            "tokenizer",
            "positional",
            "attention",
            "ffn",
            "optimizer",
            "schedule",
        )
        for choice in choices(group)
    ]
    for variant in variants:
        overrides = [f"{key}={value}" for key, value in variant.items()]
        values = composed(*overrides)
        of_design = changed_by_design(str(values["model.name"]))
        names = {f"{section_of(group)}.name" for group in config_groups()} | {
            "model.norm.placement"
        }
        explained = explained_keys({"logger": "none", **variant})
        assert set(values) - names - {"model.name"} == set(explained) - {"model.name"}
        for key, option in explained.items():
            if option.default is not None:
                default = OmegaConf.create(f"value: {option.default}").value
                assert default == values[key] or key in of_design, key


def test_types_come_from_the_dataclasses() -> None:
    types = {option.key: option.type for option in explained_keys({}).values()}
    assert types["optimizer.lr"] == "float" and types["optimizer.grad_clip"] == "float or null"
    assert types["tags"] == "list of str" and types["model.bias"] == "bool or str"
    assert types["sweep.dry_run"] == "bool" and types["resume"] == "str or null"


def test_model_explains_designs_without_a_file() -> None:
    (rope,) = (choice for choice in GROUPS["model"].choices if choice.name == "rope")
    assert rope.text.startswith("The default design. Rotary") and rope.sets == ["positional=rope"]
    (claim,) = GROUPS["experiment"].only(["claims/norm"]).choices
    expected = ["experiment=claims/posts", "norm=pre,post", "model.n_layer=4,8,16"]
    assert claim.sets[:3] == expected


@pytest.mark.parametrize("command", [["train"], ["tune"], ["data"], ["bench", "train"]])
@pytest.mark.parametrize("topics", [["positional=rope,t5"], ["optimizer.lr=3", "model.norm"]])
def test_commands_with_overrides_explain_groups(
    cli: Cli, capfd: pytest.CaptureFixture[str], command: list[str], topics: list[str]
) -> None:
    expected = cli("train", "--help", *topics).out
    assert expected.startswith(("positional=CHOICE", "norm=CHOICE", "optimizer=CHOICE"))
    if command == ["train"]:
        return
    with pytest.raises(SystemExit) as exit_:
        cli(*command, "--help", *topics)
    assert exit_.value.code == 0 and capfd.readouterr().out == expected


def test_arguments_before_help_are_topics(cli: Cli) -> None:
    outcome = cli("train", "model.n_head=2", "--help")
    assert outcome.code == 0 and "attention heads" in outcome.out and "lr" not in outcome.out


@pytest.mark.parametrize(
    ("topic", "message"),
    [
        ("positionl", "--help positionl: no such config group or option. Did you mean positional"),
        ("lr", "--help lr: no such config group or option. Did you mean optimizer.lr?"),
        ("positional=ropee", "positional=ropee: no such positional. Did you mean rope"),
    ],
)
def test_unknown_topics_are_one_line(cli: Cli, topic: str, message: str) -> None:
    outcome = cli("train", "--help", topic)
    assert outcome.code == 2 and message in outcome.err and outcome.err.count("\n") == 1


def test_help_as_json(cli: Cli) -> None:
    (group,) = json.loads(cli("train", "--help", "--json", "tokenizer=bpe").out)
    (choice,) = group["choices"]
    assert choice["options"] == [
        {
            "key": "tokenizer.vocab_size",
            "default": "1024",
            "text": "at least 256; a small corpus may give fewer tokens",
            "type": "int",
        }
    ]
    assert len(json.loads(cli("train", "--json", "--help").out)) == len(config_groups()) + 1
    assert "--json belongs to --help" in cli("train", "--json").err


@pytest.mark.parametrize(
    ("flags", "named"),
    [("--json -m --cfg job seed", "--multirun, --cfg"), ("--resolve", "--resolve")],
)
def test_help_takes_no_flags_of_training(cli: Cli, flags: str, named: str) -> None:
    outcome = cli("train", "--help", *flags.split())
    assert outcome.code == 2 and outcome.out == "" and outcome.err.count("\n") == 1
    assert sorted(named.split(", ")) == sorted(re.findall(r"--(?!help)\w+", outcome.err))


def test_lines_of_help_have_no_spaces_at_the_end(cli: Cli) -> None:
    for topics in ([], ["optimizer"], ["experiment"]):
        lines = cli("train", "--help", *topics).out.splitlines()
        assert lines == [line.rstrip() for line in lines]


def test_a_parser_refuses_a_flag_that_is_added_twice() -> None:
    parser = Parser("x", "", [])
    parser.add_options({"--seed N": ""})
    with pytest.raises(argparse.ArgumentError):
        parser.add_options({"--seed N": ""})


def test_help_explains_choices_of_a_users_folder(cli: Cli, workdir: Path) -> None:
    file = workdir / "own/optimizer/mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("# Mine.\nname: adamw\nlr: 0.5  # high\n")
    (workdir / "own/experiment").mkdir()
    (workdir / "own/experiment/x.yaml").write_text("# @package _global_\nseed: ???\n")
    printed = cli("train", "--config-dir", "own", "--help", "optimizer=mine").out
    assert "mine    Mine." in printed and "optimizer.lr=0.5 " in printed
    assert "seed=???" in cli("train", "--config-dir", "own", "--help", "experiment=x").out
    file.write_text("name: adamw\nlearning: 0.5\n")
    outcome = cli("train", "--config-dir", "own", "--help", "optimizer=mine")
    assert outcome.code == 2 and outcome.err == "minigpt: optimizer.learning: no such option.\n"
    file.write_text("name: [\n")
    outcome = cli("train", "--config-dir", "own", "--help", "optimizer")
    assert (
        outcome.code == 2
        and "own/optimizer/mine.yaml, line 2" in outcome.err
        and outcome.err.count("\n") == 1
    )


@pytest.mark.parametrize(
    ("value", "typed"),
    [
        ("'0.003'  # quoted", "'0.003'"),
        ("|\n  a\n  b\n", '"a\\nb\\n"'),
        ("|\n  a", "a"),
        ("[[a,b], c,\n  {d: 1}]", "[[a,b],c,{d: 1}]"),
        ("\n  - a\n  - 'b, c'\n", "[a,'b, c']"),
        ("", "null"),
        ("&anchor 0.5  # high", "0.5"),
    ],
)
def test_every_yaml_value_is_one_line(workdir: Path, value: str, typed: str) -> None:
    file = workdir / "x.yaml"
    file.write_text(f"name: 'x'\nlr: {value}")
    name, option = CommentedFile(file).options("optimizer.")
    assert (name.default, option.key, option.default) == ("x", "optimizer.lr", typed)
    assert option.text == value.partition("# ")[2]
    read = OmegaConf.create(f"value: {option.default}").value
    assert read == OmegaConf.create(file.read_text()).lr


def test_keys_of_yaml_merges_are_options(workdir: Path) -> None:
    file = workdir / "x.yaml"
    file.write_text("a: &a {b: 1}\nc:\n  <<: *a\n  d: 2\n")
    keys = [option.key for option in CommentedFile(file).options("")]
    assert keys == ["a.b", "c.b", "c.d"]


def test_a_users_list_and_block_of_text_are_explained(cli: Cli, workdir: Path) -> None:
    file = workdir / "own/experiment/mine.yaml"
    file.parent.mkdir(parents=True)
    text = "# @package _global_\ndefaults: [{override /norm: pre}]\ntags: [[a,b],c]\nname: |\n  n"
    file.write_text(text)
    outcome = cli("train", "--config-dir", "own", "--help", "experiment=mine")
    assert outcome.code == 0 and "norm=pre tags=[[a,b],c] name=n" in outcome.out


def test_a_missing_users_folder_is_reported(cli: Cli) -> None:
    outcome = cli("train", "--config-dir", "nope", "--help")
    assert outcome.err == "minigpt: --config-dir=nope: no such folder; give one with YAML files\n"


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m minigpt.cli train --help | head -1"
    result = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True
    )
    assert result.stdout.startswith("usage: minigpt train") and "Traceback" not in result.stderr
