"""The study of loss targets, on small runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.studies.program import SMALL, run


@pytest.mark.exhaustive
@pytest.mark.slow
def test_loss_targets(workdir: Path) -> None:
    speedrun = ("studies/loss_targets/loss_targets.py", "speedrun")
    small = [*SMALL, "model.block_size=16", "trainer.batch_size=4"]
    brief = ["trainer.max_steps=3", "trainer.compile=false", "trainer.device=cpu"]
    done = run(*speedrun, *small, *brief, "--markdown", "page.md")
    assert done.returncode == 1, done.stderr
    assert "Missed: experiment=speedrun" in done.stdout
    page = Path("page.md").read_text(encoding="utf-8")
    assert page.count("\n| 1 |") == page.count("\n| 3 |") == 1 and "| mean |" in page
    wrong = run(*speedrun, "model.n_layers=1")
    assert wrong.returncode == 1 and "model.n_layers: no such option" in wrong.stderr
    assert not Path("runs").exists()
