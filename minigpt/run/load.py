"""A trained run, read back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from minigpt.config.compose import load_config
from minigpt.config.schema import Config
from minigpt.errors import UserError
from minigpt.files import readable_directory
from minigpt.model import GPT
from minigpt.run.directory import RunDirectory, find_run
from minigpt.run.weights import WEIGHTS, load_weights
from minigpt.runtime import Runtime, choose_runtime
from minigpt.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from minigpt.inference.quantize import Quantization


@dataclass(frozen=True)
class TrainedRun:
    """A run's model in evaluation mode, with what is needed to use it."""

    run: RunDirectory
    config: Config
    tokenizer: Tokenizer
    model: GPT
    runtime: Runtime
    checkpoint: str
    changes: tuple[str, ...]
    quantization: Quantization | None = None

    @property
    def label(self) -> str:
        """The checkpoint, what was changed of its config, and how it was quantised."""
        parts = [self.checkpoint, *self.changes]
        if self.quantization is not None:
            parts.append(f"quantize={self.quantization.method}")
        return " ".join(parts)

    @property
    def weights(self) -> Path:
        """The file the weights came from."""
        return readable_directory(_directory(self.run, self.checkpoint)) / WEIGHTS


def load_run(
    name: str, checkpoint: str | None, device: str, changes: Sequence[str] = ()
) -> TrainedRun:
    """Load a run by path or `latest`; `checkpoint` is best, last, or None: the best there is.

    `changes` are KEY=VALUE of its config, where the weights still fit.

    On the kind of device the run was trained on it computes in the same precision, so that numbers
    agree with those of training. Raises UserError where something is missing, damaged or foreign.
    """
    run = find_run(name)
    config = load_config(run.config, changes)
    tokenizer = load_tokenizer(run.tokenizer)
    runtime = choose_runtime(device, "auto", key="--device")
    if runtime.device == config.trainer.device:
        runtime = choose_runtime(device, config.trainer.precision, key="--device")
    if checkpoint is None:
        checkpoint = "best" if readable_directory(run.best).exists() else "last"
    model = GPT(config.model, tokenizer.n_vocab)
    _require_same_parameters(run, model, changes)
    load_weights(_directory(run, checkpoint), model)
    model.to(runtime.device).eval()
    model.use_backend(runtime.device, runtime.precision == "bf16")
    return TrainedRun(run, config, tokenizer, model, runtime, checkpoint, tuple(sorted(changes)))


def _directory(run: RunDirectory, checkpoint: str) -> Path:
    return run.best if checkpoint == "best" else run.last


def _require_same_parameters(run: RunDirectory, model: GPT, changes: Sequence[str]) -> None:
    """Raise UserError where changes ask for other parameters than were trained."""
    if not changes:
        return
    with torch.device("meta"):
        trained = GPT(load_config(run.config).model, model.n_vocab)
    shapes, others = ({n: p.shape for n, p in m.named_parameters()} for m in (trained, model))
    if shapes != others:
        raise UserError(
            f"--set {' '.join(changes)}: needs other parameters than this run has; train anew"
        )
