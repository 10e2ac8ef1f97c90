"""One run on several devices: its process group, and how model and optimizer are spread over it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.profiler import ProfilerActivity

from minigpt.config.schema import TrainerConfig
from minigpt.data import Batch
from minigpt.errors import require
from minigpt.model import GPT
from minigpt.ranks import (
    ALONE,
    Ranks,
    agent_store,
    attempt_store,
    gathered,
    part_like,
)
from minigpt.runtime import Runtime, synchronize
from minigpt.torchrun import (
    LOCAL_RANK,
    RANK,
    WORLD_SIZE,
    agent_pid,
    attempt,
    is_started_as_rank,
)
from minigpt.train.compilation import Loss
from minigpt.train.control import polling
from minigpt.train.graph import STEPS, EagerStep, Metrics

RUN_KEY = "minigpt/run"
POLL_SECONDS = 1.0
TIMED_STEPS = range(5, 8)  # of a process, which torch's profiler times
COLLECTIVES = ("gloo:", "nccl:")  # names of their events


def remembered(run: Path) -> Path:
    """Tell the agent that restarts failed processes which run they train; return it."""
    store = agent_store()
    if store is not None:
        store.set(RUN_KEY, str(run.absolute()))
    return run


def run_of_earlier_attempt() -> Path | None:
    """Return the run that this process trained before the agent restarted it, if it did."""
    if attempt() == "0":
        return None
    store = agent_store()
    known = store is not None and store.check([RUN_KEY])
    return Path(store.get(RUN_KEY).decode()) if store is not None and known else None


@contextmanager
def process_group(options: TrainerConfig, runtime: Runtime) -> Iterator[Runtime]:
    """Join the other processes of a run while the block runs; yield the runtime of this one.

    Raises UserError if the processes were not started, or are more than a micro-batch has windows.
    """
    if options.parallel == "none":
        others = is_started_as_rank() and int(os.environ[WORLD_SIZE]) > 1
        why = "torchrun has started several processes, and each would train a run; use ddp or fsdp"
        require(not others, "trainer.parallel", "none", why)
        yield runtime
        return
    why = "starts no processes; add trainer.processes=N, or start the command with torchrun"
    require(is_started_as_rank(), "trainer.parallel", options.parallel, why)
    rank, size = int(os.environ[RANK]), int(os.environ[WORLD_SIZE])
    n, why = options.micro_batch_size, f"is less than one window for each of {size} processes"
    require(n >= size, "trainer.batch_size", options.batch_size, f"{n} per micro-batch {why}")
    on_gpu = runtime.device == "cuda"
    if on_gpu:
        local, n_devices = int(os.environ[LOCAL_RANK]), torch.cuda.device_count()
        why = f"this machine has {n_devices} GPUs, one for each process; start fewer"
        require(local < n_devices, "trainer.processes", options.processes, why)
        torch.cuda.set_device(local)
    ranks = Ranks(rank, size, options.timeout)
    joined_before = dist.is_initialized()  # by a program that calls minigpt
    with stopped_with_parent():
        if not joined_before:
            backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
            timeout = timedelta(seconds=options.timeout)
            store = attempt_store(timeout)
            place = {} if store is None else {"store": store, "rank": rank, "world_size": size}
            with ranks.waiting_for("the start"):
                dist.init_process_group(backend, timeout=timeout, **place)
        try:
            yield replace(runtime, ranks=ranks)
        finally:
            if not joined_before:
                dist.destroy_process_group()


@contextmanager
def stopped_with_parent() -> Iterator[None]:
    """Stop this process, as by SIGTERM, if the agent that started it is killed in the block."""
    parent = agent_pid()

    def stop_if_orphan() -> bool:
        is_orphan = os.getppid() != parent
        if is_orphan:
            os.kill(os.getpid(), signal.SIGTERM)
        return is_orphan

    with polling(stop_if_orphan, POLL_SECONDS):
        yield


class Parallel:
    """How model and optimizer of a run are spread over processes: here each has all of them."""

    def __init__(self, ranks: Ranks = ALONE, bf16: bool = False) -> None:
        self.ranks, self.bf16 = ranks, bf16

    def split(self, model: GPT) -> None:
        """Leave this process its part of the weights. Called before the optimizer is built."""

    def loss(self, model: GPT, loss: Loss) -> Loss:
        """Return the loss whose backward pass averages the gradients over the processes."""
        return loss

    def step(self, graph: str, *parts: Any) -> EagerStep:
        """Return the training step of these parts; see `EagerStep`. `graph`: of the options."""
        return STEPS[graph](*parts)

    def averaging(self, last: bool) -> AbstractContextManager[object]:
        """Return the context of a micro-batch; only the `last` one averages the gradients."""
        return nullcontext()

    def whole(self, model: GPT) -> AbstractContextManager[GPT]:
        """Yield the model with all weights in this process."""
        return nullcontext(model)

    def take(self, model: GPT, whole: GPT) -> None:
        """Copy the weights of a whole model to this process's parts."""
        assert whole is model


