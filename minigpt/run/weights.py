"""Loading the weights of a checkpoint, and the checksums of its files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn

from minigpt.errors import UserError, first_line
from minigpt.files import read_json, readable_directory, sha256_of_file, write_json
from minigpt.model.adapter import adapter_parameters

WEIGHTS, CHECKSUMS = "model.safetensors", "checksums.json"
# Renamed modules and parameters: patterns of full names in earlier versions, and current names. The
# order of parameters has not changed; optimizer states are saved in that order.
RENAMED = {
    r"(blocks\.\d+)\.attention\.(.*)": r"\1.self_attention.\2",
    r"(.*)_result_norm\.(.*)": r"\1_output_norm.\2",
    r"(.*)\.value_parts": r"\1.value_weights",
    r"skip_parts": "skip_weights",
}


def write_checksums(checkpoint: Path) -> None:
    """Write the sha256 of each file of a checkpoint into it."""
    write_json(checkpoint / CHECKSUMS, {f.name: sha256_of_file(f) for f in checkpoint.iterdir()})


def require_intact(checkpoint: Path, name: str) -> None:
    """Raise UserError if a file of a checkpoint has another content than was written.

    Checkpoints of earlier versions have no checksums.
    """
    for _ in range(2):  # once more if a training process was replacing the checkpoint
        directory = readable_directory(checkpoint)
        try:
            expected = read_json(directory / CHECKSUMS).get(name)
            if sha256_of_file(directory / name) == expected:
                return
        except FileNotFoundError:
            return
        except ValueError:  # the checksums are damaged
            continue
    why = f"damaged: its checksum is not that of {CHECKSUMS}"
    remedy = "restore it, use another checkpoint or train again"
    raise UserError(f"{checkpoint / name}: {why}; {remedy}")


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the weights of a model into a checkpoint, of a model with adapters only those."""
    adapters = adapter_parameters(model)
    if adapters:
        save_file({name: p.detach() for name, p in adapters.items()}, str(path / WEIGHTS))
    else:
        save_model(model, str(path / WEIGHTS))


def load_weights(path: Path, model: nn.Module) -> None:
    """Load what `save_weights` wrote into a model in place.

    Raises UserError if they are missing, damaged or do not fit.
    """
    file = path / WEIGHTS
    require_intact(path, WEIGHTS)
    renaming = model.register_load_state_dict_pre_hook(_rename)
    try:
        try:
            _load(model, str(readable_directory(path) / WEIGHTS))
        except FileNotFoundError:  # a training process was replacing it
            _load(model, str(readable_directory(path) / WEIGHTS))
    except FileNotFoundError:
        remedy = f"resume training with `minigpt train resume={path.parent.parent}`"
        raise UserError(f"{file}: no such checkpoint yet; {remedy}") from None
    except (SafetensorError, OSError) as error:
        why = f"damaged or not a safetensors file ({first_line(error)})"
        raise UserError(f"{file}: {why}; use another checkpoint or train again") from None
    except RuntimeError as error:
        why = f"does not fit the model of config.yaml ({first_line(error)})"
        remedy = "restore the original files of the run directory"
        raise UserError(f"{file}: {why}; {remedy}") from None
    finally:
        renaming.remove()


def _load(model: nn.Module, file: str) -> None:
    """Load a file of weights. Raises RuntimeError if it does not fit."""
    adapters = adapter_parameters(model)
    if not adapters:
        load_model(model, file)
        return
    saved = load_file(file)
    if saved.keys() != adapters.keys():
        raise RuntimeError("it has weights other than those of the adapters")
    model.load_state_dict(saved, strict=False)


def _rename(model: nn.Module, state: dict[str, Any], *_: Any) -> None:
    """Rename the tensors in a state dict of an earlier version."""
    for name in list(state):
        present = current_name(name)
        if present != name:
            state[present] = state.pop(name)


def current_name(name: str) -> str:
    """Return the current name of a parameter or buffer of an earlier version."""
    for pattern, replacement in RENAMED.items():
        if re.fullmatch(pattern, name):
            name = re.sub(pattern, replacement, name)
    return name
