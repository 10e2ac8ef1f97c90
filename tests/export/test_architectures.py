"""Each architecture: transformers computes what minigpt computes, and weights come back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from minigpt.config.compose import composed_config
from minigpt.config.groups import choices
from minigpt.errors import UserError
from minigpt.export import architecture as architecture_module
from minigpt.export.architecture import Architecture, Requirement
from minigpt.export.architectures import LEAVING, choose_architecture, design_table
from minigpt.export.check import check_logits, check_tokenizer, import_transformers
from minigpt.export.folder import read_folder, write_model
from minigpt.inference.generate import Sampling, generate
from minigpt.model import GPT, ModelConfig
from minigpt.runtime import choose_runtime
from minigpt.tokenizer.char import CharTokenizer
from tests.export.designs import DESIGNS, FAMILIES, N_VOCAB, REFUSED, violating
from tests.model.tiny import random_model, random_tokens

TOKENIZER = CharTokenizer("\n !abcdefghij")
BASE = composed_config(["logger=none"])
BY_TYPE = {one.model_type: one for one in LEAVING}
# Families that do not leave as the architecture of their name.
OTHERS = {"gemma": "gemma2", "qwen2": "llama"}
OF_FAMILY = {name: BY_TYPE[OTHERS.get(name, name)] for name in FAMILIES}
CASES = [
    pytest.param(one, config, id=f"{one.name}-{number}")
    for one in LEAVING
    for number, config in enumerate(DESIGNS[one.name])
] + [
    pytest.param(OF_FAMILY[name], config, id=f"model={name}-{config.embedding.name}")
    for name, configs in FAMILIES.items()
    for config in configs
]


def written(folder: Path, config: ModelConfig) -> GPT:
    """Write a random model of a design. Return it."""
    model = random_model(config, N_VOCAB)
    write_model(folder, model, replace(BASE, model=config), TOKENIZER, {})
    return model


@pytest.mark.parametrize(("architecture", "config"), CASES)
def test_transformers_computes_the_same(
    tmp_path: Path, architecture: Architecture, config: ModelConfig
) -> None:
    """In fp32: within 2e-5, several times the rounding that is seen; logits are below 10."""
    assert choose_architecture(config) is architecture
    model = written(tmp_path, config)
    tokens = random_tokens(1, 40, N_VOCAB)[0]
    assert check_logits(tmp_path, model, tokens) < 2e-5
    assert check_tokenizer(tmp_path, TOKENIZER, ["a cab\n !"], lambda _: None) == 8
    # Both sides continue a prompt in the same way. A learned table ends at block_size.
    n = 10 if architecture.name == "GPT-2" else 20
    prompt = tokens[: config.block_size // 3].tolist()
    theirs = import_transformers().AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = theirs.generate(torch.tensor([prompt]), max_new_tokens=n, do_sample=False)
    runtime = choose_runtime("cpu", "fp32")
    rows = generate(model, [prompt], n, Sampling(0.0), runtime=runtime, context="all")
    ours = [row[0] for row in rows]
    assert ids[0, len(prompt) :].tolist() == ours


@pytest.mark.parametrize(("architecture", "config"), CASES)
def test_weights_come_back(tmp_path: Path, architecture: Architecture, config: ModelConfig) -> None:
    """Bit for bit, where they need not be those of an equal design; and they leave again alike."""
    model = written(tmp_path, config)
    read = read_folder(tmp_path)
    assert read.config.model.block_size == config.block_size
    assert choose_architecture(read.config.model) is architecture
    assert not architecture.rewrites(read.config.model)
    theirs, ours = read.model.state_dict(), model.state_dict()
    if not architecture.rewrites(config):
        for name, tensor in theirs.items():
            if name in ours:
                assert torch.equal(tensor, ours[name][: len(tensor)]), name
            else:  # a bias that the design lacks
                assert name.endswith("bias") and not tensor.any(), name
    tokens = random_tokens(2, config.block_size, N_VOCAB)
    torch.testing.assert_close(read.model(tokens), model(tokens), rtol=1e-4, atol=1e-4)
    assert read.tokenizer.fingerprint == TOKENIZER.fingerprint


@pytest.mark.parametrize("architecture", LEAVING, ids=lambda one: one.name)
def test_a_violated_requirement_is_refused_by_name(architecture: Architecture) -> None:
    config = DESIGNS[architecture.name][0]
    for requirement in architecture.requirements:
        found = architecture.violations(violating(config, requirement))
        assert requirement in found, requirement.key
        assert architecture.violations(config) == []


@pytest.mark.parametrize("key", ["qk_norm", "value_residual", "unet_skips", "head_gates"])
def test_the_refusal_names_option_and_nearest_design(key: str) -> None:
    config = violating(DESIGNS["Llama"][1], Requirement(f"model.{key}", (False,), ""))
    with pytest.raises(UserError) as refused:
        choose_architecture(config)
    line = str(refused.value)
    assert line.startswith(f"model.{key}=") and line.endswith(f"as Llama: model.{key}=false")


def test_the_nearest_design_may_differ_in_several_options() -> None:
    config = composed_config([]).model
    with pytest.raises(UserError, match=r"model\.qk_norm=true: .*as GPT-NeoX: model\.qk_norm=fal"):
        choose_architecture(config)
    with pytest.raises(UserError, match=r"model\.positional\.name=cope: .*positional=learned"):
        choose_architecture(
            replace(config, positional=composed_config(["positional=cope"]).model.positional)
        )


def test_families_leave_or_are_refused() -> None:
    assert {*FAMILIES, *REFUSED} == {*choices("model")}
    for name, start in REFUSED.items():
        with pytest.raises(UserError) as refused:
            choose_architecture(composed_config([f"model={name}"]).model)
        assert str(refused.value).startswith(f"{start}: no architecture of transformers has it")


def test_an_option_that_the_export_does_not_know_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A later option of designs, with another value than its default, does not leave unnoticed."""
    known = architecture_module._options

    def with_another(config: Any, prefix: str) -> Any:
        yield from known(config, prefix)
        if prefix == "model.":
            yield "model.later", True, False

    monkeypatch.setattr(architecture_module, "_options", with_another)
    (found,) = LEAVING[0].violations(DESIGNS["GPT-2"][0])
    assert found.key == "model.later" and found.remedy == "model.later=false"


def test_the_page_has_the_table() -> None:
    """If it fails, write the table with `python -m tests.export.test_architectures`."""
    assert table_of_page() == design_table()


PAGE = Path(__file__).parent.parent.parent / "docs" / "export.md"
BEGIN, END = "<!-- written from minigpt/export/architectures.py -->\n\n", "\n<!-- end of table -->"


def table_of_page() -> str:
    """Return the table in docs/export.md."""
    return PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    before, _, after = text.partition(BEGIN)
    table = design_table()
    PAGE.write_text(before + BEGIN + table + END + after.partition(END)[2], encoding="utf-8")
