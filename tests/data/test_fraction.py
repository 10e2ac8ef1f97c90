"""`data.fraction`: training on the first part of the training split."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from minigpt.config.compose import composed_config
from minigpt.config.saved import read_config
from minigpt.data.prepare import Prepared, prepare
from minigpt.data.tokens import encode_documents
from minigpt.report.comparison import compare
from tests.conftest import TEXT, TINY, Cli

CUT = "data.document_separator='\\n'"


def prepared(*overrides: str) -> Prepared:
    config = composed_config(["data=text", "data.path=text.txt", *overrides])
    return prepare(config.data, config.tokenizer)


@pytest.mark.parametrize(
    "fixed", [("tokenizer=bpe", "data.test_fraction=0.5"), ("tokenizer=char", CUT)]
)
def test_only_the_training_split_is_cut(workdir: Path, fixed: tuple[str, ...]) -> None:
    whole = prepared(*fixed)
    text = TEXT[: int(0.26 * whole.corpus.characters["train"])]
    for _ in range(2):  # encoded, then from the cache
        part = prepared(*fixed, "data.fraction=0.26")
        assert part.tokenizer.fingerprint == whole.tokenizer.fingerprint
        assert part.corpus.sha256 == whole.corpus.sha256
        assert part.corpus.characters == whole.corpus.characters | {"train": len(text)}
        separator = "\n" if CUT in fixed else None
        tokens, ids = encode_documents(text, separator, part.tokenizer)
        assert torch.equal(part.tokens.train.tokens, tokens)
        if ids is not None:
            assert torch.equal(part.tokens.train.document_ids, ids)
        for split, other in zip(part.tokens.splits[1:], whole.tokens.splits[1:], strict=True):
            assert torch.equal(split.tokens, other.tokens)
            assert split.target_bytes == other.target_bytes


@pytest.mark.medium
def test_losses_after_training_on_a_part_are_comparable(cli: Cli) -> None:
    for fraction in ("0.5", "1"):
        run = [f"hydra.run.dir=runs/{fraction}", f"data.fraction={fraction}"]
        assert cli("train", *TINY, *run).code == 0
    half, whole = (json.loads(Path(f"runs/{f}/manifest.json").read_text()) for f in ("0.5", "1"))
    assert half["tokens"]["train"] == whole["tokens"]["train"] // 2
    assert half["tokens"]["val"] == whole["tokens"]["val"]
    found = compare(["runs"])
    assert found.comparable and found.best
    assert found.labels == ["data.fraction=0.5", "data.fraction=1"]
    evaluated = cli("eval", "runs/0.5", "--checkpoint", "last")
    assert evaluated.code == 0, evaluated.err
    entry = json.loads(Path("runs/0.5/eval.json").read_text())["last"]
    result = json.loads(Path("runs/0.5/result.json").read_text())
    assert entry["val_loss"] == pytest.approx(result["val_loss"], abs=1e-6)


@pytest.mark.medium
def test_a_run_saved_before_the_option_existed_is_of_the_whole_text(
    cli: Cli, tiny_run: Path
) -> None:
    file = tiny_run / "config.yaml"
    saved = yaml.safe_load(file.read_text())
    assert saved["data"].pop("fraction") == 1.0
    file.write_text(yaml.safe_dump(saved))
    assert read_config(file).data.fraction == 1.0
    done = cli("train", f"resume={tiny_run}", "trainer.max_steps=14")
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.fraction=0"], "must be above 0 and at most 1"),
        (["data.fraction=1.5"], "must be above 0 and at most 1"),
        (["data.fraction=nan"], "must be above 0 and at most 1"),
        (["data.fraction=0.0001"], "too few for data.fraction=0.0001"),
        (["data.fraction=0.002"], "train split has only 5 tokens"),
        (["data.fraction=0.01", CUT], "does not occur in the train split"),
        (["data=shards", "data.path=.", "data.fraction=0.5"], "shards"),
    ],
)
def test_wrong_fractions_are_refused(cli: Cli, overrides: list[str], message: str) -> None:
    done = cli("train", *TINY, *overrides)
    assert done.code == 2 and message in done.err, done.err
    assert len(done.err.splitlines()) == 1


def test_shards_are_used_whole(cli: Cli) -> None:
    text = ("data=text", "data.path=text.txt", "tokenizer=char")
    refused = cli("data", "--shards", "big", *text, "data.fraction=0.5")
    assert refused.code == 2 and "data.fraction=0.5: shards are used whole" in refused.err
    shown = cli("data", *text, "data.fraction=0.5")
    assert shown.code == 0 and "1.000" in shown.out  # bytes/token
