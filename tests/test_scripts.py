"""The scripts that wrote docs/, on small runs."""

from __future__ import annotations

import importlib
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parent.parent
SMALL = "data=text data.path=text.txt model.n_layer=1 model.n_head=2 model.n_embd=16"


def run(*command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A script in a process of its own, with this environment's programs."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run([*map(str, command)], capture_output=True, text=True, env=env)


@pytest.mark.skipif(os.name == "nt", reason="a bash script")
def test_comparison_of_schemes(workdir: Path) -> None:
    train = REPOSITORY / "scripts" / "train_group.sh"
    options = {
        "SEEDS": "1 2",
        "STEPS": "2",
        "LENGTHS": "16,32,64",
        "CHOICES": "rope alibi relative_bias",
        "ARGS": SMALL,
        "DIR": "out",
    }
    trained = run(train, "positional", **options)
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout.count("training out/") == 6
    again = run(train, "positional", **options)
    assert again.returncode == 0 and again.stdout == ""

    table = REPOSITORY / "scripts" / "positional_table.py"
    made = run(sys.executable, table, "out", "docs/page.md")
    assert made.returncode == 0, made.stderr
    page = Path("docs/page.md").read_text(encoding="utf-8")
    assert Path("docs/page.png").read_bytes().startswith(b"\x89PNG")
    for word in ("`rope`", "`alibi`", "`relative_bias`", "undefined", "±", "| 64 |"):
        assert word in page

    failed = run(
        train,
        "positional",
        **{**options, "CHOICES": "nope", "DIR": "bad", "ARGS": "model.n_head=7"},
    )
    assert failed.returncode != 0 and "failed: bad/nope/seed_1/output.txt" in failed.stderr
    shutil.copytree("out/rope/seed_1", "one/rope/seed_1")
    refused = run(sys.executable, table, "one", "docs/one.md")
    assert refused.returncode == 1 and "one seed has no interval" in refused.stderr


@pytest.mark.skipif(os.name == "nt", reason="a bash script")
def test_comparison_of_attentions(workdir: Path) -> None:
    scripts = REPOSITORY / "scripts"
    options = {
        "SEEDS": "1 2",
        "STEPS": "2",
        "LENGTHS": "16,32",
        "CHOICES": "full landmark",
        "ARGS": f"{SMALL} model.block_size=16",
        "DIR": "out",
    }
    trained = run(scripts / "train_group.sh", "attention", **options)
    assert trained.returncode == 0, trained.stderr
    small = ["--steps", "2", "--letters", "20000", "--lengths", "64,96", "--questions", "4"]
    chosen = ["--attentions", "landmark", "--seeds", "1,2", "--out", "planted.md"]
    asked = run(sys.executable, scripts / "planted_key.py", "planted", *small, *chosen)
    assert asked.returncode == 0, asked.stderr
    assert Path("planted.md").read_text(encoding="utf-8") in asked.stdout

    cheap = ["--lengths", "64,128", "--tokens", "128", "--repeats", "1"]
    table = [sys.executable, scripts / "attention_table.py"]
    made = run(*table, "out", "planted", "docs/page.md", *cheap)
    assert made.returncode == 0, made.stderr
    page = Path("docs/page.md").read_text(encoding="utf-8")
    assert Path("docs/page.png").read_bytes().startswith(b"\x89PNG")
    # Two tables of quality, one a backend, one of planted keys.
    assert page.count("| `full` |") == 4 and page.count("| `landmark` |") == 4
    assert "## A planted key" in page and "±" in page
    nothing = run(*table, "out", "nowhere", "docs/page.md", *cheap)
    assert nothing.returncode == 1 and "run scripts/planted_key.py nowhere" in nothing.stderr


def test_benchmark_of_schemes(workdir: Path) -> None:
    bench = REPOSITORY / "scripts" / "bench_group.py"
    made = run(
        sys.executable, bench, "positional", "--lengths", "16", "--tokens", "64", "--out", "cost.md"
    )
    assert made.returncode == 0, made.stderr
    assert Path("cost.md").read_text(encoding="utf-8") == made.stdout
    for scheme in (REPOSITORY / "configs" / "positional").glob("*.yaml"):
        assert made.stdout.count(f"| `{scheme.stem}` |") == 3  # a table a backend


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="a bash script")
def test_claims(workdir: Path) -> None:
    script = REPOSITORY / "scripts" / "reproduce_claims.sh"
    options = [*SMALL.split(), "seed=1,2", "trainer.max_steps=2", "model.n_head=8"]
    chosen = "norm heads"
    made = run(script, "out", "docs/page.md", *options, CLAIMS=chosen, LAUNCHER="basic")
    assert made.returncode == 0, made.stderr
    page = Path("docs/page.md").read_text(encoding="utf-8")
    for name in chosen.split():
        assert f"\n## {name}\n" in page and f"{name}: " in made.stdout
    assert page.count("| pre, lr 0.016 |") == 1 and page.count("| 4 minus 8 heads |") == 1
    assert "2 seeds a design" in page and "±" in page

    # One seed of one rate, of which a run diverged: no interval, and not one run drops out.
    alone = [*SMALL.split(), "trainer.max_steps=2", "optimizer.lr=1e-3,1e30", "seed=1"]
    made = run(script, "one", "docs/one.md", *alone, CLAIMS="  norm ", LAUNCHER="basic")
    assert made.returncode == 0, made.stderr
    assert "cannot tell. Diverged: 1 of 1 runs of pre at 1e+30, 1 of 1" in made.stdout
    page = Path("docs/one.md").read_text(encoding="utf-8")
    vocabulary = json.loads(next(Path("one").rglob("manifest.json")).read_text())["vocabulary"]
    guess = f"{math.log(vocabulary):.4f}"
    assert f"| pre, lr 1e+30 | {guess} |" in page and "| that at the high rate minus" in page

    next(Path("one").rglob("result.json")).unlink()
    judge = REPOSITORY / "scripts" / "claims.py"
    for folder, name, why in (
        ("one", "norm", "no result.json: still running, or killed; run scripts/reproduce_claims"),
        ("one", "heads", "DIR=one/heads: no such folder."),
        ("one", "nrom", "--claims=nrom: not one of inside_blocks, "),
    ):
        refused = run(sys.executable, judge, folder, "docs/no.md", "--claims", name)
        assert refused.returncode == 2 and why in refused.stderr, refused.stderr
        assert refused.stderr.count("\n") == 1
    wrong = run(script, CLAIMS="norm nrom")
    assert wrong.returncode == 2 and "CLAIMS: nrom is no claim" in wrong.stderr


