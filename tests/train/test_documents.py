"""Training, evaluation and sampling with `data.document_separator`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from minigpt.api import load_run
from minigpt.config.saved import read_config
from minigpt.data.prepare import prepare
from minigpt.model import GPT
from minigpt.train.setup import BATCH_SEED
from tests.conftest import TINY, Cli, read_metrics
from tests.train.test_resume import same_end, stop_at

SEPARATOR = r"data.document_separator=\n\n"


@pytest.fixture(autouse=True)
def text(workdir: Path) -> None:
    """Write a text of short documents, some of them shorter than a window."""
    speeches = [f"Role {i}:\nA{' horse,' * (i % 5)} my kingdom{'!' * (i % 7)}\n" for i in range(90)]
    (workdir / "text.txt").write_text("\n".join(speeches))


@pytest.mark.parametrize("tokenizer", [["char"], ["bpe", "tokenizer.vocab_size=300"]], ids=str)
def test_resume_equals_an_uninterrupted_run(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tokenizer: list[str]
) -> None:
    name, *more = tokenizer
    options = [*TINY, SEPARATOR, f"tokenizer={name}", *more, "model=fire", "model.dropout=0.1"]
    assert cli("train", *options, "hydra.run.dir=whole").code == 0
    stop_at(7, monkeypatch)
    assert cli("train", *options, "hydra.run.dir=parts").code == 143
    assert cli("train", "resume=parts").code == 0
    same_end(Path("whole"), Path("parts"))


def test_config_and_manifest_record_the_documents(cli: Cli) -> None:
    outcome = cli("train", *TINY, SEPARATOR, "hydra.run.dir=run")
    assert outcome.code == 0
    assert "data       text in 91 documents, char tokenizer (" in outcome.out
    assert read_config(Path("run/config.yaml")).data.separator == "\n\n"
    manifest = json.loads(Path("run/manifest.json").read_text())
    text = Path("text.txt").read_text()
    texts = {"train": text[: int(0.9 * len(text))], "val": text[int(0.9 * len(text)) :]}
    assert manifest["documents"] == {name: len(part.split("\n\n")) for name, part in texts.items()}
    again = cli("train", "--config-dir", "run", "--config-name", "config", "hydra.run.dir=second")
    assert again.code == 0, again.err
    assert read_metrics(Path("run")) == read_metrics(Path("second"))
    assert cli("train", *TINY, "hydra.run.dir=without").code == 0
    assert read_metrics(Path("run")) != read_metrics(Path("without"))


def test_separators_can_contain_newlines(cli: Cli) -> None:
    """Newlines may be written literally on the command line and in YAML."""
    assert cli("train", *TINY, SEPARATOR, "hydra.run.dir=run").code == 0
    typed = cli("train", *TINY, "data.document_separator=\n\n", "hydra.run.dir=typed")
    assert typed.code == 0, typed.err
    saved = yaml.safe_load(Path("run/config.yaml").read_text())
    saved["data"]["document_separator"] = "\n\n"
    Path("own.yaml").write_text(yaml.safe_dump(saved))
    own = cli("train", "--config-dir", ".", "--config-name", "own", "hydra.run.dir=own")
    assert own.code == 0, own.err
    assert read_metrics(Path("run")) == read_metrics(Path("typed")) == read_metrics(Path("own"))


def test_eval_equals_the_result_of_training(cli: Cli) -> None:
    assert cli("train", *TINY, SEPARATOR, "hydra.run.dir=run").code == 0
    outcome = cli("eval", "run", "--checkpoint", "last", "--by-position", "--lengths", "8,40")
    assert outcome.code == 0, outcome.err
    result = json.loads(Path("run/result.json").read_text())
    evaluated = json.loads(Path("run/eval.json").read_text())["last"]
    for key in ("val_loss", "val_perplexity", "val_bits_per_byte"):
        assert evaluated[key] == result[key]
    assert len(evaluated["by_position"]["8"]) == 8
    assert 8 < len(evaluated["by_position"]["40"]) <= 40


def test_training_loss_is_the_mean_over_all_tokens(cli: Cli) -> None:
    """Recompute the first step's loss with one forward pass per document."""
    options = ["model.block_size=30", "trainer.max_steps=1", "trainer.log_every=1"]
    options += ["trainer.precision=fp32", "hydra.run.dir=run"]
    assert cli("train", *TINY, SEPARATOR, *options).code == 0
    config = read_config(Path("run/config.yaml"))
    prepared = prepare(config.data, config.tokenizer)
    torch.manual_seed(config.seed)
    model = GPT(config.model, prepared.tokenizer.n_vocab)
    generator = torch.Generator().manual_seed(config.seed + BATCH_SEED)
    batch = prepared.tokens.train.draw(4, 30, generator)
    assert batch.document_ids is not None
    losses = []
    for inputs, targets, documents in zip(
        batch.inputs, batch.targets, batch.document_ids, strict=True
    ):
        lengths = documents.unique_consecutive(return_counts=True)[1].tolist()
        for part in zip(inputs.split(lengths), targets.split(lengths), strict=True):
            losses.append(model.loss(*(tokens[None] for tokens in part), reduction="none"))
    assert len(losses) > 4, "no window spans two documents, so the test is vacuous"
    assert read_metrics(Path("run"))[0]["train_loss"] == pytest.approx(
        torch.cat(losses).mean().item(), rel=1e-5
    )


