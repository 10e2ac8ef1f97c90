"""Times of one thing or of several in alternation, and what the machine can do at most."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

import torch
from torch import Tensor

from minigpt.model import GPT

CEILING_SIZE = {"cpu": 2048, "cuda": 8192}  # of the square matrices that are multiplied
COPIED_BYTES = {"cpu": 2**28, "cuda": 2**31}
CEILING_REPEATS = 7


@dataclass(frozen=True)
class Times:
    """Seconds of repeats of one thing."""

    seconds: list[float]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Between which the middle half lies; the median itself of a single one."""
        if len(self.seconds) < 2:
            return self.median, self.median
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high

    def describe(self, unit: float = 1e-3, digits: int = 2) -> str:
        """The median and the quartiles, in milliseconds."""
        low, high = self.quartiles
        return (
            f"{self.median / unit:,.{digits}f} ({low / unit:,.{digits}f}-{high / unit:,.{digits}f})"
        )


def device_here() -> str:
    """Where a script computes: the GPU, if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def synchronize(device: str) -> None:
    """Wait until a device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def alternately(
    things: Mapping[str, Callable[[], object]], repeats: int, warmup: int, device: str
) -> dict[str, Times]:
    """Time each thing `repeats` times, in turns, so that a busy moment strikes all alike.

    The first `warmup` turns do not count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in things}
    for turn in range(warmup + repeats):
        for name, thing in things.items():
            synchronize(device)
            started = time.perf_counter()
            thing()
            synchronize(device)
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - started)
    return {name: Times(found) for name, found in seconds.items()}


@dataclass(frozen=True)
class Ceilings:
    """What the machine does at most: FLOP/s of one large product, bytes/s of one large copy."""

    flops: float
    bytes: float

    def describe(self, precision: str) -> str:
        """One line."""
        return (
            f"ceilings: {self.flops / 1e9:,.0f} GFLOP/s in a {precision} product, "
            f"{self.bytes / 1e9:,.1f} GB/s copied (read and written)"
        )


def ceilings(device: str, precision: str) -> Ceilings:
    """Measure both: the best of some repeats."""
    size = CEILING_SIZE.get(device, CEILING_SIZE["cpu"])
    n_bytes = COPIED_BYTES.get(device, COPIED_BYTES["cpu"])
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    source = torch.zeros(n_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    things = {"product": lambda: a @ b, "copy": lambda: target.copy_(source)}
    found = alternately(things, CEILING_REPEATS, warmup=2, device=device)
    best = {name: min(times.seconds) for name, times in found.items()}
    return Ceilings(2 * size**3 / best["product"], 2 * n_bytes / best["copy"])


def machine(device: str) -> dict[str, Any]:
    """What figures are of: the processor, its threads, torch, and when."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": f"{date.today()}",
    }


def processor() -> str:
    """The name of the CPU, of the system where that is known."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [
                line.partition(":")[2].strip() for line in file if line.startswith("model name")
            ]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def kept_bytes(model: GPT, tokens: Tensor) -> int:
    """Bytes that a forward pass keeps for the backward pass, without the weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # a function that held its own result would not be freed

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model.loss(tokens, tokens)
    del loss  # until now it held what was kept, so that no address was used twice
    return sum(kept.values())
