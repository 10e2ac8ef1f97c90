"""Time functions in alternation, and measure the peak speed and the memory of the machine."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from datetime import date
from multiprocessing import get_context
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from minigpt.errors import Failure
from minigpt.model import GPT

P = ParamSpec("P")
T = TypeVar("T")

CEILING_SIZE = {"cpu": 2048, "cuda": 8192}  # width of the square matrices to multiply
COPIED_BYTES = {"cpu": 2**28, "cuda": 2**31}
CEILING_REPEATS = 7


@dataclass(frozen=True)
class Times:
    """Seconds of each repeat of one function."""

    seconds: list[float]

    @property
    def median(self) -> float:
        """The median."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The lower and upper quartile; the median twice for a single repeat."""
        if len(self.seconds) < 2:
            return self.median, self.median
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high

    def describe(self, unit: float = 1e-3, digits: int = 2) -> str:
        """Return the median and the quartiles as text, in milliseconds by default."""
        low, high = self.quartiles
        return (
            f"{self.median / unit:,.{digits}f} ({low / unit:,.{digits}f}-{high / unit:,.{digits}f})"
        )


def device_here() -> str:
    """Return cuda if torch can use a GPU, else cpu."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def synchronize(device: str) -> None:
    """Wait until the device has finished all queued work."""
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def alternately(
    functions: Mapping[str, Callable[[], object]], repeats: int, warmup: int, device: str
) -> dict[str, Times]:
    """Time each function `repeats` times, in turns, so that other load affects all equally.

    `warmup` turns before them are not timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(warmup + repeats):
        for name, function in functions.items():
            synchronize(device)
            started = time.perf_counter()
            function()
            synchronize(device)
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - started)
    return {name: Times(repeats) for name, repeats in seconds.items()}


def in_new_process(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return `function(...)`, computed in a new process, whose peak memory is its own.

    Raises what the function raises, and Failure if the process was killed.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(function, *args, **kwargs).result()
        except BrokenProcessPool:
            raise Failure(f"{function.__name__}: its process was killed; out of memory?") from None


@dataclass(frozen=True)
class Ceilings:
    """Peak speed: FLOP/s of one large matrix product, bytes/s of one large copy."""

    flops: float
    bytes: float

    def describe(self, precision: str) -> str:
        """Return one line."""
        return (
            f"ceilings: {self.flops / 1e9:,.0f} GFLOP/s in a {precision} product, "
            f"{self.bytes / 1e9:,.1f} GB/s copied (read and written)"
        )


def ceilings(device: str, precision: str) -> Ceilings:
    """Measure both as the best of several repeats."""
    size = CEILING_SIZE.get(device, CEILING_SIZE["cpu"])
    n_bytes = COPIED_BYTES.get(device, COPIED_BYTES["cpu"])
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    source = torch.zeros(n_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    functions = {"product": lambda: a @ b, "copy": lambda: target.copy_(source)}
    times = alternately(functions, CEILING_REPEATS, warmup=2, device=device)
    best = {name: min(repeats.seconds) for name, repeats in times.items()}
    return Ceilings(2 * size**3 / best["product"], 2 * n_bytes / best["copy"])


def machine(device: str) -> dict[str, Any]:
    """Return the processor, its threads, the torch version and the date, to print with figures."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": f"{date.today()}",
    }


def processor() -> str:
    """Return the name of the CPU as Linux reports it, else as Python does."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [
                line.partition(":")[2].strip() for line in file if line.startswith("model name")
            ]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def kept_bytes(model: GPT, tokens: Tensor) -> int:
    """Return the bytes that a forward pass saves for the backward pass, weights excluded."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # a reference to its own output would never be freed

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model.loss(tokens, tokens)
    del loss  # kept the saved tensors alive until here, so that no address was reused
    return sum(kept.values())
