"""Settings of a process that computes on a CPU: waiting threads, and freed memory.

They have to be made before torch is imported. docs/performance.md has the measurements.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path


def is_amd(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether Linux says that the CPU is AMD's."""
    with suppress(OSError), cpuinfo.open("rb") as file:
        return b"AuthenticAMD" in file.read(4096)
    return False


# How long a thread that waits for others checks again and again before it sleeps: checks for GNU's
# OpenMP, which torch brings on Linux (its own default is 300,000), milliseconds for LLVM's and
# Intel's (200). While other programs have the cores, a spinning thread keeps the one it waits for
# from running. How long a check takes depends on the CPU: on an Intel Xeon 1,000 checks cost a
# third of the speed of a quiet machine, on an AMD EPYC 2,000 cost a few per cent.
SPIN_LIMITS = {"GOMP_SPINCOUNT": "2000" if is_amd() else "10000", "KMP_BLOCKTIME": "1"}
WAIT_SETTINGS = (*SPIN_LIMITS, "OMP_WAIT_POLICY", "KMP_LIBRARY")
# Bytes. glibc returns freed blocks above the first, and memory at the end of the heap above the
# second, to the system; each step of a training then waits for the same pages again. The first is
# the largest that glibc accepts. Names of `mallopt`'s parameters: <malloc.h>.
MALLOC_LIMITS = {"MALLOC_MMAP_THRESHOLD_": 2**25, "MALLOC_TRIM_THRESHOLD_": 2**31 - 1}
MALLOC_PARAMETERS = {"MALLOC_MMAP_THRESHOLD_": -3, "MALLOC_TRIM_THRESHOLD_": -1}
MALLOC_SETTINGS = (*MALLOC_LIMITS, "MALLOC_TOP_PAD_", "GLIBC_TUNABLES", "LD_PRELOAD")


def prepare_process() -> None:
    """Limit spinning and keep freed memory, unless the environment has settings of its own."""
    limit_spinning(os.environ)
    keep_freed_memory(os.environ)


def limit_spinning(environment: MutableMapping[str, str]) -> None:
    """Set SPIN_LIMITS, for this process and those that it starts."""
    if not any(name in environment for name in WAIT_SETTINGS):
        environment.update(SPIN_LIMITS)


def keep_freed_memory(environment: MutableMapping[str, str]) -> None:
    """Set MALLOC_LIMITS, for this process and those that it starts. Only glibc has them."""
    if sys.platform != "linux" or any(name in environment for name in MALLOC_SETTINGS):
        return
    environment.update({name: str(limit) for name, limit in MALLOC_LIMITS.items()})
    with suppress(AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        for name, limit in MALLOC_LIMITS.items():
            mallopt(MALLOC_PARAMETERS[name], limit)