def test_accumulation_equals_the_large_batch(cli: Cli) -> None:
    options = [*TINY, SEPARATOR, "trainer.precision=fp32", "trainer.max_steps=5"]
    assert cli("train", *options, "hydra.run.dir=one").code == 0
    assert cli("train", *options, "hydra.run.dir=four", "trainer.grad_accum_steps=4").code == 0
    for one, four in zip(read_metrics(Path("one")), read_metrics(Path("four")), strict=True):
        assert one == pytest.approx(four, rel=1e-5)


def test_samples_in_training_end_at_the_separator(cli: Cli) -> None:
    """The text consists of newlines, so a separator follows the prompt immediately."""
    Path("text.txt").write_text("\n" * 400)
    options = ["trainer.sample_prompt='\n'", "trainer.sample_tokens=9", "hydra.run.dir=run"]
    assert cli("train", *TINY, *options, SEPARATOR).code == 0
    assert cli("train", *TINY, *options[:2], "hydra.run.dir=other").code == 0
    short, long = (Path(run, "samples.txt").read_text() for run in ("run", "other"))
    assert long.count("\n") - short.count("\n") == 2 * 9  # two samples of 9 tokens


def test_sample_ends_at_the_separator(cli: Cli) -> None:
    """Each line is a document, so the sample ends at the first newline."""
    assert cli("train", *TINY, r"data.document_separator=\n", "hydra.run.dir=run").code == 0
    arguments = ["sample", "run", "--prompt", "my", "--max-new-tokens", "200"]
    whole = cli(*arguments, "--stop", "no such text").out
    assert whole.count("\n") > 1
    assert (
        cli(*arguments).out
        == cli(*arguments, "--stop", r"\n").out
        == whole.partition("\n")[0] + "\n"
    )


def test_inspect_separates_documents(cli: Cli) -> None:
    from minigpt.evaluate.inspect import record

    assert cli("train", *TINY, SEPARATOR, "hydra.run.dir=run").code == 0
    outcome = cli("inspect", "run", "--prompt", "my\n\nRole")
    assert outcome.code == 0, outcome.err
    page = Path("run/inspect/inspect.html").read_text(encoding="utf-8")
    assert "Prompt: 8 tokens in 2 documents" in page

    trained = load_run("run", "last", "cpu")
    tokens = trained.tokenizer.encode("my\n\nRole")
    packed = record(trained.model, tokens, [0, 0, 0, 1, 1, 1, 1, 1])
    for part in (slice(0, 3), slice(3, 8)):
        separate = record(trained.model, tokens[part])
        torch.testing.assert_close(packed.logits[part], separate.logits)
        torch.testing.assert_close(
            packed.weights[0][:, part, part], separate.weights[0], equal_nan=True
        )
    assert packed.weights[0][:, 3:, :3].isnan().all()
    assert packed.weights[0][:, :3, 3:].isnan().all()
