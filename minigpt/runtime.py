"""Which device, precision and threads a run computes with, and why."""

from __future__ import annotations

import contextlib
import os
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

from minigpt.errors import UserError, require

DEFAULT_THREADS = torch.get_num_threads()  # before any run of this process changes it
DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "fp32", "bf16")


@dataclass(frozen=True)
class Runtime:
    """A device type, a precision, and one phrase for the reason of each."""

    device: str
    device_reason: str
    precision: str
    precision_reason: str

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which a forward pass runs."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16")

    def describe(self) -> str:
        """One line for people."""
        name = torch.cuda.get_device_name() if self.device == "cuda" else self.device
        return f"{name} ({self.device_reason}), {self.precision} ({self.precision_reason})"


def choose_runtime(device: str, precision: str, key: str = "trainer.device") -> Runtime:
    """Honour explicit choices or raise UserError; resolve `auto` to the fastest that is right.

    `key` is what the user calls the device.
    """
    device, device_reason = _choose_device(device, key)
    precision, precision_reason = _choose_precision(precision, device)
    return Runtime(device, device_reason, precision, precision_reason)


def _choose_device(device: str, key: str) -> tuple[str, str]:
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device == "auto":
        found = next(name for name, here in available.items() if here)
        return found, "no GPU that torch can use" if found == "cpu" else "found"
    if not available[device]:
        raise UserError(
            f"{key}={device}: torch {torch.__version__} finds no such device here; "
            f"use auto, or install a torch build for it"
        )
    return device, "as configured"


def _choose_precision(precision: str, device: str) -> tuple[str, str]:
    if device == "cuda":
        fast, why = torch.cuda.is_bf16_supported(including_emulation=False), "tensor cores"
    elif device == "cpu":
        fast, why = cpu_has_bf16(), "bf16 instructions"
    else:
        fast, why = False, ""
    if precision == "auto":
        return ("bf16", why) if fast else ("fp32", "no fast bf16 here")
    if precision == "bf16" and device == "mps":
        raise UserError("trainer.precision=bf16: not offered on mps; use trainer.precision=fp32")
    return precision, "as configured"


def set_threads(threads: int | None) -> None:
    """Use so many threads on the CPU, or torch's own number. Raises UserError beyond the cores."""
    cores = os.cpu_count() or 1
    why = f"this machine has {cores} cores, and more threads only wait for each other"
    require(
        threads is None or threads <= max(cores, DEFAULT_THREADS), "trainer.threads", threads, why
    )
    torch.set_num_threads(threads or DEFAULT_THREADS)


def reset_peak_memory(device: str) -> None:
    """Begin to measure peak memory anew, so that a run of a sweep is not charged another's."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        with contextlib.suppress(OSError):  # Linux alone; 5 resets the high-water mark
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes(device: str) -> int | None:
    """Most memory held since the reset: torch's on a GPU, else the process's; None if unknown."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    with contextlib.suppress(OSError):
        status = Path("/proc/self/status").read_text()
        found = re.search(r"VmHWM:\s*(\d+) kB", status)
        return int(found[1]) * 1024 if found else None
    return None


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 in hardware; without, bf16 is slower than fp32."""
    features = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))
