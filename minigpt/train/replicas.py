"""Forward and backward passes of several runs as one program, with fewer, larger kernels."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from minigpt.config.schema import Config
from minigpt.data import Batch
from minigpt.errors import one_line_if_out_of_memory
from minigpt.model import GPT
from minigpt.model.backends import eager
from minigpt.runtime import Runtime
from minigpt.train.compilation import reproducible_code
from minigpt.train.trainer import Trainer

BACKEND = "eager (several runs in one program)"
FEWER = "train fewer runs at once with hydra.launcher.at_once, or lower trainer.batch_size"


def program_of(config: Config) -> Hashable:
    """Return a key. Runs with equal keys can be computed together.

    They may differ in seed, optimizer, schedule, max_steps and `*_every` intervals.
    """
    trainer = config.trainer
    batch = (trainer.batch_size, trainer.grad_accum_steps)
    machine = (trainer.device, trainer.precision, trainer.compile, trainer.threads)
    return repr((config.data, config.tokenizer, config.model, batch, machine))


class Program:
    """Gradients of several models of one design, each for its own batch, in one pass.

    The weights are stacked, and torch.vmap maps the loss over them. Attention is eager, because the
    backward pass of fused attention has no batching rule. No reduction crosses models, so losses
    and gradients equal those of separate runs up to rounding.
    """

    def __init__(self, models: Sequence[GPT], runtime: Runtime, compiled: bool) -> None:
        self.models, self.runtime, self.compiled = models, runtime, compiled
        # The warning about operations without a batching rule, which vmap computes one by one.
        warnings.filterwarnings("ignore", message="There is a performance drop")
        with torch.device("meta"):  # only its code is used; functional_call passes the weights
            design = GPT(models[0].config, models[0].n_ordinary)
        design.set_backend(eager)
        design.max_logits = sys.maxsize  # one chunk: vmap does not support checkpointing
        self.losses: Callable[..., tuple[Tensor, dict[str, Tensor]]] = vmap(_Loss(design).of)
        if compiled:
            torch.compiler.reset()  # torch.compile's recompile limit is per process
            self.losses = torch.compile(self.losses)

    def backward(
        self, micro_batches: Sequence[Batch], grad_accum_steps: int
    ) -> list[dict[str, Tensor]]:
        """Accumulate the gradients of one micro-batch per model, divided by `grad_accum_steps`.

        Return the metrics of each model's forward pass.
        """
        weights = stacked([dict(model.named_parameters()) for model in self.models])
        buffers = stacked([dict(model.named_buffers()) for model in self.models])
        given = [name for name, x in vars(micro_batches[0]).items() if x is not None]
        batch = {name: torch.stack([getattr(b, name) for b in micro_batches]) for name in given}
        with reproducible_code(self.runtime.device) if self.compiled else nullcontext():
            with self.runtime.autocast():
                losses, metrics = self.losses(weights | buffers, batch)
            (losses.sum() / grad_accum_steps).backward()
        n_models = len(self.models)
        return [{name: values[i] for name, values in metrics.items()} for i in range(n_models)]


@one_line_if_out_of_memory(FEWER)
def step(program: Program, trainers: Sequence[Trainer]) -> None:
    """Take one training step of each trainer; `program` computes their gradients."""
    grad_accum_steps = trainers[0].options.grad_accum_steps
    batches = zip(*(trainer.draw() for trainer in trainers), strict=True)
    metrics = [program.backward(micro_batches, grad_accum_steps) for micro_batches in batches]
    for trainer, of_trainer in zip(trainers, zip(*metrics, strict=True), strict=True):
        trainer.step.set_lr(trainer.lr(trainer.progress.step))
        trainer.record(list(of_trainer), trainer.step.update())


def stacked(each: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stack the tensors of each name along a new first dimension."""
    return {name: torch.stack([tensors[name] for tensors in each]) for name in each[0]}


class _Loss(nn.Module):
    """A model's training loss as a function of its weights."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, **batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.model.training_loss(**batch)

    def of(
        self, tensors: dict[str, Tensor], batch: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return `GPT.training_loss` with parameters and buffers (`tensors`) given by name."""
        named = {f"model.{name}": x for name, x in tensors.items()}
        return functional_call(self, named, (), batch)
