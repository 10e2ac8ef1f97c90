"""Scripts that other tests do not run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parent.parent / "scripts"


def test_numbers_py_does_not_shadow_the_standard_library() -> None:
    """`python scripts/X.py` puts scripts/ first on the path, which contains numbers.py."""
    program = [sys.executable, SCRIPTS / "bench_vs_nanogpt.py", "--help"]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "{steps,speedrun,decode}" in done.stdout
