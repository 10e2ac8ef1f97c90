"""The weights of a checkpoint."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import nn

from minigpt.errors import UserError, first_line
from minigpt.files import readable_directory

WEIGHTS = "model.safetensors"


def load_weights(path: Path, model: nn.Module) -> None:
    """Read weights into a model of the same design. Raises UserError if they do not fit."""
    file = path / WEIGHTS
    try:
        try:
            load_model(model, str(readable_directory(path) / WEIGHTS))
        except FileNotFoundError:  # a training process swapped it just then
            load_model(model, str(readable_directory(path) / WEIGHTS))
    except FileNotFoundError:
        raise UserError(
            f"{file}: no such checkpoint yet; train on with "
            f"`minigpt train resume={path.parent.parent}`"
        ) from None
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{file}: damaged or no safetensors file ({first_line(error)}); "
            f"use another checkpoint or train again"
        ) from None
    except RuntimeError as error:
        raise UserError(
            f"{file}: weights of another design than config.yaml says ({first_line(error)}); "
            f"restore the run directory as it was written"
        ) from None
