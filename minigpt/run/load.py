"""Load a trained run from its run directory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from minigpt.config.saved import read_config, with_resolved
from minigpt.config.schema import Config
from minigpt.data.corpus import unescape
from minigpt.data.prepare import Prepared, prepare
from minigpt.data.tokens import TokenData
from minigpt.errors import UserError, require, require_one_of
from minigpt.export.folder import read_folder
from minigpt.files import readable_directory
from minigpt.model import GPT
from minigpt.run.directory import ExportedFolder, RunDirectory, find_trained
from minigpt.run.weights import WEIGHTS, load_weights
from minigpt.runtime import DEVICES, Runtime, choose_runtime
from minigpt.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class TrainedRun:
    """A run's model in evaluation mode, with its config, tokenizer, device and precision.

    Also of a folder in the format of transformers, whose one checkpoint is called exported.

    `changes`: differences from the trained model, each KEY=VALUE of its config or
    quantize=METHOD.
    """

    run: RunDirectory
    config: Config
    tokenizer: Tokenizer
    model: GPT
    runtime: Runtime
    checkpoint: str
    changes: tuple[str, ...]

    @classmethod
    def load(
        cls,
        name: str = "latest",
        checkpoint: str | None = None,
        device: str = "auto",
        changes: Sequence[str] = (),
    ) -> Self:
        """Load a run by path or `latest`.

        `checkpoint`: "best", "last", or None for the best if there is one, else the last.
        `changes`: KEY=VALUE of its config that the weights still fit. On the kind of device
        the run was trained on it computes in the same precision, so that losses equal those of
        training. Raises UserError if a file is missing, damaged or does not fit.
        """
        require_one_of("--device", device, DEVICES)
        if checkpoint is not None:
            require_one_of("--checkpoint", checkpoint, ("best", "last"))
        run = find_trained(name)
        if isinstance(run, ExportedFolder):
            return cls._load_exported(run, checkpoint, device, changes)
        config = as_trained(run, read_config(run.config, changes))
        tokenizer = load_tokenizer(run.tokenizer)
        runtime = _runtime_of(config, device)
        if checkpoint is None:
            checkpoint = "best" if readable_directory(run.best).exists() else "last"
        model = GPT(config.model, tokenizer.n_vocab)
        _require_same_parameters(run, model, changes)
        load_weights(run.checkpoint(checkpoint), model)
        model.to(runtime.device).eval()
        model.use_backend(runtime.device, runtime.precision == "bf16")
        return cls(run, config, tokenizer, model, runtime, checkpoint, tuple(sorted(changes)))

    @classmethod
    def _load_exported(
        cls, run: ExportedFolder, checkpoint: str | None, device: str, changes: Sequence[str]
    ) -> Self:
        """Load a folder in the format of transformers. See `load` and `read_folder`."""
        why = f"{run.path} has one set of weights; leave the option out"
        require(checkpoint is None, "--checkpoint", checkpoint, why)
        read = read_folder(run.path, changes)
        runtime = _runtime_of(read.config, device)
        model = read.model.to(runtime.device)
        model.use_backend(runtime.device, runtime.precision == "bf16")
        parts = (run, read.config, read.tokenizer, model, runtime)
        return cls(*parts, "exported", tuple(sorted(changes)))

    @property
    def label(self) -> str:
        """The name of the checkpoint and the changes, separated by spaces."""
        return " ".join((self.checkpoint, *self.changes))

    @property
    def default_prompt(self) -> str:
        """A newline, or the prompt of the run's own samples if the vocabulary has no newline."""
        prompt = self.config.trainer.sample_prompt
        return "\n" if prompt is None or self.tokenizer.can_encode("\n") else unescape(prompt)

    @property
    def weights(self) -> Path:
        """The file of the weights."""
        return readable_directory(self.run.checkpoint(self.checkpoint)) / WEIGHTS

    def prepare(self) -> Prepared:
        """Read the run's text and tokenize it. Raises UserError if it is missing or has changed."""
        run, config = self.run, self.config
        return prepare(config.data, config.tokenizer, self.tokenizer, run.data_sha256)

    def tokens(self) -> TokenData:
        """Return the tokens of both splits on the run's device.

        Raises UserError if the text is missing or has changed.
        """
        return self.prepare().tokens.to(self.runtime.device)


def _runtime_of(config: Config, device: str) -> Runtime:
    """Return the runtime for --device, in the precision of training on the same kind of device."""
    runtime = choose_runtime(device, "auto", key="--device")
    if runtime.device == config.trainer.device:
        return choose_runtime(device, config.trainer.precision, key="--device")
    return runtime


def as_trained(run: RunDirectory, config: Config) -> Config:
    """Return a run's config, possibly changed, with the values that its manifest resolved."""
    resolved = run.read_optional_json(run.manifest).get("resolved", {})
    return with_resolved(config, read_config(run.config), resolved)


def _require_same_parameters(run: RunDirectory, model: GPT, changes: Sequence[str]) -> None:
    """Raise UserError if the changed config needs other parameters than the trained model has."""
    if not changes:
        return
    with torch.device("meta"):
        trained = GPT(as_trained(run, read_config(run.config)).model, model.n_vocab)
    shapes, others = ({n: p.shape for n, p in m.named_parameters()} for m in (trained, model))
    if shapes != others:
        why = "needs other parameters than this run has; train again"
        raise UserError(f"--set {' '.join(changes)}: {why}")
