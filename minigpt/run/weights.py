"""Loading the weights of a checkpoint."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import nn

from minigpt.errors import UserError, first_line
from minigpt.files import readable_directory

WEIGHTS = "model.safetensors"


def load_weights(path: Path, model: nn.Module) -> None:
    """Load weights into a model in place. Raises UserError if they are missing or do not fit."""
    file = path / WEIGHTS
    try:
        try:
            load_model(model, str(readable_directory(path) / WEIGHTS))
        except FileNotFoundError:  # a training process was replacing it
            load_model(model, str(readable_directory(path) / WEIGHTS))
    except FileNotFoundError:
        raise UserError(
            f"{file}: no such checkpoint yet; resume training with "
            f"`minigpt train resume={path.parent.parent}`"
        ) from None
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{file}: damaged or not a safetensors file ({first_line(error)}); "
            f"use another checkpoint or train again"
        ) from None
    except RuntimeError as error:
        raise UserError(
            f"{file}: does not fit the model of config.yaml ({first_line(error)}); "
            f"restore the original files of the run directory"
        ) from None
