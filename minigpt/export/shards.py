"""The files with the weights of a folder of transformers: one, or shards that an index names."""

from __future__ import annotations

from pathlib import Path

from minigpt.errors import UserError
from minigpt.files import read_json

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def has_weights(folder: Path) -> bool:
    """Return whether a folder has weights, or an index of them."""
    return any((folder / name).is_file() for name in (WEIGHTS, INDEX))


def weights_path(folder: Path) -> Path:
    """Return the file with the weights of a folder, or their index.

    The file goes first, as in transformers.
    """
    one = folder / WEIGHTS
    return one if one.is_file() else folder / INDEX


def weight_files(folder: Path) -> list[Path]:
    """Return the files with the weights of a folder.

    Raises UserError if one is missing, and for an index that is damaged.
    """
    index = weights_path(folder)
    if index.name == WEIGHTS:
        return [index]
    try:
        names = sorted({*read_json(index)["weight_map"].values()})
        if not names or any(Path(name).name != name for name in names):
            raise ValueError("names of files without folders are expected")
    except FileNotFoundError:
        raise UserError(f"{folder / WEIGHTS}: no such file, and no {INDEX}; restore it") from None
    except OSError as error:
        raise UserError(f"{index}: cannot be read ({error.strerror}); restore it") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{index}: not an index of files with weights; restore it") from None
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        which = f"{len(missing)} of the {len(names)} files that {INDEX} names are missing"
        raise UserError(f"{folder / missing[0]}: no such file ({which}); restore it")
    return [folder / name for name in names]
