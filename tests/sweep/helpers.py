"""Run sweeps in processes of their own, and find their runs."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from tests.conftest import TINY

HERE = "hydra.sweep.dir=sweep"


def runs(folder: str = "sweep") -> dict[str, Path]:
    """The runs of a sweep by name."""
    return {path.parent.name: path.parent for path in Path(folder).glob("*/config.yaml")}


def spawn(*arguments: str) -> subprocess.Popen[str]:
    """A sweep in a process of its own, the leader of its group."""
    command = [sys.executable, "-m", "minigpt.cli", "train", "-m", *TINY, HERE, *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def wait_for(ready: object, process: subprocess.Popen[str]) -> None:
    """Wait until a function says True; fails where the process ends before."""
    assert callable(ready)
    while not ready():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
