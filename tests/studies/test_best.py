"""The study of options that lower the loss: its verdicts on made-up runs, and a tiny training."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

from minigpt.errors import UserError
from studies.best import best
from studies.kept import study_options
from tests.conftest import TINY, Cli
from tests.report.synthetic import config, make_run

# How much lower the test loss with each option is, by seed: clearly, by less than WORTH, unsure.
GAINS = {
    "epochs": (0.03, 0.031, 0.029, 0.03, 0.032),
    "ema": (0.001, -0.001, 0.0, 0.001, -0.001),
    "head_gates": (0.02, -0.03, 0.04, -0.02, 0.03),
    "x0_values": (-0.01, -0.011, -0.012, -0.01, -0.01),
    "weight_decay_0.8": (0.02, 0.021, 0.019, 0.02, 0.022),
    "weight_decay_1.6": (0.05, 0.051, 0.049, 0.05, 0.052),
}
TOGETHER = "fresh_epochs+weight_decay_1.6"


def make_arm(results: Path, name: str, seeds: tuple[int, ...], gains: tuple[float, ...]) -> None:
    """Write the runs of an arm; a seed's loss is 1.5 + 0.1 seed, less the gain."""
    for seed, gain in zip(seeds, gains, strict=True):
        result = {"test_loss": 1.5 + 0.1 * seed - gain, "weights": "ema" if seed < 3 else "raw"}
        manifest = {"tokens": {"train": 2000, "val": 100, "test": 900}}
        settings = config(seed=seed)
        make_run(results / name / f"seed={seed}", settings, manifest=manifest, result=result)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    make_arm(tmp_path, best.BASELINE, best.SEEDS, (0.0,) * 5)
    for name, gains in GAINS.items():
        make_arm(tmp_path, name, best.SEEDS, gains)
    return tmp_path


def test_verdicts(results: Path) -> None:
    found = best.effects(results)
    verdicts = {name: effect.verdict for name, effect in found.items()}
    assert verdicts == {
        "epochs": best.HELPS,
        "ema": best.DOES_NOT,
        "head_gates": best.UNDECIDED,
        "x0_values": best.DOES_NOT,  # it harms
        "weight_decay_0.8": best.HELPS,
        "weight_decay_1.6": best.HELPS,
    }
    assert found["epochs"].difference.interval.mean == pytest.approx(-0.0304)
    assert best.name_of(best.chosen(found)) == TOGETHER  # of two weight decays the better


def test_the_page(results: Path) -> None:
    with pytest.raises(UserError, match=r"fresh_baseline: not trained; use --train"):
        best.page(results)
    make_arm(results, best.FRESH, best.FRESH_SEEDS, (0.0,) * 5)
    make_arm(results, TOGETHER, best.FRESH_SEEDS, (0.07, 0.071, 0.069, 0.07, 0.072))
    text = best.page(results)
    assert "| epochs | data.order=epochs | 1.77 ± 0.20 | -0.0304 ± 0.0014 |" in text
    assert "of the average in 2 of 5 runs" in text
    assert "training loss is 1.400, its validation loss 1.500 after the last step" in text
    assert "minigpt train experiment=best data.order=epochs optimizer.weight_decay=1.6" in text
    assert "fresh seeds confirm it" in " ".join(text.split())
    shutil.rmtree(results / "epochs" / "seed=3")
    with pytest.raises(UserError, match="epochs: seed 3 has not ended"):
        best.page(results)


def test_no_option_helps(results: Path) -> None:
    for name in GAINS:
        shutil.rmtree(results / name)
        make_arm(results, name, best.SEEDS, GAINS["ema"])
    assert "No option helps at this size" in best.page(results)


@pytest.mark.exhaustive
def test_training_continues_and_keeps_no_paths(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, workdir: Path
) -> None:
    commands: list[str] = []

    def minigpt(*arguments: str) -> None:
        commands.append(arguments[-1])
        assert cli(*arguments).code == 0

    monkeypatch.setattr(best, "minigpt", minigpt)
    monkeypatch.setattr(best, "OPTIONS", {"ema": "optimizer.ema=0.5"})
    monkeypatch.setattr(best, "SEEDS", (1, 2))
    monkeypatch.setattr(best, "chosen", lambda found: ["ema"])
    monkeypatch.setattr(best, "FRESH_SEEDS", (3, 4))
    small = [option for option in TINY if not option.startswith(("data", "model.block"))]
    small += [
        "model.n_layer=2",
        "model.block_size=4",
        "data=text",
        "data.path=text.txt",
        "hydra/launcher=basic",
    ]
    arguments = ["best", "--train", "all", "--out", "page", "--runs", "own"]
    arguments += [*small, "trainer.sample_every=null"]
    monkeypatch.setattr("sys.argv", arguments)
    best.main()
    assert len(commands) == 4
    shutil.rmtree("page/results/ema/seed=2")  # trained, but not kept
    monkeypatch.setattr("sys.argv", arguments)  # which `cli` has changed
    best.main()
    assert len(commands) == 5 and commands[-1] == "hydra.sweep.dir=own/ema"
    page = Path("page/results.md").read_text()
    assert "| ema | optimizer.ema=0.5 |" in page
    files = [path for path in Path("page/results").rglob("*") if path.is_file()]
    kept = {"config.yaml", "manifest.json", "result.json", "metrics.jsonl"}
    assert {path.name for path in files} == kept | {"sweep.json"}
    assert not any(str(workdir) in path.read_text() for path in files)
    losses = best.losses_of(Path("page/results/ema"), (1, 2))
    result = json.loads(Path("page/results/ema/seed=1/result.json").read_text())
    assert losses[1] == result["test_loss"] and math.isfinite(losses[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data.fraction=1"], "data.fraction=1: for training only; add --train"),
        (["--train", "ema", "data.fraction=1"], "give --runs and --out too"),
        (["--train", "ema", "data.fraction=1", "--out", "x"], "give --runs too"),
        (["--train", "emma"], "--train=emma: not one of ema, all. Did you mean ema"),
    ],
)
def test_wrong_arguments_of_a_study(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as exit_:
        study_options("A study.", ["ema"], tmp_path / "runs", tmp_path, arguments)
    assert exit_.value.code == 2 and message in capsys.readouterr().err


def test_overrides_that_keep_results_go_to_the_folders_of_the_study(tmp_path: Path) -> None:
    arguments = ["--train", "all", "hydra.launcher.at_once=1", "trainer.threads=1"]
    options = study_options("A study.", ["ema", "fast"], tmp_path / "runs", tmp_path, arguments)
    assert options.train == ["ema", "fast"] and options.overrides == arguments[2:]
