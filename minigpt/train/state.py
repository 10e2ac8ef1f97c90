"""The state in a checkpoint. A resumed run is equal to an uninterrupted one."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from minigpt.errors import Failure, UserError, first_line
from minigpt.files import atomic_directory
from minigpt.model import GPT
from minigpt.optim.average import EMA, RAW, WeightAverage
from minigpt.optim.optimizer import states_of
from minigpt.ranks import gathered_by_first, part_like
from minigpt.run.weights import load_weights, require_intact, save_weights, write_checksums
from minigpt.train.distributed import Parallel

TRAINING, INFO = "training.pt", "info.json"


@dataclass
class Progress:
    """Counters and results so far. Steps count finished optimizer steps; times are in seconds."""

    step: int = 0
    seconds: float = 0.0  # in the training loop, including evaluations and samples
    step_seconds: float = 0.0  # in training steps only
    best_val_loss: float = math.inf
    best_step: int = 0
    stale_evaluations: int = 0  # evaluations since the lowest validation loss
    guessing_steps: int = 0  # consecutive steps with a training loss above ln(vocabulary)
    evaluated_at: int | None = None  # step of the latest evaluation, whose results follow
    val_loss: float | None = None
    val_bits_per_byte: float | None = None
    val_continuation: float | None = None  # bits/byte, see `Evaluation`
    best_val_continuation: float | None = None  # of the evaluation with the lowest loss
    weights: str = RAW  # with the lower validation loss: RAW or EMA
    val_losses: dict[str, float] = field(default_factory=dict)  # of both, with an EMA
    sampled_at: int | None = None
    recent_losses: list[float] = field(default_factory=list)  # in steps not logged yet
    recent_norms: list[float] = field(default_factory=list)
    recent_extras: dict[str, list[float]] = field(default_factory=dict)  # their other metrics
    log_sizes: dict[str, int] = field(default_factory=dict)


@dataclass
class TrainState:
    """Model, optimizer, random generator of batches, progress, and an average of the weights."""

    model: GPT
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    progress: Progress = field(default_factory=Progress)
    average: WeightAverage | None = None
    parallel: Parallel = field(default_factory=Parallel)

    @property
    def models(self) -> dict[str, GPT]:
        """The models to evaluate, by the name of their weights."""
        return {RAW: self.model} | ({} if self.average is None else {EMA: self.average.model})

    @property
    def better(self) -> GPT:
        """The model with the lower loss in the latest evaluation, whose weights are reported."""
        return self.models[self.progress.weights]

    def save_best(self, path: Path) -> None:
        """Write the better weights, atomically, with the step and its validation loss."""
        progress = self.progress
        info = {"step": progress.step, "val_loss": progress.best_val_loss}
        info |= {} if self.average is None else {"weights": progress.weights}

        def write(directory: Path) -> None:
            (directory / INFO).write_text(json.dumps(info) + "\n", encoding="utf-8")

        self._write(path, write)

    def save(self, path: Path) -> None:
        """Write the whole state and all random generator states, atomically.

        WEIGHTS has the better weights, which are loaded to be used; with an average, TRAINING has
        both.
        """
        ranks = self.parallel.ranks
        whole = partial(gathered_by_first, ranks=ranks)  # a tensor at a time, to save memory
        random = ranks.gather(self._random(), "a checkpoint")
        training = {
            "optimizer": tree_map_only(Tensor, whole, self.optimizer.state_dict()),
            "state": dataclasses.asdict(self.progress),
            "random": random[0],
            "random_of_others": random[1:],
        }
        if self.average is not None:
            training["weights"] = {
                name: [whole(p.detach()) for p in self._trained(model)]
                for name, model in self.models.items()
            }
        self._write(path, lambda directory: torch.save(training, directory / TRAINING))

    def _write(self, path: Path, write: Callable[[Path], None]) -> None:
        """Write a checkpoint with the better weights and what `write` writes into its directory.

        The first process writes; an error is raised in every one.
        """
        with self.parallel.whole(self.better) as model:

            def checkpoint() -> None:
                with _checkpoint(path) as directory:
                    save_weights(model, directory)
                    write(directory)

            self.parallel.ranks.first(checkpoint, "a checkpoint")

    def _random(self) -> dict[str, Any]:
        """Return the states of this process's random generators."""
        device = next(self.model.parameters()).device.type
        return {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if device == "cuda" else None,
            "mps": torch.mps.get_rng_state() if device == "mps" else None,
            "batches": self.generator.get_state(),
            "batches_on": self.generator.device.type,
        }

    def load(self, path: Path) -> None:
        """Restore what `save` wrote; without a checkpoint at `path`, leave the state as it is.

        The optimizer keeps its hyperparameters, which come from the config, since population based
        training changes it. Raises UserError for a damaged checkpoint or one of another design.
        """
        if not path.exists():
            return
        for model in self.models.values():
            with self.parallel.whole(model) as whole:
                load_weights(path, whole)
                self.parallel.take(model, whole)
        training = _read_training(path / TRAINING)
        try:
            if self.average is not None:
                self._load_both(training["weights"])
            self._load_optimizer(training["optimizer"])
            self.progress = Progress(**training["state"])
            random = [training["random"], *training.get("random_of_others", [])]
            self._load_random(random)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{path / TRAINING}: does not fit this run ({first_line(error)}); "
                f"restore the run directory as it was written"
            ) from None

    @torch.no_grad()
    def _load_both(self, weights: dict[str, list[Tensor]]) -> None:
        for name, model in self.models.items():
            for parameter, saved in zip(self._trained(model), weights[name], strict=True):
                parameter.copy_(part_like(saved, parameter))

    def _trained(self, model: GPT) -> list[nn.Parameter]:
        """Return the parameters of one of the models that training changes."""
        pairs = zip(self.model.parameters(), model.parameters(), strict=True)
        return [parameter for trained, parameter in pairs if trained.requires_grad]

    def _load_random(self, by_rank: list[dict[str, Any]]) -> None:
        """Restore the generators. On another type of device their draws differ from here on.

        A process of a rank that there was not before goes on with a seed of its own.
        """
        device, batches = next(self.model.parameters()).device.type, self.generator.device.type
        random, rank = by_rank[0], self.parallel.ranks.rank
        if rank < len(by_rank):
            own = by_rank[rank]
            torch.set_rng_state(own["cpu"])
            if device == "cuda" and own["cuda"] is not None:
                torch.cuda.set_rng_state(own["cuda"])
            if device == "mps" and own["mps"] is not None:
                torch.mps.set_rng_state(own["mps"])
        else:
            torch.manual_seed(torch.initial_seed() + self.progress.step)
        if random.get("batches_on", batches) == batches:
            self.generator.set_state(random["batches"])
        else:  # other batches than before the stop
            self.generator.manual_seed(self.generator.initial_seed() + self.progress.step)

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        groups = self.optimizer.param_groups
        current = [{k: v for k, v in group.items() if k != "params"} for group in groups]
        self.optimizer.load_state_dict(state)
        for parameter, values in states_of(self.optimizer):
            for key, value in values.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    values[key] = part_like(value, parameter)
        for group, hyperparameters in zip(self.optimizer.param_groups, current, strict=True):
            group.update(hyperparameters)


