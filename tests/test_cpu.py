"""Waiting threads and freed memory, unless the user's environment says otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from minigpt.cpu import (
    MALLOC_LIMITS,
    MALLOC_SETTINGS,
    SPIN_LIMITS,
    WAIT_SETTINGS,
    is_amd,
    keep_freed_memory,
    limit_spinning,
)


def test_the_limits_are_set_in_an_environment_without_settings() -> None:
    environment: dict[str, str] = {}
    limit_spinning(environment)
    assert environment == SPIN_LIMITS


@pytest.mark.parametrize("name", WAIT_SETTINGS)
def test_settings_of_the_user_stay(name: str) -> None:
    environment = {name: "as the user says"}
    limit_spinning(environment)
    assert environment == {name: "as the user says"}


def test_the_vendor_of_the_cpu(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    assert not is_amd(cpuinfo)  # another system
    for vendor, expected in (("AuthenticAMD", True), ("GenuineIntel", False)):
        cpuinfo.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
        assert is_amd(cpuinfo) == expected


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


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
@pytest.mark.parametrize("name", [None, *MALLOC_SETTINGS])
def test_malloc_settings_of_the_user_stay(name: str | None) -> None:
    environment = {} if name is None else {name: "as the user says"}
    before = dict(environment)
    keep_freed_memory(environment)
    limits = {key: str(value) for key, value in MALLOC_LIMITS.items()}
    assert environment == (limits if name is None else before)


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_freed_memory_is_kept() -> None:
    """Allocating and freeing 64 blocks again and again takes new pages only the first time."""
    code = """
import os, resource, sys
from minigpt.cpu import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory(os.environ)
for _ in range(20):
    blocks = [bytes([1]) * (1 << 20) for _ in range(64)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""
    inherited = {k: v for k, v in os.environ.items() if k not in MALLOC_SETTINGS}

    def page_faults(how: str) -> int:
        command = [sys.executable, "-c", code, how]
        return int(subprocess.run(command, env=inherited, capture_output=True, check=True).stdout)

    assert page_faults("kept") < page_faults("returned") / 3
