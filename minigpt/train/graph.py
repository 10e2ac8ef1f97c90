"""One training step: computed operation by operation, or replayed as one CUDA graph.

For a graph, whatever changes between steps is in tensors that stay where they are: the batch, the
learning rate, and the optimizer's step count.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from minigpt.capture import Captured, CaptureError
from minigpt.config.schema import Config
from minigpt.data import Batch
from minigpt.model import GPT
from minigpt.runtime import Runtime
from minigpt.train.compilation import Loss

Metrics = list[dict[str, Tensor]]
"""The metrics of one step: one dict per micro-batch, tensors on the device."""


@dataclass(eq=False)
class EagerStep:
    """One training step, operation by operation. Nothing in it waits for the device.

    `loss`: `GPT.training_loss`, or a compiled version of it, whose code runs in `code()`.
    """

    loss: Loss
    model: GPT
    optimizer: torch.optim.Optimizer
    runtime: Runtime
    config: Config
    code: Callable[[], AbstractContextManager[object]] = nullcontext  # around each backward pass

    @property
    def collective_share(self) -> float | None:
        """The share of a step in which processes exchange tensors; None: it was not measured."""
        return None

    @property
    def profiler_seconds(self) -> float:
        """The seconds that measuring it took, which are none of the steps."""
        return 0.0

    def __call__(self, micro_batches: Sequence[Batch], lr: float) -> tuple[Metrics, Tensor]:
        """Train on a batch. Return the metrics, and the gradient norm before clipping."""
        self.set_lr(lr)
        return self.compute(micro_batches)

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the next step."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_factor", 1.0)

    def compute(self, micro_batches: Sequence[Batch]) -> tuple[Metrics, Tensor]:
        """Take the step as a function of tensors: gradients, clipping, the optimizer's update."""
        metrics = [self.backward(micro_batch) for micro_batch in micro_batches]
        return metrics, self.update()

    def backward(self, micro_batch: Batch) -> dict[str, Tensor]:
        """Accumulate the gradients of a micro-batch. Return the metrics of its forward pass."""
        with self.code():
            with self.runtime.autocast():
                loss, metrics = self.loss(*micro_batch.tensors)
            self.scaled(loss, micro_batch).backward()
        return metrics

    def scaled(self, loss: Tensor, micro_batch: Batch) -> Tensor:
        """Return the part of the batch's loss that a micro-batch contributes."""
        return loss / self.config.trainer.grad_accum_steps

    def update(self) -> Tensor:
        """Clip the gradients, step the optimizer and free them. Return their norm."""
        grad_clip = self.config.optimizer.grad_clip
        max_norm = math.inf if grad_clip is None else grad_clip
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), max_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm


@dataclass(eq=False)
class StaticStep(EagerStep):
    """The same step on tensors that stay where they are.

    Results are bit-equal on a CPU. On a GPU the learning rate is rounded to fp32, the type that
    torch's fused AdamW reads.
    """

    def __post_init__(self) -> None:
        device = self.runtime.device
        dtype = torch.float32 if device == "cuda" else torch.float64
        for group in self.optimizer.param_groups:
            group["lr"] = torch.zeros((), dtype=dtype, device=device)
            if "capturable" in group:  # of torch's AdamW, which otherwise refuses to be captured
                group["capturable"] = True
        self.micro_batches: list[Batch] = []
        self.metrics: Metrics = []

    def __call__(self, micro_batches: Sequence[Batch], lr: float) -> tuple[Metrics, Tensor]:
        """Train on a batch. The results are copies, which later steps do not overwrite."""
        self.copy(micro_batches)
        self.set_lr(lr)
        self.replay()
        metrics = [{name: x.clone() for name, x in each.items()} for each in self.metrics]
        return metrics, self.norm.clone()

    def set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"].fill_(lr * group.get("lr_factor", 1.0))

    def copy(self, micro_batches: Sequence[Batch]) -> None:
        """Copy a batch into the static one, which the first call creates."""
        if not self.micro_batches:
            self.micro_batches = [_map(torch.clone, micro_batch) for micro_batch in micro_batches]
        for static, new in zip(self.micro_batches, micro_batches, strict=True):
            _map(Tensor.copy_, static, new)

    def replay(self) -> None:
        """Call `take`, or replay it."""
        self.take()

    def take(self) -> None:
        """Take a step from the static tensors, and set `metrics` and `norm`."""
        self.metrics, self.norm = self.compute(self.micro_batches)


class CapturedStep(StaticStep):
    """The same step as a CUDA graph. With a warning, it goes on uncaptured if that fails."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.captured: Callable[[], None] = Captured(self.take)

    def replay(self) -> None:
        try:
            self.captured()
        except CaptureError as error:
            warnings.warn(f"training without a CUDA graph, more slowly: {error}", stacklevel=2)
            self.captured = self.take
            self.captured()


STEPS: dict[str, type[EagerStep]] = {"off": EagerStep, "on": CapturedStep}
"""The step by the resolved `trainer.graph`."""


def _map(function: Callable[..., Tensor], *batches: Batch) -> Batch:
    """Return a batch of function(*tensors) of each field; None stays None."""
    by_field = [[getattr(batch, field.name) for batch in batches] for field in fields(Batch)]
    results: list[Any] = [x[0] if x[0] is None else function(*x) for x in by_field]
    return Batch(*results)
