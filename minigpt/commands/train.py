"""`minigpt train`: train one run, resume one, or with -m run a sweep."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from minigpt.config.hydra_main import hydra_main, needs_hydra_main
from minigpt.config.overrides import compose_overrides, require_choices
from minigpt.errors import UserError

if TYPE_CHECKING:
    from minigpt.config.overrides import Composed


def main(arguments: list[str]) -> None:
    """Train what the arguments ask for. Raises UserError for mistakes in them."""
    command = ["minigpt", "train", *arguments]
    if not needs_hydra_main(arguments):
        require_choices(arguments)
        train(compose_overrides(arguments), command)
        return
    from minigpt.sweep.directory import sweep_directory

    hydra_main(arguments, lambda composed: _train_in_hydra(composed, command), sweep_directory)


def train(composed: Composed, command: list[str]) -> None:
    """Train a new run, or resume the one that `resume=` names."""
    # Imported here, so that --help, --cfg and shell completion do not wait for torch.
    from minigpt.config.compose import resumed_config, to_config
    from minigpt.run.directory import RunDirectory, find_run
    from minigpt.train.session import train_run

    _require_single_run(composed)
    if composed.resume is None:
        run, config = RunDirectory(_relative(composed.directory)), to_config(composed)
    else:
        run = find_run(composed.resume)
        config = resumed_config(run.config, composed)
    train_run(config, run, composed.resume is not None, command)


def _require_single_run(composed: Composed) -> None:
    for override in composed.overrides:
        if override.startswith("sweep"):
            raise UserError(f"{override}: belongs to a sweep; add -m")
    if composed.swept:
        overrides, keys = " ".join(composed.overrides), ", ".join(composed.swept)
        raise UserError(f"{overrides}: sweeps over {keys}; add -m")


def _relative(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _train_in_hydra(composed: Composed, command: list[str]) -> None:
    """Train, and remove the folders that Hydra creates for a run if they stay empty."""
    try:
        train(composed, command)
    finally:
        here = Path.cwd()
        for folder in (composed.directory, composed.directory.parent):
            if folder not in (here, *here.parents):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)
