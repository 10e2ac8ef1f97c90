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
    train = REPOSITORY / "scripts" / "train_positional.sh"
    options = {
        "SEEDS": "1 2",
        "STEPS": "2",
        "LENGTHS": "16,32,64",
        "MODELS": "rope alibi relative_bias",
        "ARGS": SMALL,
        "DIR": "out",
    }
    trained = run(train, **options)
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout.count("training out/") == 6
    again = run(train, **options)
    assert again.returncode == 0 and again.stdout == ""

    table = REPOSITORY / "scripts" / "positional_table.py"
    made = run(sys.executable, table, "out", "docs/page.md")
    assert made.returncode == 0, made.stderr
    page = Path("docs/page.md").read_text(encoding="utf-8")
    assert Path("docs/page.png").read_bytes().startswith(b"\x89PNG")
    for word in ("`rope`", "`alibi`", "`relative_bias`", "undefined", "±", "| 64 |"):
        assert word in page

    failed = run(train, **{**options, "MODELS": "nope", "DIR": "bad", "ARGS": "model.n_head=7"})
    assert failed.returncode != 0 and "failed: bad/nope/seed_1/output.txt" in failed.stderr
    shutil.copytree("out/rope/seed_1", "one/rope/seed_1")
    refused = run(sys.executable, table, "one", "docs/one.md")
    assert refused.returncode == 1 and "one seed has no interval" in refused.stderr


def test_benchmark_of_schemes(workdir: Path) -> None:
    bench = REPOSITORY / "scripts" / "bench_positional.py"
    made = run(sys.executable, bench, "--lengths", "16", "--tokens", "64", "--out", "cost.md")
    assert made.returncode == 0, made.stderr
    assert Path("cost.md").read_text(encoding="utf-8") == made.stdout
    for scheme in (REPOSITORY / "configs" / "positional").glob("*.yaml"):
        assert made.stdout.count(f"| `{scheme.stem}` |") == 3  # a table a backend
