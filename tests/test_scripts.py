"""The scripts that wrote docs/, on small runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

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


def test_loss_targets(workdir: Path) -> None:
    script = [sys.executable, REPOSITORY / "scripts" / "loss_targets.py", "speedrun"]
    small = ["data=text", "data.path=text.txt", "model.n_layer=1", "model.n_head=2"]
    small += ["model.n_embd=16", "model.block_size=16", "trainer.batch_size=4"]
    brief = ["trainer.max_steps=3", "trainer.compile=false", "trainer.device=cpu"]
    made = run(*script, *small, *brief, "--markdown", "page.md")
    assert made.returncode == 1, made.stderr
    assert "Missed: experiment=speedrun" in made.stdout
    page = Path("page.md").read_text(encoding="utf-8")
    assert page.count("\n| 1 |") == page.count("\n| 3 |") == 1 and "| mean |" in page
    wrong = run(*script, "model.n_layers=1")
    assert wrong.returncode == 1 and "model.n_layers: no such option" in wrong.stderr
    assert not Path("runs").exists()
