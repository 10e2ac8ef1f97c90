"""A model of the Hugging Face Hub: its files, downloaded into the hub's own cache."""

from __future__ import annotations

import re
from pathlib import Path, PureWindowsPath

from minigpt.errors import UserError, first_line
from minigpt.extras import install_packages

NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")  # OWNER/MODEL
CACHED = re.compile(r".*[/\\]models--(.+?)--(.+)[/\\]snapshots[/\\][^/\\]+")  # the hub's cache
FILES = ("config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer.json")


def is_hub_name(name: str) -> bool:
    """Return whether a name may be one of the hub: OWNER/MODEL, and OWNER is no folder here."""
    return NAME.fullmatch(name) is not None and not Path(name).parent.exists()


def name_of(path: str) -> str:
    """Return the name of a folder without its parents: in the hub's cache OWNER/MODEL."""
    cached = CACHED.fullmatch(path)
    return f"{cached[1]}/{cached[2]}" if cached else PureWindowsPath(path).name


def download(key: str, name: str) -> Path:
    """Return the folder with the FILES of a model, downloaded unless they are in the cache.

    Raises UserError, with the option `key` that names it, if the hub has or gives no such model.
    """
    why = f"{key}={name}: no such folder, and"
    try:
        import huggingface_hub
        from huggingface_hub.errors import RepositoryNotFoundError
    except ImportError as error:
        remedy = install_packages("huggingface_hub")
        missing = f"huggingface_hub, which downloads models, is missing ({first_line(error)})"
        raise UserError(f"{why} {missing}; {remedy}") from None
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(FILES)))
    except RepositoryNotFoundError:
        raise UserError(f"{why} the Hugging Face Hub has no such public model") from None
    except Exception as error:  # of several libraries, for a network that is not there
        unreachable = f"the Hugging Face Hub cannot be reached ({first_line(error)})"
        raise UserError(f"{why} {unreachable}; download it and give the folder") from None
