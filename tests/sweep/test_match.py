"""`sweep.match`: designs with equal steps, tokens, parameters or FLOPs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.conftest import TINY, Cli
from tests.sweep.helpers import HERE


def second_width() -> int:
    """Return n_embd of the second run."""
    config = OmegaConf.load("sweep/n_layer=3_batch_size=8/config.yaml")
    return int(config.model.n_embd)


def test_flops_include_the_products_of_a_scheme(cli: Cli) -> None:
    """At this size the product of queries and positions is a seventh of all FLOPs."""
    options = ["model=nope,integrated", "model.block_size=64", "sweep.match=flops", HERE]
    assert cli("train", "-m", *TINY, *options).code == 0
    results = [
        json.loads(Path(f"sweep/model={name}/result.json").read_text())
        for name in ("nope", "integrated")
    ]
    assert [result["steps"] for result in results] == [12, 10]


def test_equal_bytes_of_text_for_tokenizers(cli: Cli) -> None:
    """Byte pairs are several bytes each, so that fewer steps read as much text."""
    options = ["tokenizer=char,bpe", "trainer.max_steps=40", "sweep.match=bytes", HERE]
    assert cli("train", "-m", *TINY, *options).code == 0
    manifest = json.loads(Path("sweep/tokenizer=bpe/manifest.json").read_text())
    result = json.loads(Path("sweep/tokenizer=bpe/result.json").read_text())
    text = Path("text.txt").read_bytes()[: manifest["characters"]["train"]]  # of one byte each
    per_token = len(text) / manifest["tokens"]["train"]
    assert per_token > 1.5
    assert result["steps"] == pytest.approx(40 / per_token, abs=1)


@pytest.mark.parametrize("match", ["steps", "tokens", "parameters", "flops"])
def test_runs_match_in_the_chosen_quantity(cli: Cli, match: str) -> None:
    """Without sweep.match, the two designs differ in every quantity but steps."""
    options = ["trainer.batch_size=4,8", "model.n_layer=1,3", f"sweep.match={match}", HERE]
    assert cli("train", "-m", *TINY, *options, "model.n_embd=32").code == 0
    first, second = (
        json.loads(Path(f"sweep/n_layer={n}_batch_size={b}/result.json").read_text())
        for b, n in ((4, 1), (8, 3))
    )
    manifest = json.loads(Path("sweep/n_layer=3_batch_size=8/manifest.json").read_text())
    assert manifest["match"]["what"] == match
    parameters = [result["parameters"]["total"] for result in (first, second)]
    tokens = [first["steps"] * 4 * 8, second["steps"] * 8 * 8]
    flops = [
        n * result["flops_per_token"] for n, result in zip(tokens, (first, second), strict=True)
    ]
    amounts = {"steps": [first["steps"], second["steps"]], "parameters": parameters}
    amounts |= {"tokens": tokens, "flops": flops}
    expected, amount = amounts[match]
    assert [expected, amount] == manifest["match"]["amount"]
    assert abs(expected - amount) <= {"flops": 0.1, "parameters": 0.1}.get(match, 0) * expected
    changed = {
        "steps": {},
        "tokens": {"trainer.max_steps": [12, 6]},
        "flops": {"trainer.max_steps": [12, second["steps"]]},
        "parameters": {"model.n_embd": [32, second_width()]},
    }
    assert manifest["match"]["changed"] == changed[match]
    assert second["steps"] < 6 if match == "flops" else second_width() <= 32
    assert (second_width() < 32) == (match == "parameters")
