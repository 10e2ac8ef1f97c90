"""Helpers that start sweeps in separate processes and list their runs."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.conftest import TINY

HERE = "hydra.sweep.dir=sweep"


def runs(folder: str = "sweep") -> dict[str, Path]:
    """Return the run directories of a sweep by name."""
    return {path.parent.name: path.parent for path in Path(folder).glob("*/config.yaml")}


def spawn(*arguments: str) -> subprocess.Popen[str]:
    """Start a sweep in a separate process, the leader of its process group.

    Its jobs run one after the other unless `arguments` have a launcher.
    """
    chosen = any(argument.startswith("hydra/launcher=") for argument in arguments)
    launcher = [] if chosen else ["hydra/launcher=basic"]
    minigpt = [sys.executable, "-m", "minigpt.cli"]
    command = [*minigpt, "train", "-m", *TINY, HERE, *launcher, *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def wait_for(ready: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Wait until ready() is true; fail if the process ends first."""
    while not ready():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
