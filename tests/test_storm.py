"""scripts/storm.py: random kills and damaged files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

STORM = Path(__file__).parent.parent / "scripts" / "storm.py"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc"),
]


def storm(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script in a folder."""
    command = [sys.executable, str(STORM), *arguments, "--out", "table.md"]
    environment = {**os.environ, "TMPDIR": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_kills(tmp_path: Path) -> None:
    """Of the two fastest kinds, as each kill starts a program."""
    done = storm(tmp_path, "--kills", "4", "--only", "shards,cache")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = (tmp_path / "table.md").read_text().splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| shards", "| cache"]
    assert [row.split(" | ")[-1] for row in rows] == [f"{n} of {n} |" for n in (2, 2)]
    assert not [*tmp_path.glob("storm_*")]


@pytest.mark.exhaustive
def test_damage(tmp_path: Path) -> None:
    done = storm(tmp_path, "--only", "damage", "--damages", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"^\| (\S+) \| (\d+) \| (\d+) \|$", (tmp_path / "table.md").read_text(), re.M)
    assert len(rows) == 12 and all(read == survived == "10" for _, read, survived in rows)


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    done = storm(tmp_path, "--only", "rain")
    assert done.returncode == 2 and "no such kind: rain; known are run, sweep" in done.stderr
