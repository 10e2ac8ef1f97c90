"""Several runs' forward and backward passes as one program: less to launch, larger products."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from minigpt.config.schema import Config
from minigpt.data import Batch
from minigpt.errors import one_line_if_out_of_memory
from minigpt.model import GPT
from minigpt.model.backends import eager
from minigpt.model.compatibility import replica_problems
from minigpt.runtime import Runtime
from minigpt.train.trainer import Trainer

BACKEND = "eager (of several runs in one program)"
FEWER = "train fewer at once with hydra.launcher.at_once, or lower trainer.batch_size"


def program_of(config: Config) -> Hashable:
    """What runs must have in common to be computed together, as a key.

    They may differ in seed, optimizer, schedule, length and in when they log, evaluate and save.
    """
    trainer = config.trainer
    work = (trainer.batch_size, trainer.grad_accum_steps)
    machine = (trainer.device, trainer.precision, trainer.compile, trainer.threads)
    return repr((config.data, config.tokenizer, config.model, work, machine))


def why_not(config: Config) -> str | None:
    """Why a run cannot be computed with others, as a line for people; None if it can."""
    every = replica_problems(config.model)
    return str(every[0]) if every else None


class Program:
    """The gradients of several models of one design, each of its own batch, in one pass.

    Weights are stacked, and torch's vmap runs the loss over them, with attention written out: it
    has no batching rule for the backward pass of fused attention. What is added up for one model is
    added up over that model alone, so losses and gradients are a lone one's but for rounding.
    """

    def __init__(self, models: Sequence[GPT], runtime: Runtime, compiled: bool) -> None:
        self.models, self.runtime = models, runtime
        # That an operation has no batching rule: it is done one by one.
        warnings.filterwarnings("ignore", message="There is a performance drop")
        with torch.device("meta"):  # what is done, without weights to do it with
            design = GPT(models[0].config, models[0].n_vocab)
        design.backend = eager
        design.max_logits = sys.maxsize  # pieces would be computed again outside of vmap
        self.losses: Callable[..., tuple[Tensor, dict[str, Tensor]]] = vmap(_Loss(design).of)
        if compiled:
            torch.compiler.reset()  # its limit of compiled variants counts over a whole sweep
            self.losses = torch.compile(self.losses)

    def backward(self, pieces: Sequence[Batch], grad_accum_steps: int) -> list[dict[str, Tensor]]:
        """Add each piece's gradients, over `grad_accum_steps`, to those of its model's weights.

        Returns what each logs.
        """
        weights = stacked([dict(model.named_parameters()) for model in self.models])
        buffers = stacked([dict(model.named_buffers()) for model in self.models])
        batch = stacked([_tensors(piece) for piece in pieces])
        with self.runtime.autocast():
            losses, numbers = self.losses(weights | buffers, *batch.values())
        (losses.sum() / grad_accum_steps).backward()
        return [{name: n[i] for name, n in numbers.items()} for i in range(len(pieces))]


@one_line_if_out_of_memory(FEWER)
def step(program: Program, trainers: Sequence[Trainer]) -> None:
    """One training step of each trainer, whose models are the program's."""
    grad_accum_steps = trainers[0].options.grad_accum_steps
    batches = [trainer.draw() for trainer in trainers]
    found = [program.backward(pieces, grad_accum_steps) for pieces in zip(*batches, strict=True)]
    for trainer, logged in zip(trainers, zip(*found, strict=True), strict=True):
        trainer.update(list(logged))


def stacked(each: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors of one name as one, a row for each."""
    return {name: torch.stack([tensors[name] for tensors in each]) for name in each[0]}


def _tensors(batch: Batch) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in vars(batch).items() if tensor is not None}


class _Loss(nn.Module):
    """The training loss of a design, of weights that are given."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, *batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.model.training_loss(*batch)

    def of(self, tensors: dict[str, Tensor], *batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See `GPT.training_loss`. `tensors`: parameters and buffers by their names."""
        return functional_call(self, {f"model.{name}": x for name, x in tensors.items()}, batch)
