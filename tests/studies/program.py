"""Run a program of studies/ in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent.parent
SMALL = ["data=text", "data.path=text.txt", "model.n_layer=1", "model.n_head=2", "model.n_embd=16"]


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program by its path in the repository, or a module by its name."""
    is_path = program.endswith(".py")
    command = [sys.executable, *([str(REPOSITORY / program)] if is_path else ["-m", program])]
    command += arguments
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, capture_output=True, text=True, env=env)
