"""What a checkpoint holds: a run resumed from it equals one that never stopped."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model

from minigpt.errors import UserError, first_line
from minigpt.files import atomic_directory
from minigpt.model import GPT
from minigpt.run.weights import WEIGHTS, load_weights

TRAINING, INFO = "training.pt", "info.json"


@dataclass
class Progress:
    """Counters and results so far. Steps count finished optimizer steps; times are in seconds."""

    step: int = 0
    seconds: float = 0.0  # in the loop, evaluations and samples included
    step_seconds: float = 0.0  # in training steps alone
    best_val_loss: float = math.inf
    best_step: int = 0
    stale_evaluations: int = 0  # evaluations since the best one
    guessing_steps: int = 0  # steps in a row with a training loss above ln(vocabulary)
    evaluated_at: int | None = None  # step of the latest evaluation; its results follow
    val_loss: float | None = None
    val_bits_per_byte: float | None = None
    sampled_at: int | None = None
    recent_losses: list[float] = field(default_factory=list)  # of steps not yet logged
    recent_norms: list[float] = field(default_factory=list)
    recent_extras: dict[str, list[float]] = field(default_factory=dict)  # other metrics of a step
    log_sizes: dict[str, int] = field(default_factory=dict)


@dataclass
class TrainState:
    """Model, optimizer, the generator that draws batches, and progress."""

    model: GPT
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    progress: Progress = field(default_factory=Progress)

    def save_best(self, path: Path) -> None:
        """Write the weights, atomically, with the step and its validation loss."""
        with atomic_directory(path) as directory:
            save_model(self.model, str(directory / WEIGHTS))
            info = {"step": self.progress.step, "val_loss": self.progress.best_val_loss}
            (directory / INFO).write_text(json.dumps(info) + "\n", encoding="utf-8")

    def save(self, path: Path) -> None:
        """Write the whole state and every random number generator's, atomically."""
        device = next(self.model.parameters()).device.type
        training = {
            "optimizer": self.optimizer.state_dict(),
            "state": dataclasses.asdict(self.progress),
            "random": {
                "cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state() if device == "cuda" else None,
                "mps": torch.mps.get_rng_state() if device == "mps" else None,
                "batches": self.generator.get_state(),
            },
        }
        with atomic_directory(path) as directory:
            save_model(self.model, str(directory / WEIGHTS))
            torch.save(training, directory / TRAINING)

    def load(self, path: Path) -> None:
        """Restore what `save` wrote; without a checkpoint at `path`, leave the state as it is.

        The optimizer keeps its hyperparameters: they come from the config, which population based
        training changes. Raises UserError for a damaged checkpoint or one of another design.
        """
        if not path.exists():
            return
        load_weights(path, self.model)
        training = _read_training(path / TRAINING)
        try:
            self._load_optimizer(training["optimizer"])
            random = training["random"]
            torch.set_rng_state(random["cpu"])
            if random["cuda"] is not None:
                torch.cuda.set_rng_state(random["cuda"])
            if random["mps"] is not None:
                torch.mps.set_rng_state(random["mps"])
            self.generator.set_state(random["batches"])
            self.progress = Progress(**training["state"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{path / TRAINING}: does not fit this run ({first_line(error)}); "
                f"restore the run directory as it was written"
            ) from None

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        groups = self.optimizer.param_groups
        current = [{k: v for k, v in group.items() if k != "params"} for group in groups]
        self.optimizer.load_state_dict(state)
        for group, hyperparameters in zip(self.optimizer.param_groups, current, strict=True):
            group.update(hyperparameters)


def _read_training(file: Path) -> dict[str, Any]:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{file}: missing, so this checkpoint cannot be resumed") from None
    except Exception as error:  # torch raises many types for files it did not write
        raise UserError(
            f"{file}: damaged or not a training state ({first_line(error)}); "
            f"remove {file.parent} to train this run from its first step"
        ) from None