@contextmanager
def _checkpoint(path: Path) -> Iterator[Path]:
    """Yield a directory that replaces the checkpoint `path`. Raises Failure if it is not written.

    safetensors and torch raise errors of their own types when a disk is full.
    """
    try:
        with atomic_directory(path) as directory:
            yield directory
            write_checksums(directory)
    except (OSError, SafetensorError, RuntimeError) as error:
        free = shutil.disk_usage(path.parent).free / 1e6
        # The others quote their sources.
        reason = error.strerror if isinstance(error, OSError) else "a file is incomplete"
        why = f"{path}: checkpoint not written ({reason}; {free:,.0f} MB free)"
        why += "; the one written before is intact" if path.exists() else ""
        remedy = f"make space, then minigpt train resume={path.parent.parent}"
        raise Failure(f"{why}; {remedy}") from error


def _read_training(file: Path) -> dict[str, Any]:
    require_intact(file.parent, file.name)
    try:
        with warnings.catch_warnings(action="ignore"):  # of a raw pickle, which it refuses
            return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{file}: missing, so this checkpoint cannot be resumed") from None
    except pickle.UnpicklingError:
        why = "not a training state: it contains other objects than tensors and numbers"
        raise UserError(f"{file}: {why}; restore the file that training wrote") from None
    except Exception as error:  # torch raises many types for files it did not write
        raise UserError(
            f"{file}: damaged or not a training state ({first_line(error)}); "
            f"remove {file.parent} to train this run from its first step"
        ) from None