def test_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "scripts")
    claims: Any = importlib.import_module("claims")
    base = {seed: 2.0 + seed / 10 for seed in range(5)}
    noise = [0.001, -0.001, 0.002, -0.002, 0.0]

    def shifted(by: float, spread: float = 1.0) -> dict[int, float]:
        return {s: v + by + spread * noise[s] for s, v in base.items()}

    one = {-1.0: "below", 1.0: "above", 0.0: "alike"}
    for by, sign in one.items():
        effect = claims.Effect("x", shifted(by), base)
        assert claims.judged("t", "t", [effect])[1] == [sign]
    wide = claims.Effect("x", shifted(0.0, 1000), base)
    lone = claims.Effect("x", {0: 1.0}, base)
    table, signs = claims.judged("t", "t", [wide, lone])
    assert signs == ["open", "open"]
    assert table.rows[1][1].mean == -1.0 and table.rows[1][1].half is None
    bits = claims.Effect("x", shifted(0.025), base)
    assert claims.judged("t", "t", [bits], claims.ALIKE_BITS)[1] == ["alike"]
    assert claims.no_worse(["below", "alike"]) == claims.HOLDS
    assert claims.all_are("below", ["below", "below"], ["above"]) == claims.HOLDS
    assert claims.all_are("below", ["below", "alike"], ["above"]) == claims.OPEN
    assert claims.all_are("below", ["below", "above"], ["above"]) == claims.FAILS


def test_backends_are_measured_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "scripts")
    claims: Any = importlib.import_module("claims")
    for name, value in (("LENGTHS", (16, 32)), ("TOKENS", 64), ("REPEATS", 2)):
        monkeypatch.setattr(claims, name, value)
    found = claims.backend(Path())
    assert found.verdict in (claims.HOLDS, claims.FAILS)
    assert [row[0] for row in found.tables[0].rows] == ["16", "32"]
    assert all(row[1].mean > 0 and row[2] > 0 and row[3] > 0 for row in found.tables[0].rows)
