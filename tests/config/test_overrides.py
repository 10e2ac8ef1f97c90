"""Overrides mean what was typed."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from minigpt.config.compose import composed_config
from minigpt.config.explain import all_groups, all_options
from minigpt.config.overrides import (
    NULLABLE_TEXTS,
    TEXT_OPTIONS,
    combinations,
    compose_overrides,
    quoted,
)
from minigpt.config.saved import read_config
from minigpt.config.schema import REGISTRIES, Config, TrainerConfig
from minigpt.errors import UserError
from tests.conftest import TINY, Cli

# Options of type str that take one of a few names, which are no numbers.
CHOICES = {
    *("trainer.device", "trainer.precision", "trainer.graph", "logger.mode", "data.order"),
    *("trainer.parallel", "logger.log_model"),
    *("model.positional.layers", "model.positional.scaling", "model.positional.table"),
    *("model.positional.slopes", "model.positional.heads", "model.ffn.expert"),
}


def test_text_options_are_all_options_of_type_str() -> None:
    classes: list[tuple[str, Any]] = [("", Config), ("trainer.", TrainerConfig)]
    for key, registry in REGISTRIES.items():
        classes += [(f"{key}.", registry.options(name)) for name in registry.names()]
    keys = {
        f"{prefix}{name}"
        for prefix, cls in classes
        for name, kind in get_type_hints(cls).items()
        if kind in (str, str | None, list[str])
    }
    variants = {f"{key}.name" for key in REGISTRIES} | {
        *("model.attention.layers", "adapter.targets", "objective.name")
    }
    expected = {key for key in TEXT_OPTIONS if key != "resume" and not key.startswith("hydra.")}
    assert keys - variants - CHOICES == expected


@pytest.mark.parametrize("key", TEXT_OPTIONS)
def test_texts_are_quoted_so_that_hydra_reads_them_as_typed(key: str) -> None:
    parser = OverridesParser.create()
    for text in ("7", "1e3", "2024_11_28", "true", "  To be ", "0x1F", "1_0", "inf", "it's", "(a"):
        assert parser.parse_override(quoted(f"{key}={text}")).value() == text
    assert parser.parse_override(quoted(f"{key}=null")).value() is None
    assert parser.parse_override(quoted(f"{key}='7'")).value() == "7"
    assert parser.parse_override(quoted(f"{key}=[7, a,1e3]")).value() == ["7", "a", "1e3"]


def test_none_is_null_where_null_is_the_default(workdir: Path) -> None:
    options = {option.key: option for group in all_groups() for option in all_options(group)}
    nullable = {key for key in TEXT_OPTIONS if key in options and options[key].default == "null"}
    assert nullable == set(NULLABLE_TEXTS)
    for key in (*NULLABLE_TEXTS, "model.n_kv_head"):
        assert quoted(f"{key}=None") == f"{key}=null"
    assert quoted("data.path=None") == "data.path=None"
    arguments = ["logger=wandb", "name=None", "group=None", "logger.entity=None"]
    values = compose_overrides(arguments).values
    assert values.name is None and values.group is None and values.logger.entity is None


def test_numbers_stay_numbers() -> None:
    for override in ("seed=7", "optimizer.lr=1e-3", "trainer.compile=true", "model.n_head=null"):
        assert quoted(override) == override


def test_every_text_can_be_quoted() -> None:
    parser = OverridesParser.create()
    for parts in itertools.product(("\\", "'", '"', "a", "(", ",", " "), repeat=4):
        text = "(" + "".join(parts)  # Hydra cannot parse it without quotes
        assert parser.parse_override(quoted(f"data.path={text}")).value() == text


def test_texts_in_a_config() -> None:
    config = composed_config(["name=7", "group=1e3", "tags=[2024_11_28,a]", "logger=none"])
    assert (config.name, config.group, config.tags) == ("7", "1e3", ["2024_11_28", "a"])


def test_texts_in_a_sweep() -> None:
    jobs = combinations(["name=1e3,2024_11_28", "seed=1"])
    names = [composed_config([*job, "logger=none"]).name for job in jobs]
    assert names == ["1e3", "2024_11_28"]


@pytest.mark.parametrize("name", ["7", "2024_11_28", "true"])
def test_a_run_is_named_as_typed(cli: Cli, workdir: Path, name: str) -> None:
    outcome = cli("train", *TINY, f"name={name}", "trainer.max_steps=1")
    assert outcome.code == 0, outcome.err
    (run,) = (workdir / "runs").iterdir()
    assert f"_{name}_" in run.name and read_config(run / "config.yaml").name == name
    outcome = cli("train", "-m", *TINY, f"name={name},1e3", "trainer.max_steps=1")
    assert outcome.code == 0, outcome.err
    assert {read_config(file).name for file in Path("runs").glob("*/*/config.yaml")} == {
        name,
        "1e3",
    }


@pytest.mark.parametrize("flags", [[], ["-m"]], ids=["run", "sweep"])
def test_a_syntax_error_in_an_experiment_names_file_line_and_column(
    cli: Cli, workdir: Path, flags: list[str]
) -> None:
    file = workdir / "own/experiment/mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("# @package _global_\ntrainer:\n  max_steps: 5\n batch_size: [1\n")
    outcome = cli("train", *flags, "--config-dir", "own", "experiment=mine", "logger=none")
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    assert f"{file}, line 4, column 2: not valid YAML" in outcome.err
    file.write_bytes(b"# @package _global_\nname: caf\xe9\n")
    outcome = cli("train", *flags, "--config-dir", "own", "experiment=mine", "logger=none")
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and "UTF-8" in outcome.err


@pytest.mark.parametrize(
    ("override", "why"),
    [
        ("name=${nope:1}", "Unsupported interpolation type nope"),
        ("trainer.sample_prompt=${HOME}", "Interpolation key 'HOME' not found"),
        ("seed=${oc.env:NOPE}", "Environment variable 'NOPE' not found"),
    ],
)
@pytest.mark.parametrize("command", [("train",), ("train", "-m"), ("bench", "train")])
def test_an_interpolation_names_the_option(
    command: tuple[str, ...], override: str, why: str, cli: Cli
) -> None:
    outcome = cli(*command, *TINY, override)
    assert outcome.code == 2 and outcome.err.startswith(f"minigpt: {override}: ")
    assert why in outcome.err and "for the text itself write \\${...}" in outcome.err
    assert outcome.err.count("\n") == 1 and not Path("runs").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("defaults: 3", "--config-dir: Invalid defaults list in 'experiment/own'"),
        ("defaults: [1]", "--config-dir: "),
        ("hydra: 3", "In 'experiment/own': ValidationError raised while composing config: Merge"),
    ],
)
def test_an_experiment_that_hydra_cannot_compose_is_one_line(
    text: str, message: str, cli: Cli
) -> None:
    Path("own/experiment").mkdir(parents=True)
    Path("own/experiment/own.yaml").write_text(f"# @package _global_\n{text}\n")
    outcome = cli("train", "--config-dir", "own", "experiment=own", *TINY)
    assert outcome.code == 2 and message in outcome.err and outcome.err.count("\n") == 1


def test_an_experiment_may_set_every_option_of_the_root(cli: Cli) -> None:
    Path("own/experiment").mkdir(parents=True)
    values = "seed: 7\nname: mine\ngroup: ours\ntags: [a]\n"
    Path("own/experiment/own.yaml").write_text(f"# @package _global_\n{values}")
    command = ("train", "--config-dir", "own", "experiment=own", "--cfg", "job")
    for line in ("seed: 7", "name: mine", "group: ours", "tags:\n- a"):
        assert f"\n{line}\n" in cli(*command).out
    assert "\nseed: 3\n" in cli(*command, "seed=3").out


def test_arguments_that_are_not_utf8_are_recorded(cli: Cli) -> None:
    folder = os.fsdecode(b"own\xff")
    Path(folder, "experiment").mkdir(parents=True)
    options = ["trainer.max_steps=1", "hydra.run.dir=run"]
    assert cli("train", "--config-dir", folder, *TINY, *options).code == 0
    command = json.loads(Path("run/manifest.json").read_text())["command"]
    assert "own\\xff" in command


@pytest.mark.parametrize("value", ["2", "2.5", "1", "maybe", "[a]"])
def test_a_value_of_compile_is_auto_or_a_boolean(value: str) -> None:
    with pytest.raises(UserError, match=r"^trainer\.compile=.*: must be auto, true or false$"):
        composed_config([f"trainer.compile={value}"])


@pytest.mark.parametrize("override", ["trainer.graph=[on]", "trainer.device={a:1}"])
def test_a_list_is_not_a_text(override: str) -> None:
    with pytest.raises(UserError, match=r"^trainer\.\w+=.*: must be one value$"):
        composed_config([override])


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        ("model=gpt_neox positional=rope", "positional", {"fraction": 0.25}),
        ("model=gpt_neox positional=xpos", "positional", {"fraction": None, "base": 10000.0}),
        ("model=gemma attention=full", "attention", {"layers": None}),
        ("model=gemma attention=chunked", "attention", {"layers": ["chunked"]}),
        ("model=mistral ffn=gelu", "ffn", {"expansion": 4.0}),
        ("model=mistral ffn=gelu model.ffn.expansion=3.5", "ffn", {"expansion": 3.5}),
        ("model=gemma embedding=untied", "embedding", {"scale": True}),
    ],
)
def test_another_choice_replaces_the_options_that_a_design_sets(
    overrides: str, key: str, value: dict[str, Any]
) -> None:
    section = vars(getattr(composed_config(overrides.split()).model, key))
    assert {option: section.get(option) for option in value} == value


def test_options_of_a_replaced_part_are_reported_if_given() -> None:
    with pytest.raises(UserError, match=r"^model\.positional\.fraction: no such option"):
        composed_config(["model=gpt_neox", "positional=alibi", "model.positional.fraction=0.5"])


@pytest.mark.parametrize(
    ("overrides", "name", "fraction"),
    [
        ("model=bert", "masked", 0.15),
        ("objective.fraction=0.3 model=bert", "masked", 0.3),
        ("model=t5_encoder_decoder", "denoise", 0.15),
        ("model=bert objective=denoise", "denoise", 0.15),
        ("objective=causal model=bert", "causal", None),
    ],
)
def test_a_design_sets_the_objective_unless_another_is_given(
    overrides: str, name: str, fraction: float | None
) -> None:
    objective = composed_config(overrides.split()).objective
    assert objective.name == name and getattr(objective, "fraction", None) == fraction
