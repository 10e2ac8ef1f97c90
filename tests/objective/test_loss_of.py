"""Every place that shows a loss says which tokens it is of, and none compares objectives."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from minigpt.config.compose import composed_config
from minigpt.evaluate.loss import Evaluation, evaluate
from minigpt.loss_of import EVERY_TOKEN, grouped
from minigpt.objective.base import OBJECTIVES
from minigpt.run.load import TrainedRun
from tests.conftest import TINY, Cli

QUIET = [*TINY, "trainer.sample_every=null"]


def train(cli: Cli, *overrides: str) -> dict[str, Any]:
    """Train a run in `run`; return result.json."""
    done = cli("train", *QUIET, *overrides, "hydra.run.dir=run")
    assert done.code == 0, done.err
    return json.loads(Path("run/result.json").read_text())


@pytest.mark.parametrize("name", ["prefix", "masked", "denoise"])
def test_result_and_display_say_which_tokens_the_loss_is_of(cli: Cli, name: str) -> None:
    done = cli("train", *QUIET, f"objective={name}", "hydra.run.dir=run")
    assert done.code == 0, done.err
    result = json.loads(Path("run/result.json").read_text())
    loss_of = OBJECTIVES.variant(name).loss_of
    assert result["objective"] == name and result["loss_of"] == loss_of
    lines = done.out.splitlines()
    evaluations = [line for line in lines if "  val loss " in line]
    assert len(evaluations) == 3
    assert all(f" nats/token ({loss_of})  perplexity " in line for line in evaluations)
    assert any(line.split() == ["losses", "of", *loss_of.split()] for line in lines)
    assert any(line.startswith(f"objective  {name}") and loss_of in line for line in lines)
    key = "val_continuation_bits_per_byte"
    assert result.get(key) == (result["val_bits_per_byte"] if name == "prefix" else None)


def test_a_causal_run_shows_no_tokens(cli: Cli) -> None:
    done = cli("train", *QUIET, "hydra.run.dir=run")
    result = json.loads(Path("run/result.json").read_text())
    assert result["objective"] == "causal" and result["loss_of"] == EVERY_TOKEN
    assert EVERY_TOKEN not in done.out and "objective" not in done.out


@pytest.mark.parametrize("block_size", [2, 3, 7, 8])
@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_continuing_text_of_a_causal_run(cli: Cli, block_size: int, tokenizer: str) -> None:
    result = train(cli, f"model.block_size={block_size}", f"tokenizer={tokenizer}")
    trained = TrainedRun.load("run", "last")
    split, half = trained.tokens().val, block_size // 2
    nats, n_bytes = 0.0, 0
    for batch in split.windows(block_size, 1):
        ids = batch.targets[0, half - 1 :].tolist()
        with trained.model.evaluating(), trained.runtime.autocast():
            losses = trained.model.loss(batch.inputs, batch.targets, reduction="none")
        nats += losses[half - 1 :].double().sum().item()
        n_bytes += sum(len(trained.tokenizer.token_bytes(token)) for token in ids)
    expected = nats / math.log(2) / n_bytes
    assert result["val_continuation_bits_per_byte"] == pytest.approx(expected, rel=1e-6)
    without = evaluate(trained.model, split, trained.runtime)
    with_it = evaluate(trained.model, split, trained.runtime, objective=trained.objective)
    assert without == replace(with_it, continuation_bits_per_byte=None)
    assert with_it.continuation_bits_per_byte == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("options", [["model.block_size=1"], ["data.document_separator=.\\n"]])
def test_continuing_text_is_left_out_where_it_is_not_defined(cli: Cli, options: list[str]) -> None:
    assert "val_continuation_bits_per_byte" not in train(cli, *options)


def test_continuing_text_of_the_best_checkpoint(cli: Cli) -> None:
    result = train(cli, "trainer.patience=1", "trainer.eval_every=1", "optimizer.lr=3")
    assert result["steps"] < 12  # so that the best is not the last
    trained = TrainedRun.load("run", "best")
    best = evaluate(
        trained.model, trained.tokens().val, trained.runtime, objective=trained.objective
    )
    assert result["best_val_continuation_bits_per_byte"] == best.continuation_bits_per_byte
    assert result["val_continuation_bits_per_byte"] != best.continuation_bits_per_byte


def test_tasks() -> None:
    masked = {"name": "masked", "fraction": 0.15, "span": 1}
    other = masked | {"fraction": 0.3}
    causal = {"name": "causal"}

    def groups(*tasks: dict[str, Any] | None) -> dict[str, list[dict[str, Any] | None]]:
        return grouped(tasks, lambda task: task)

    assert groups(masked, causal, masked, None) == {
        "masked": [masked, masked, None],
        "causal": [causal],
    }
    assert [*groups(other, masked)] == ["masked fraction=0.3", "masked fraction=0.15"]
    assert groups(None) == {"causal": [None]}
    assert [*groups(masked, masked | {"span": 1.0})] == ["masked"]


def test_what_decides_the_tokens() -> None:
    def task(*overrides: str) -> dict[str, Any]:
        return composed_config(list(overrides)).task

    assert task() == task("objective.teacher=runs/a", "model.block_size=64", "tokenizer=bpe")
    for objective in ("prefix", "masked", "denoise"):
        own = task(f"objective={objective}")
        assert own == task(f"objective={objective}", "positional=alibi", "optimizer.lr=0.1")
        for other in ("model.block_size=64", "tokenizer=bpe"):
            assert own != task(f"objective={objective}", other)
    assert task("objective=denoise") != task("objective=denoise", "objective.span=4")


def test_evaluation_defaults_to_every_token() -> None:
    assert Evaluation(1.0, 2.0, []).loss_of == OBJECTIVES.variant("causal").loss_of == EVERY_TOKEN
