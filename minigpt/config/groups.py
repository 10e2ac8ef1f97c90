"""The YAML files of configs/: one folder per config group, one file per choice.

Like overrides.py and hydra_main.py, this does not import torch, so that --cfg and shell completion
are fast. For --help it does not import Hydra either.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from omegaconf import DictConfig

ROOT = "train"  # configs/train.yaml


def config_directory() -> Path:
    """Return the folder of YAML files: inside an installed package, or next to it in a checkout."""
    package = Path(__file__).parent.parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def config_groups() -> list[str]:
    """Return the names of the config groups."""
    return sorted(path.name for path in config_directory().iterdir() if path.is_dir())


def choices(group: str) -> dict[str, DictConfig]:
    """Return the values set by each choice of a config group, by name of the choice."""
    from omegaconf import OmegaConf

    files = sorted((config_directory() / group).glob("*.yaml"))
    return {file.stem: cast("DictConfig", OmegaConf.load(file)) for file in files}


def section_of(group: str) -> str:
    """Return the key below which a config group sets values; _global_ if it sets any key."""
    file = min((config_directory() / group).glob("*.yaml"))
    package = re.search(r"^# @package (\S+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return group if package is None else package[1]


def choices_with(key: str) -> list[str]:
    """Return GROUP=CHOICE for every choice that sets `key`."""
    section, _, option = key.rpartition(".")
    return [
        f"{group}={name}"
        for group in config_groups()
        if section and section_of(group) == section
        for name, values in choices(group).items()
        if option in values.keys()  # noqa: SIM118 - `in values` is False for a mandatory value
    ]


def register() -> None:
    """Register the resolvers of configs/runtime.yaml, and model=NAME for positional schemes."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver(
        "short_id", lambda: os.urandom(2).hex(), use_cache=True, replace=True
    )
    OmegaConf.register_new_resolver("run_label", _run_label, replace=True)
    for file in (config_directory() / "positional").glob("*.yaml"):
        defaults = ["/model_base", {"override /positional": file.stem}, "_self_"]
        node = {"defaults": defaults, "model": {"name": file.stem}}
        ConfigStore.instance().store(file.stem, node, group="model", package="_global_")


def _run_label(name: str | None, design: str, init: str | None, overrides: list[str]) -> str:
    """Return the label in a run directory's name: the run's name, or design and choices."""
    design = design if init is None else _design_of(Path(init).expanduser())
    pairs = [override.lstrip("+~").partition("=")[::2] for override in overrides]
    groups = set(config_groups()) - {"model", "logger", "trainer"}
    chosen = [value for key, value in pairs if key in groups]
    return file_name(name or "_".join([design, *chosen]))


def _design_of(base: Path) -> str:
    """Return the name of the model in a run, or in a folder of transformers; else of the base."""
    from omegaconf import OmegaConf

    names = {"config.yaml": "model.name", "minigpt.json": "config.model.name"}
    for file, key in (names | {"config.json": "model_type"}).items():
        with suppress(Exception):  # a base that cannot be read is refused before the run begins
            if name := OmegaConf.select(OmegaConf.load(base / file), key):
                return str(name)
    return base.name


def file_name(text: str) -> str:
    """Return text as a file name of at most 100 bytes, without separators."""
    name = re.sub(r"[^\w.=+-]+", "_", text).encode("utf-8")[:100].decode("utf-8", "ignore")
    return name.strip("_") or "run"
