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
from minigpt.export.folder import read_design, read_folder
from minigpt.export.shards import weight_files
from minigpt.files import readable_directory, sha256_of_files
from minigpt.model import GPT
from minigpt.model.adapter import ADAPTERS, merge_adapters
from minigpt.model.positional.learned import LearnedPositions
from minigpt.objective.base import OBJECTIVES, Objective
from minigpt.run.directory import ExportedFolder, RunDirectory, find_base, find_trained
from minigpt.run.weights import WEIGHTS, load_weights
from minigpt.runtime import DEVICES, Runtime, choose_runtime
from minigpt.tokenizer import Tokenizer, load_tokenizer

TEACHER = "objective.teacher"
POSITIONS = "positional.table.weight"  # of learned positions
EXPORTED = "exported"  # the one checkpoint of an ExportedFolder


@dataclass(frozen=True)
class Initial:
    """The weights that a run starts from: a checkpoint of another run, with its sha256."""

    run: RunDirectory
    checkpoint: str
    sha256: str

    @property
    def facts(self) -> dict[str, str]:
        """What the manifest records."""
        path = str(self.run.path)
        return {"path": path, "checkpoint": self.checkpoint, "sha256": self.sha256}

    def load_into(self, model: GPT) -> None:
        """Copy the weights into a model of the same design. Raises UserError if they do not fit.

        Of a longer table of learned positions, the model takes the first ones.
        """
        is_exported = isinstance(self.run, ExportedFolder)
        checkpoint = None if is_exported else self.checkpoint
        weights = TrainedRun.load(str(self.run.path), checkpoint, "cpu").model.state_dict()
        if isinstance(model.positional, LearnedPositions):
            weights[POSITIONS] = weights[POSITIONS][: model.config.block_size]
        shapes, needed = (
            {n: tuple(t.shape) for n, t in w.items()} for w in (weights, model.state_dict())
        )
        for name in sorted(needed.keys() | shapes.keys()):
            if shapes.get(name) != needed.get(name):
                why = f"has {name} of shape {shapes.get(name)}, and {needed.get(name)} is needed"
                remedy = "leave model.block_size and options of model.positional out"
                raise UserError(f"init={self.run.path}: {why}; {remedy}")
        model.load_state_dict(weights)


def find_initial(config: Config, resumed: RunDirectory | None = None) -> Initial | None:
    """Return the weights that a run needs to start from; None if it needs none.

    A `resumed` run needs them for its adapter, or if it has no checkpoint yet. Raises UserError if
    they are missing, or have changed since it started from them.
    """
    has_all = resumed is not None and config.adapter.name == "none" and resumed.last.exists()
    if config.init is None or has_all:
        return None
    return weights_of("init", config.init, resumed)


def weights_of(key: str, name: str, resumed: RunDirectory | None = None) -> Initial:
    """Return the weights of the run `name`, which the option `key` of another run gives.

    Raises UserError if they are missing, or other than the manifest of a `resumed` run records.
    """
    run = find_base(key, name)
    expected = {} if resumed is None else resumed.read_json(resumed.manifest).get(key, {})
    checkpoint = expected.get("checkpoint") or default_checkpoint(run)
    files = _weight_files(run, checkpoint)
    if not all(file.is_file() for file in files):
        raise UserError(f"{key}={run.path}: has no checkpoint; train it first")
    initial = Initial(run, checkpoint, sha256_of_files(files))
    if expected.get("sha256", initial.sha256) != initial.sha256:
        why = "its weights have changed since this run started with them; restore them"
        raise UserError(f"{key}={run.path}: {why}")
    return initial


def weights_used(config: Config, resumed: RunDirectory | None = None) -> dict[str, Initial]:
    """Return the weights of other runs that a run needs, by the option that names them.

    Raises UserError if they are missing, or other than the `resumed` run had.
    """
    initial, teacher = find_initial(config, resumed), config.teacher
    used = {} if initial is None else {"init": initial}
    if teacher is not None:
        used[TEACHER] = weights_of(TEACHER, teacher, resumed)
    return used


def _weight_files(run: RunDirectory, checkpoint: str) -> list[Path]:
    if isinstance(run, ExportedFolder):
        return weight_files(run.path)
    return [readable_directory(run.checkpoint(checkpoint)) / WEIGHTS]


def prepare_new(config: Config) -> Prepared:
    """Return the data of a new run, with the tokenizer of the one that it starts from."""
    tokenizer = None if config.init is None else tokenizer_of(find_trained(config.init, "init"))
    return prepare(config.data, config.tokenizer, tokenizer)


def tokenizer_of(run: RunDirectory) -> Tokenizer:
    """Return the tokenizer of a run or of an exported folder. Raises UserError."""
    if isinstance(run, ExportedFolder):
        return read_design(run.path).tokenizer
    return load_tokenizer(run.tokenizer)


def default_checkpoint(run: RunDirectory) -> str:
    """Return best if the run has such a checkpoint, else last; of a folder, exported."""
    if isinstance(run, ExportedFolder):
        return EXPORTED
    return "best" if readable_directory(run.best).exists() else "last"


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
        checkpoint = checkpoint or default_checkpoint(run)
        model = GPT(config.model, tokenizer.n_vocab)
        _require_same_parameters(run, model, changes)
        if config.adapter.name != "none":
            initial = find_initial(config, run)
            assert initial is not None
            initial.load_into(model)
            ADAPTERS.build(config.adapter).attach(model)
        load_weights(run.checkpoint(checkpoint), model)
        merge_adapters(model)
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
        return cls(*parts, EXPORTED, tuple(sorted(changes)))

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
    def weights_sha256(self) -> str:
        """The sha256 of the file, or the files, of the weights."""
        return sha256_of_files(_weight_files(self.run, self.checkpoint))

    @property
    def objective(self) -> Objective:
        """What the run was trained to predict."""
        parts = (self.config.objective, self.tokenizer, self.config.model.block_size)
        return OBJECTIVES.build(*parts)

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
        trained = GPT(as_trained(run, read_config(run.config)).model, model.n_ordinary)
    shapes, others = ({n: p.shape for n, p in m.named_parameters()} for m in (trained, model))
    if shapes != others:
        why = "needs other parameters than this run has; train again"
        raise UserError(f"--set {' '.join(changes)}: {why}")
