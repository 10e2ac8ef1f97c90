"""The moving average of the weights, compared with a loop, and what a run reports and keeps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minigpt.config.compose import composed_config
from minigpt.errors import UserError
from minigpt.model import GPT
from minigpt.optim.average import WeightAverage
from minigpt.train import state
from tests.conftest import TINY, Cli, read_metrics
from tests.model.tiny import N_VOCAB, default_dtype, random_model, random_tokens, tiny_config
from tests.train.test_resume import assert_resume_is_exact

EMA = "optimizer.ema=0.9"


@pytest.fixture
def float64() -> Iterator[None]:
    with default_dtype(torch.float64):
        yield


@pytest.mark.parametrize("embedding", ["tied", "untied"])
@pytest.mark.usefixtures("float64")
def test_it_equals_a_loop(embedding: str) -> None:
    model = random_model(tiny_config(embedding=embedding, attention="performer"))
    average = WeightAverage(model, 0.4)
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    generator = torch.Generator().manual_seed(1)
    for step in range(9):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn(p.shape, generator=generator))
        weights = {name: p.detach().clone() for name, p in model.named_parameters()}
        average.update(step)
        decay = [0.1, 2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15][step] if step < 6 else 0.4
        for name, p in model.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * p.detach()
            assert torch.equal(p, weights[name])  # left as they were
    averaged = average.model
    torch.testing.assert_close(dict(averaged.named_parameters()), expected)
    assert (averaged.head.weight is averaged.token_embedding.weight) == (embedding == "tied")
    tokens = random_tokens(2, 9)
    evaluated = GPT(model.config, N_VOCAB).eval()
    evaluated.load_state_dict(model.state_dict())  # with the random features of performer
    evaluated.load_state_dict(expected, strict=False)
    torch.testing.assert_close(averaged(tokens), evaluated(tokens))


@pytest.mark.parametrize("value", ["0", "1", "-0.5"])
def test_invalid_decays_are_rejected(value: str) -> None:
    with pytest.raises(UserError, match=r"^optimizer\.ema=.*: must be between 0 and 1"):
        composed_config([f"optimizer.ema={value}"])


@pytest.mark.medium
@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_a_run_states_and_keeps_the_better_weights(cli: Cli, weights: str) -> None:
    """After few small steps the average is behind the weights; among wild ones it is ahead."""
    rate = {"raw": "optimizer.lr=4e-3", "ema": "optimizer.lr=0.1"}[weights]
    options = [
        *TINY,
        "schedule=constant",
        rate,
        "trainer.sample_every=null",
        "data.test_fraction=0.5",
    ]
    for run, more in (("run", [EMA]), ("plain", [])):
        assert cli("train", *options, *more, f"hydra.run.dir={run}").code == 0
    result = json.loads(Path("run/result.json").read_text())
    plain = json.loads(Path("plain/result.json").read_text())
    assert "weights" not in plain and result["val_loss_raw"] == plain["val_loss"]
    assert result["weights"] == weights
    assert result["val_loss"] == min(result["val_loss_raw"], result["val_loss_ema"])
    evaluations = [m for m in read_metrics(Path("run")) if "val_loss" in m]
    for line in evaluations:
        assert line["val_loss"] == min(line["val_loss_raw"], line["val_loss_ema"])
    assert len({line["val_loss_ema"] - line["val_loss_raw"] for line in evaluations}) == 3
    assert result["best_val_loss"] == min(line["val_loss"] for line in evaluations)
    best = json.loads(Path("run/checkpoints/best/info.json").read_text())
    assert best["val_loss"] == result["best_val_loss"]
    assert best["weights"] == weights
    # The checkpoints hold the weights whose losses are stated.
    assert cli("eval", "run", "--checkpoint", "last").code == 0
    assert cli("eval", "run", "--checkpoint", "best").code == 0
    evaluated = json.loads(Path("run/eval.json").read_text())
    for key in ("train_loss", "val_loss", "val_bits_per_byte", "test_loss"):
        assert evaluated["last"][key] == result[key], key
    assert evaluated["best"]["val_loss"] == result["best_val_loss"]
    # Training is the same with and without an average.
    saved = torch.load("run/checkpoints/last/training.pt", weights_only=True)["weights"]
    model = load_file("plain/checkpoints/last/model.safetensors")
    assert sorted(x.double().sum().item() for x in saved["raw"]) == sorted(
        x.double().sum().item() for x in model.values()
    )


@pytest.mark.medium
@pytest.mark.parametrize(
    "more", [["optimizer=muon", "embedding=tied", "model.dropout=0.1"], ["attention=performer"]]
)
def test_resume_is_exact(cli: Cli, monkeypatch: pytest.MonkeyPatch, more: list[str]) -> None:
    """The run is stopped at step 7, after an evaluation at step 4 that chose the weights."""
    assert_resume_is_exact(cli, monkeypatch, [*TINY, *more, EMA])
    both = ("val_loss_raw", "val_loss_ema", "weights")
    results = [json.loads(Path(run, "result.json").read_text()) for run in ("whole", "parts")]
    assert [results[0][key] for key in both] == [results[1][key] for key in both]


def test_a_checkpoint_has_the_better_weights(tmp_path: Path) -> None:
    """And restores both, whichever is the better."""
    models = [random_model(tiny_config(embedding="tied")) for _ in range(2)]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]
    saved, loaded = (
        state.TrainState(*parts, torch.Generator(), average=WeightAverage(parts[0], 0.9))
        for parts in zip(models, optimizers, strict=True)
    )
    assert saved.average is not None and loaded.average is not None
    for name, parameter in (("raw", 1.0), ("ema", 2.0)):
        for p in saved.models[name].parameters():
            torch.nn.init.constant_(p, parameter)
    for name, value in (("raw", 1.0), ("ema", 2.0)):
        saved.progress.weights = name
        saved.save(tmp_path / name)
        tensors = load_file(tmp_path / name / "model.safetensors")
        assert all((x == value).all() for x in tensors.values())
        loaded.load(tmp_path / name)
        for both in ("raw", "ema"):
            for a, b in zip(
                saved.models[both].parameters(), loaded.models[both].parameters(), strict=True
            ):
                assert torch.equal(a, b)
