"""Device, precision and CPU threads of a run, and the reasons for them."""

from __future__ import annotations

import contextlib
import os
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

from minigpt.errors import UserError, require
from minigpt.ranks import ALONE, Ranks

DEFAULT_THREADS = torch.get_num_threads()  # read before a run of this process changes it
DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "fp32", "bf16")
GRAPHS = ("auto", "on", "off")
PARALLELS = ("none", "ddp", "fsdp")


@dataclass(frozen=True)
class Runtime:
    """A device type and a precision, each with the reason for its choice.

    `ranks`: this process among those that compute together.
    """

    device: str
    device_reason: str
    precision: str
    precision_reason: str
    ranks: Ranks = ALONE

    def autocast(self) -> AbstractContextManager[object]:
        """Return the autocast context for a forward pass."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16")

    def describe(self) -> str:
        """Return device and precision with the reasons, in one line."""
        name = torch.cuda.get_device_name() if self.device == "cuda" else self.device
        return f"{name} ({self.device_reason}), {self.precision} ({self.precision_reason})"


def choose_runtime(device: str, precision: str, key: str = "trainer.device") -> Runtime:
    """Return the requested device and precision; `auto` chooses the fastest available one.

    `key`: the option that sets the device. Raises UserError for a choice that is not available.
    """
    device, device_reason = _choose_device(device, key)
    precision, precision_reason = _choose_precision(precision, device)
    return Runtime(device, device_reason, precision, precision_reason)


def _choose_device(device: str, key: str) -> tuple[str, str]:
    mps = torch.backends.mps.is_available()
    available = {"cuda": torch.cuda.is_available(), "mps": mps, "cpu": True}
    if device == "auto":
        first = next(name for name in available if available[name])
        return first, "no GPU available to torch" if first == "cpu" else "available"
    if not available[device]:
        raise UserError(
            f"{key}={device}: not available to torch {torch.__version__} on this machine; "
            f"use cpu, or install a build of torch that supports it"
        )
    return device, "as configured"


def _choose_precision(precision: str, device: str) -> tuple[str, str]:
    if device == "cuda":
        fast, why = torch.cuda.is_bf16_supported(including_emulation=False), "tensor cores"
    elif device == "cpu":
        features, why = torch.cpu.get_capabilities(), "bf16 instructions"
        fast = features.get("avx512_bf16") or features.get("amx_bf16")  # otherwise fp32 is faster
    else:
        fast, why = False, ""
    if precision == "auto":
        return ("bf16", why) if fast else ("fp32", "no fast bf16 on this device")
    if precision == "bf16" and device == "mps":
        raise UserError("trainer.precision=bf16: not supported on mps; use trainer.precision=fp32")
    return precision, "as configured"


def set_threads(threads: int | None, key: str = "trainer.threads") -> None:
    """Set torch's number of CPU threads; None restores torch's default.

    `key`: the option that sets it. Raises UserError for more threads than cores.
    """
    cores = os.cpu_count() or 1
    why = f"this machine has {cores} cores, and more threads are slower; use at most {cores}"
    ok = threads is None or threads <= max(cores, DEFAULT_THREADS)
    require(ok, key, threads, why)
    torch.set_num_threads(threads or DEFAULT_THREADS)


def reset_peak_memory(device: str) -> None:
    """Reset the peak memory, so that earlier runs of this process do not count."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        with contextlib.suppress(OSError):  # exists only on Linux; 5 resets VmHWM
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes(device: str) -> int | None:
    """Return the peak memory since the reset: torch's on a GPU, else the process's, or None."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    with contextlib.suppress(OSError):
        status = Path("/proc/self/status").read_text()
        peak = re.search(r"VmHWM:\s*(\d+) kB", status)
        return int(peak[1]) * 1024 if peak else None
    return None


def synchronize(device: str) -> None:
    """Wait until the device has finished all queued work."""
    if device != "cpu":
        torch.accelerator.synchronize()
