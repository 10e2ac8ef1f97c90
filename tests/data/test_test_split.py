"""`data.test_fraction`: a test split from the end of the text, which training never reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from minigpt.data.corpus import TextCorpus
from minigpt.report.comparison import BITS, LOSS, TEST_BITS, TEST_LOSS, compare
from tests.conftest import TEXT, TINY, Cli
from tests.data.test_corpus import char_tokenizer


def test_the_splits_are_the_text_in_order(workdir: Path) -> None:
    text = "to be or not to be\n" * 20
    tokenizer = char_tokenizer(text, workdir)
    corpus = TextCorpus(text, 300, n_test=35)
    assert corpus.characters == {"train": 300, "val": 45, "test": 35}
    for _ in range(2):  # encoded, then from the cache
        tokens = corpus.tokens(tokenizer, workdir)
        assert [split.name for split in tokens.splits] == ["train", "val", "test"]
        assert tokenizer.decode(torch.cat([s.tokens for s in tokens.splits]).tolist()) == text
        assert tokens.test is not None and tokens.test.target_bytes == 34
    assert TextCorpus(text, 300).tokens(tokenizer, workdir).test is None  # another file


def trained(cli: Cli, run: str, *overrides: str) -> dict[str, float]:
    """Train a small run and return its result."""
    done = cli("train", *TINY, f"hydra.run.dir={run}", *overrides)
    assert done.code == 0, done.err
    return json.loads(Path(run, "result.json").read_text())


@pytest.mark.medium
def test_a_test_split_changes_no_weights_and_is_evaluated_once(cli: Cli) -> None:
    plain = trained(cli, "plain")
    split = trained(cli, "split", "data.test_fraction=0.5")
    assert split["train_loss"] != plain["train_loss"]  # of a slice as long as the validation split
    weights = [Path(run, "checkpoints/last/model.safetensors") for run in ("plain", "split")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert "test_loss" not in plain
    lines = Path("split/metrics.jsonl").read_text()
    assert "test_loss" not in lines and "val_loss" in lines
    # The halves make up the whole, but for the context of a window across the boundary.
    mean = (split["val_loss"] + split["test_loss"]) / 2
    assert mean == pytest.approx(plain["val_loss"], abs=0.005)
    assert split["val_loss"] != split["test_loss"]
    manifest = json.loads(Path("split/manifest.json").read_text())
    n_val, n_test = manifest["characters"]["val"], manifest["characters"]["test"]
    assert n_val - n_test in (0, 1) and sum(manifest["characters"].values()) == len(TEXT)

    evaluated = cli("eval", "split", "--checkpoint", "last")
    assert evaluated.code == 0 and "test" in evaluated.out
    entry = json.loads(Path("split/eval.json").read_text())["last"]
    assert entry["test_loss"] == pytest.approx(split["test_loss"], abs=1e-6)
    assert entry["test_tokens"] == n_test
    assert compare(["split"]).measure == TEST_LOSS
    assert compare(["plain"]).measure == LOSS


@pytest.mark.medium
def test_the_best_weights_are_tested_where_patience_ended_the_run(cli: Cli) -> None:
    worse = ["optimizer.lr=3", "optimizer.grad_clip=null", "trainer.patience=1"]
    result = trained(cli, "run", *worse, "trainer.max_steps=100", "data.test_fraction=0.5")
    assert result["best_val_loss"] < result["val_loss"]
    for checkpoint in ("best", "last"):
        assert cli("eval", "run", "--checkpoint", checkpoint).code == 0
    tested = json.loads(Path("run/eval.json").read_text())
    assert result["test_loss"] == pytest.approx(tested["best"]["test_loss"], abs=1e-6)
    assert result["test_loss"] != pytest.approx(tested["last"]["test_loss"], abs=1e-3)
    assert "ranked by the test loss of the best checkpoint" in cli("report", "run").out


@pytest.mark.medium
def test_the_report_ranks_by_the_test_loss_if_every_run_has_one(cli: Cli) -> None:
    trained(cli, "runs/one", "data.test_fraction=0.5")
    trained(cli, "runs/bpe", "data.test_fraction=0.5", "tokenizer=bpe", "tokenizer.vocab_size=300")
    assert compare(["runs"]).measure == TEST_BITS
    report = cli("report", "runs")
    assert report.code == 0 and "ranked by test loss (bits/byte)" in report.out
    trained(cli, "runs/plain")
    mixed = compare(["runs"])
    assert mixed.measure == BITS and not mixed.comparable


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.test_fraction=1"], "must be 0 or more and below 1"),
        (["data.test_fraction=-0.1"], "must be 0 or more and below 1"),
        (["data.test_fraction=half"], "not a valid float"),
        (["data.test_fraction=0.0001"], "too few to split at data.test_fraction=0.0001"),
        (["data.test_fraction=0.99"], "val split has only"),
        (["data=shards", "data.path=.", "data.test_fraction=0.5"], "shards"),
    ],
)
def test_wrong_fractions_are_refused(cli: Cli, overrides: list[str], message: str) -> None:
    done = cli("train", *TINY, *overrides)
    assert done.code == 2 and message in done.err, done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.medium
def test_shards_have_no_test_split(cli: Cli) -> None:
    text = ("data=text", "data.path=text.txt", "tokenizer=char")
    refused = cli("data", "--shards", "big", *text, "data.test_fraction=0.5")
    assert refused.code == 2 and "shards have no test split" in refused.err
    assert cli("data", *text, "data.test_fraction=0.5").code == 0
