"""OpenMP threads spin for a limited time, unless the user's environment says otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from minigpt.openmp import SPIN_LIMITS, WAIT_SETTINGS, limit_spinning


def test_the_limits_are_set_in_an_environment_without_settings() -> None:
    environment: dict[str, str] = {}
    limit_spinning(environment)
    assert environment == SPIN_LIMITS


@pytest.mark.parametrize("name", WAIT_SETTINGS)
def test_settings_of_the_user_stay(name: str) -> None:
    environment = {name: "as the user says"}
    limit_spinning(environment)
    assert environment == {name: "as the user says"}


START = {
    "a command": """
from minigpt.cli import main
assert main(["train", "--info", "config"]) == 0
""",
    "the Python API": "import minigpt; minigpt.load_run",
}


@pytest.mark.parametrize("start", START)
def test_the_limits_reach_openmp(start: str) -> None:
    """GNU's OpenMP prints the values that it uses when it is loaded."""
    environment = {k: v for k, v in os.environ.items() if k not in WAIT_SETTINGS}
    code = f"{START[start]}\nimport torch; torch.ones(1)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment | {"OMP_DISPLAY_ENV": "VERBOSE"},
    )
    assert done.returncode == 0, done.stderr
    if "GOMP_CPU_AFFINITY" not in done.stderr:
        pytest.skip("torch brings another OpenMP here")
    assert f"GOMP_SPINCOUNT = '{SPIN_LIMITS['GOMP_SPINCOUNT']}'" in done.stderr
