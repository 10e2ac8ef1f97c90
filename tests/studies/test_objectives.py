"""The study of objectives: its verdicts on made-up runs, and a tiny training."""

from __future__ import annotations

from pathlib import Path

import pytest

from minigpt.errors import UserError
from studies.kept import study_options
from studies.objectives import objectives as study
from tests.conftest import TINY, Cli
from tests.report.synthetic import config, make_run

NOISE = (0.0, 0.001, -0.001, 0.0005, -0.0005)
# The loss of each scheme above 1.5: with the causal objective, and with the others.
ABOVE = {
    "causal": {"learned": 0.0, "sinusoidal": 0.1, "t5": 0.2, "rope": 0.2, "alibi": 0.4},
    "prefix": {"learned": 0.0, "sinusoidal": 0.1, "t5": 0.2, "rope": 0.2, "alibi": 0.4},
    "masked": {"learned": 0.3, "sinusoidal": 0.1, "t5": 0.2, "rope": 0.5, "alibi": 0.4},
    "denoise": {"learned": 0.0, "sinusoidal": 0.0, "t5": 0.2, "rope": 0.2, "alibi": 0.4},
}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for objective, by_scheme in ABOVE.items():
        for number, (scheme, above) in enumerate(by_scheme.items()):
            for seed in study.SEEDS:
                # Seeds share a difference; each scheme has its own noise.
                loss = 1.5 + 0.1 * seed + above + NOISE[(seed + number) % 5]
                result = {
                    study.LOSS: loss,
                    study.CONTINUATION: loss + (0.05 if objective == "prefix" else 0.0),
                    "loss_of": f"tokens of {objective}",
                    "objective": objective,
                }
                settings = config(scheme, seed)
                run = tmp_path / objective / f"{scheme},{seed}"
                make_run(run, settings, result=result)
    return tmp_path


def test_order_is_compared_pair_by_pair(results: Path) -> None:
    text = study.page(results)
    parts = text.split("compared with causal:")
    prefix, masked, denoise = parts[1], parts[2], parts[3].split("###")[0]
    none = "order reversed, significant in both: none"
    assert none in prefix and "significant with causal alone: none" in prefix
    reversed_pairs = masked.split("significant in both: ")[1].splitlines()[0]
    assert set(reversed_pairs.split("; ")) == {
        "sinusoidal below learned",
        "t5 below learned",
        "alibi below rope",
    }
    assert "significant with masked alone: t5 below rope" in masked
    assert none in denoise
    assert "significant with causal alone: learned below sinusoidal" in denoise


def test_tables(results: Path) -> None:
    causal = study.results_of("causal", results / "causal")
    assert causal.ranked[0] == "learned" and causal.ranked[-1] == "alibi"
    assert causal.mean("alibi") - causal.mean("learned") == pytest.approx(0.4)
    found = {name: study.results_of(name, results / name) for name in study.OBJECTIVES}
    for row in study.continued(found).rows:
        assert row[3].mean == pytest.approx(0.05)  # pyright: ignore
    assert study.losses(causal).rows[0][0] == "learned"


def test_a_missing_run_is_named(results: Path) -> None:
    (results / "masked" / "rope,3" / "result.json").unlink()
    with pytest.raises(UserError, match="masked, rope, seed 3: has not ended"):
        study.page(results)
    with pytest.raises(UserError, match="not trained; use --train"):
        study.results_of("causal", results / "none")


@pytest.mark.slow
def test_a_tiny_study(cli: Cli, monkeypatch: pytest.MonkeyPatch, workdir: Path) -> None:
    monkeypatch.setattr(study, "SCHEMES", ("rope", "alibi"))
    monkeypatch.setattr(study, "SEEDS", (1, 2))
    arguments = ["--train", "all", "--runs", "runs", "--out", "page", *TINY]
    options = study_options("", study.OBJECTIVES, study.RUNS, study.HERE, arguments)
    monkeypatch.setattr(study, "study_options", lambda *_: options)
    monkeypatch.setattr(study, "minigpt", lambda *command: cli(*command).code)
    study.main()
    written = Path("page/results.md")
    before = written.read_text()
    assert "16 runs" in before and "denoise: losses of the tokens of spans" in before
    assert not [*Path("page").rglob("*.safetensors")]
    study.main()  # nothing is trained again
    assert written.read_text() == before