class _Loss(nn.Module):
    """A loss as the forward pass of a module, which is where torch's wrappers start."""

    def __init__(self, model: GPT, loss: Loss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, *batch: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        return self.loss(*batch)  # pyright: ignore[reportCallIssue]


class Replicated(Parallel):
    """Each process has the whole model; gradients are averaged by DistributedDataParallel."""

    def loss(self, model: GPT, loss: Loss) -> Loss:
        model.total = partial(self.ranks.sum, what="the use of experts")
        device = [torch.cuda.current_device()] if model.head.weight.is_cuda else None
        self.module = nn.parallel.DistributedDataParallel(
            _Loss(model, loss),
            device_ids=device,
            forward_sync_buffers=False,
            gradient_as_bucket_view=True,
        )
        return self.module

    def step(self, graph: str, *parts: Any) -> EagerStep:
        return ParallelStep(*parts, parallel=self)

    def averaging(self, last: bool) -> AbstractContextManager[object]:
        return nullcontext() if last else self.module.no_sync()


class Sharded(Parallel):
    """Each process has a part of every weight, gradient and optimizer state (FSDP2).

    The weights of a block are gathered when it is computed; those outside the blocks, which may be
    tied, are one group.
    """

    def __init__(self, ranks: Ranks = ALONE, bf16: bool = False) -> None:
        super().__init__(ranks, bf16)
        self.copies: dict[GPT, GPT] = {}  # of each model that is split, without its weights
        self.modules: list[Any] = []

    def split(self, model: GPT) -> None:
        from torch.distributed import fsdp
        from torch.distributed.device_mesh import init_device_mesh

        self.copies[model] = deepcopy(model).requires_grad_(False)
        _free(self.copies[model])
        mesh = init_device_mesh(model.head.weight.device.type, (self.ranks.size,))
        # Autocast casts the inputs.
        bf16 = fsdp.MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        policy = bf16 if self.bf16 else fsdp.MixedPrecisionPolicy()
        blocks = [block for stack in model.stacks for block in stack.blocks]
        for part in (*blocks, model):
            fsdp.fully_shard(part, mesh=mesh, mp_policy=policy)
        fsdp.register_fsdp_forward_method(model, "training_loss")
        self.modules = [part for part in model.modules() if isinstance(part, fsdp.FSDPModule)]

    def loss(self, model: GPT, loss: Loss) -> Loss:
        model.total = partial(self.ranks.sum, what="the use of experts")
        return loss

    def step(self, graph: str, *parts: Any) -> EagerStep:
        return ParallelStep(*parts, parallel=self)

    def averaging(self, last: bool) -> AbstractContextManager[object]:
        for module in self.modules:
            module.set_requires_gradient_sync(last, recurse=False)
        return nullcontext()

    @contextmanager
    def whole(self, model: GPT) -> Iterator[GPT]:
        copy = self.copies[model]
        pairs = list(zip(copy.parameters(), model.parameters(), strict=True))
        with torch.no_grad():
            for whole, own in pairs:
                whole.untyped_storage().resize_(whole.numel() * whole.element_size())
                whole.copy_(gathered(own))
        try:
            yield copy
        finally:
            _free(copy)

    @torch.no_grad()
    def take(self, model: GPT, whole: GPT) -> None:
        for own, weight in zip(model.parameters(), whole.parameters(), strict=True):
            own.copy_(part_like(weight, own))


def _free(model: GPT) -> None:
    """Free the memory of the parameters, which keep their shapes."""
    for parameter in model.parameters():
        parameter.untyped_storage().resize_(0)


@dataclass
class CollectiveTime:
    """The share of the time of a few steps in which the processes exchange tensors.

    That they compute meanwhile does not lower it.
    """

    steps: int = 0
    busy: float = 0.0  # seconds of the timed steps, as the next one
    total: float = 0.0
    profiler: float = 0.0  # seconds beside them

    @property
    def share(self) -> float | None:
        """The share in the steps timed so far; None if there were none."""
        return self.busy / self.total if self.total else None

    @contextmanager
    def measured(self, device: str) -> Iterator[None]:
        """Time the block, which is a step, if it is one of TIMED_STEPS."""
        self.steps += 1
        if self.steps not in TIMED_STEPS:
            yield
            return
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler prints when it starts
        begun, timed = time.perf_counter(), self.total
        kinds = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (device == "cuda")]
        with torch.profiler.profile(activities=kinds) as profiler:
            started = time.perf_counter()
            yield
            synchronize(device)
            self.total += time.perf_counter() - started
        times = [e.time_range for e in profiler.events() or [] if e.name.startswith(COLLECTIVES)]
        end = 0.0
        for interval in sorted(times, key=lambda interval: interval.start):
            self.busy += max(0.0, interval.end - max(end, interval.start)) / 1e6
            end = max(end, interval.end)
        self.profiler += time.perf_counter() - begun - (self.total - timed)


