"""Weights with the parameter names of earlier versions load, and their runs resume."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from minigpt.errors import UserError
from minigpt.model import GPT
from minigpt.run.weights import WEIGHTS, load_weights
from tests.conftest import TINY, Cli
from tests.model.tiny import N_VOCAB, random_model, tiny_config

# Patterns of current parameter names, and what earlier versions wrote instead.
EARLIER_NAMES = {
    r"\.self_attention\.": ".attention.",
    r"_output_norm\.": "_result_norm.",
    r"\.value_weights$": ".value_parts",
    r"^skip_weights$": "skip_parts",
}


def save_under_earlier_names(tensors: Mapping[str, torch.Tensor], directory: Path) -> set[str]:
    """Save tensors under the parameter names of an earlier version; return these names."""
    earlier = {}
    for name, tensor in tensors.items():
        for pattern, replacement in EARLIER_NAMES.items():
            name = re.sub(pattern, replacement, name)
        earlier[name] = tensor.clone()
    save_file(earlier, directory / WEIGHTS)
    return set(earlier)


@pytest.mark.parametrize("embedding", ["tied", "untied"])
def test_earlier_parameter_names_load(embedding: str, tmp_path: Path) -> None:
    config = tiny_config(
        placement="sandwich",
        embedding=embedding,
        attention="landmark",
        attention_options={"block": 2},
        value_residual=True,
        unet_skips=True,
    )
    model, loaded = random_model(config), GPT(config, N_VOCAB)
    tensors = dict(model.named_parameters())  # without the tied head
    names = save_under_earlier_names(tensors, tmp_path)
    assert names > {
        *("blocks.0.attention.qkv.weight", "blocks.1.attention.value_parts", "skip_parts"),
        *("blocks.0.attention_result_norm.weight", "blocks.1.ffn_result_norm.weight"),
        *("attention.mark", "blocks.0.attention_norm.weight"),
    }
    load_weights(tmp_path, loaded)
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, tensors[name]), name
    with pytest.raises(UserError, match=r"does not fit the model of config\.yaml"):
        load_weights(tmp_path, GPT(tiny_config(), N_VOCAB))


def test_a_run_of_an_earlier_version_resumes(cli: Cli) -> None:
    options = [*TINY, "norm=peri", "optimizer=muon"]
    for run in ("earlier", "present"):
        assert cli("train", *options, "trainer.max_steps=6", f"hydra.run.dir={run}").code == 0
    for checkpoint in ("last", "best"):
        directory = Path("earlier/checkpoints", checkpoint)
        names = save_under_earlier_names(load_file(directory / WEIGHTS), directory)
        assert "blocks.0.attention.qkv.weight" in names
        (directory / "checksums.json").unlink()
    assert cli("eval", "earlier").code == 0
    for run in ("earlier", "present"):
        assert cli("train", f"resume={run}", "trainer.max_steps=12").code == 0
    weights = [load_file(Path(run, "checkpoints/last", WEIGHTS)) for run in ("earlier", "present")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
