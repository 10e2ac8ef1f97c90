"""What a run must remember to go on as if it had never stopped."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import nn

from minigpt.errors import UserError, first_line
from minigpt.files import atomic_directory
from minigpt.run.weights import WEIGHTS, load_weights

TRAINING, INFO = "training.pt", "info.json"


@dataclass
class TrainState:
    """Progress that is not weights. Steps count finished optimizer steps; times are seconds."""

    step: int = 0
    seconds: float = 0.0  # in the loop, evaluations and samples included
    step_seconds: float = 0.0  # in training steps alone
    best_val_loss: float = math.inf
    best_step: int = 0
    stale_evaluations: int = 0  # evaluations since the best one
    evaluated_at: int | None = None  # the step of the newest evaluation, and what it found
    val_loss: float | None = None
    val_bits_per_byte: float | None = None
    sampled_at: int | None = None
    recent_losses: list[float] = field(default_factory=list)  # of steps not yet logged
    recent_norms: list[float] = field(default_factory=list)
    recent_extras: dict[str, list[float]] = field(default_factory=dict)  # what else a step logs
    log_sizes: dict[str, int] = field(default_factory=dict)


def save_best(path: Path, model: nn.Module, state: TrainState) -> None:
    """Write weights only, atomically."""
    with atomic_directory(path) as directory:
        save_model(model, str(directory / WEIGHTS))
        info = {"step": state.step, "val_loss": state.best_val_loss}
        (directory / INFO).write_text(json.dumps(info) + "\n", encoding="utf-8")


def save_last(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: torch.Generator,
    state: TrainState,
) -> None:
    """Write weights, optimizer, progress and every random state, atomically."""
    device = next(model.parameters()).device.type
    training = {
        "optimizer": optimizer.state_dict(),
        "state": dataclasses.asdict(state),
        "random": {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if device == "cuda" else None,
            "mps": torch.mps.get_rng_state() if device == "mps" else None,
            "batches": batches.get_state(),
        },
    }
    with atomic_directory(path) as directory:
        save_model(model, str(directory / WEIGHTS))
        torch.save(training, directory / TRAINING)


def load_last(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, batches: torch.Generator
) -> TrainState | None:
    """Restore all that `save_last` wrote and return the progress; None if nothing was written.

    The optimizer keeps its options: the config says them, and population based training changes it.
    Raises UserError for a damaged or foreign checkpoint.
    """
    if not path.exists():
        return None
    load_weights(path, model)
    training = _read_training(path / TRAINING)
    try:
        options = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
        optimizer.load_state_dict(training["optimizer"])
        for group, own in zip(optimizer.param_groups, options, strict=True):
            group.update(own)
        random = training["random"]
        torch.set_rng_state(random["cpu"])
        if random["cuda"] is not None:
            torch.cuda.set_rng_state(random["cuda"])
        if random["mps"] is not None:
            torch.mps.set_rng_state(random["mps"])
        batches.set_state(random["batches"])
        return TrainState(**training["state"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{path / TRAINING}: does not fit this run ({first_line(error)}); "
            f"restore the run directory as it was written"
        ) from None


def _read_training(file: Path) -> dict[str, Any]:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{file}: missing, so this checkpoint cannot be resumed") from None
    except Exception as error:  # foreign bytes end in whatever the reader stumbles over
        raise UserError(
            f"{file}: damaged or no training state ({first_line(error)}); "
            f"remove {file.parent} to start this run from its first step"
        ) from None