@dataclass(eq=False)
class ParallelStep(EagerStep):
    """A training step in which each process has its rows of every micro-batch."""

    parallel: Parallel = field(kw_only=True)
    collectives: CollectiveTime = field(default_factory=CollectiveTime)

    @property
    def collective_share(self) -> float | None:
        return self.collectives.share

    @property
    def profiler_seconds(self) -> float:
        return self.collectives.profiler

    def __call__(self, micro_batches: Sequence[Batch], lr: float) -> tuple[Metrics, Tensor]:
        with self.collectives.measured(self.runtime.device):
            return super().__call__(micro_batches, lr)

    def compute(self, micro_batches: Sequence[Batch]) -> tuple[Metrics, Tensor]:
        metrics: Metrics = []
        ranks, last = self.runtime.ranks, len(micro_batches) - 1
        for n, micro_batch in enumerate(micro_batches):
            with self.parallel.averaging(n == last), ranks.waiting_for("the gradients of a step"):
                metrics.append(self.averaged(self.backward(micro_batch), self.weight(micro_batch)))
        return metrics, gathered(self.update())

    def weight(self, micro_batch: Batch) -> float:
        """Return the rows of this process over the mean number of rows of a process."""
        size = self.config.trainer.micro_batch_size
        return len(micro_batch.inputs) * self.runtime.ranks.size / size

    def scaled(self, loss: Tensor, micro_batch: Batch) -> Tensor:
        return super().scaled(loss, micro_batch) * self.weight(micro_batch)

    def averaged(self, metrics: dict[str, Tensor], weight: float) -> dict[str, Tensor]:
        """Return the means of the metrics over the rows of all processes."""
        ranks = self.runtime.ranks
        flat = torch.cat([value.flatten().double() for value in metrics.values()])
        mean = ranks.sum(flat * (weight / ranks.size), "the metrics of a step")
        parts = mean.split([value.numel() for value in metrics.values()])
        return {
            name: part.view_as(value).to(value.dtype)
            for (name, value), part in zip(metrics.items(), parts, strict=True)
        }


PARALLEL: dict[str, type[Parallel]] = {"none": Parallel, "ddp": Replicated, "fsdp": Sharded}
"""The ways to spread a run by `trainer.parallel`."""
