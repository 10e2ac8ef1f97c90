"""The study of planted keys, on small runs."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from studies.planted_key import planted_key
from tests.studies.program import run


def test_a_question_has_one_answer() -> None:
    text, answer = planted_key.question(80, random.Random(1))
    half = planted_key.KEY // 2
    start = text.index(text[-half:])
    assert len(text) == 80 and start <= planted_key.PLANTED_WITHIN - planted_key.KEY
    assert text[start + half] == answer


def test_half_of_a_passage_repeats() -> None:
    text = planted_key.passages(5000, random.Random(1))
    repeated = sum(text[i : i + 8] in text[max(0, i - 64) : i] for i in range(64, len(text)))
    assert len(text) >= 5000 and 0.1 < repeated / len(text) < 0.6


@pytest.mark.exhaustive
@pytest.mark.slow
def test_planted_keys(workdir: Path) -> None:
    program = "studies/planted_key/planted_key.py"
    small = ["--steps", "2", "--letters", "20000", "--lengths", "64,96", "--questions", "4"]
    chosen = ["--attentions", "full,landmark", "--seeds", "1,2", "--folder", "out"]
    done = run(program, *small, *chosen, "--out", "page.md", "trainer.device=cpu")
    assert done.returncode == 0, done.stderr
    page = Path("page.md").read_text(encoding="utf-8")
    assert page.startswith("# A planted key\n") and page in done.stdout and "±" in page
    assert page.count("\n| full |") == page.count("\n| landmark |") == 1
    answers = {file: json.loads(file.read_text()) for file in Path("out").rglob("answers.json")}
    assert len(answers) == 4 and all({*a["shares"]} == {"64", "96"} for a in answers.values())
    again = run(program, *small, *chosen, "trainer.device=cpu")
    assert page in again.stdout and "4 skipped" in again.stdout and " at 64:" not in again.stdout
    failed = run(program, *small, *chosen, "model.n_heads=2")
    assert failed.returncode == 2 and "model.n_heads: no such option" in failed.stderr
