"""Interleaved timing of functions, and the peak speed and memory of the machine."""

from __future__ import annotations

import contextlib
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from datetime import date
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from minigpt.config.schema import Config
from minigpt.console import Progress
from minigpt.errors import Failure
from minigpt.model import GPT
from minigpt.report.tables import Table
from minigpt.runtime import synchronize

if TYPE_CHECKING:
    from matplotlib.figure import Figure

P = ParamSpec("P")
T = TypeVar("T")

CEILING_SIZE = {"cpu": 2048, "cuda": 8192}  # width of the square matrices in the matmul
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
        """The lower and upper quartile; both are the median if there is a single repeat."""
        low, high = np.quantile(self.seconds, (0.25, 0.75))
        return float(low), float(high)

    def describe(self, unit: float = 1e-3, digits: int = 2) -> str:
        """Return the median and the quartiles as text, in milliseconds by default."""
        times = (self.median, *self.quartiles)
        median, low, high = (f"{seconds / unit:,.{digits}f}" for seconds in times)
        return f"{median} ({low}-{high})"


@dataclass(frozen=True)
class Design:
    """Designs to measure: overrides, a labelled config per combination, and the device.

    `progress`: shown while a benchmark runs, which sets its total.
    """

    overrides: list[str]
    configs: list[tuple[str, Config]]
    device: str
    progress: Progress = field(default_factory=lambda: Progress("measuring"))


@dataclass(frozen=True)
class Result:
    """A table, additional facts to print, a figure if there is one, and what was not measured.

    `details`: more tables.
    """

    table: Table
    facts: dict[str, str] = field(default_factory=dict)
    figure: Figure | None = None
    missing: list[str] = field(default_factory=list)
    details: list[Table] = field(default_factory=list)


def as_dicts(table: Table) -> list[dict[str, Any]]:
    """Return the rows by the keys of their columns."""
    keys = [column.key for column in table.columns]
    return [dict(zip(keys, row, strict=True)) for row in table.rows]


def device_here() -> str:
    """Return cuda if torch can use a GPU, else cpu."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def alternately(
    functions: Mapping[str, Callable[[], object]], repeats: int, warmup: int, device: str
) -> dict[str, Times]:
    """Time each function `repeats` times, interleaved, so that other load affects all equally.

    The first `warmup` rounds are not timed.
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
    """Return `function(...)`, computed in a new process to measure its peak memory.

    Raises the exceptions of the function, and Failure if the process was killed. An interrupt
    ends it.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(function, *args, **kwargs).result()
        except BrokenProcessPool:
            raise Failure(f"{function.__name__}: its process was killed; out of memory?") from None
        except KeyboardInterrupt:
            for process in active_children():
                process.terminate()
            raise


class Ceilings(NamedTuple):
    """Peak speed: FLOP/s of one large matmul, bytes/s of one large copy."""

    flops: float
    bytes: float


def ceilings(device: str, precision: str) -> Ceilings:
    """Measure the peak speed as the best of several repeats."""
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
    """Return processor, threads, torch version and date, to print with the results."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": f"{date.today()}",
    }


def processor() -> str:
    """Return the name of the CPU as Linux reports it, else as Python does."""
    with contextlib.suppress(OSError):
        cpus = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        if name := re.search(r"^model name\s*: (.+)", cpus, re.MULTILINE):
            return name[1].strip()
    return platform.processor() or platform.machine()


def kept_bytes(model: GPT, tokens: Tensor) -> int:
    """Return the bytes that a forward pass saves for the backward pass, weights excluded."""
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, int] = {}  # by the address of the storage; those of shapes alone have no data

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        return tensor.detach()  # storing a reference to its own output would be a cycle

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model.loss(tokens, tokens)
    del loss  # until here the saved tensors are alive, so no address is reused
    return sum(kept.values())
