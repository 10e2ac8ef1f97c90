"""Train small GPTs on small text, and compare their designs.

`load_run` and `runs` are the Python API, see docs/api.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minigpt.api import load_run, runs

__version__ = "0.1.0"
__all__ = ["__version__", "load_run", "runs"]


def __getattr__(name: str) -> Any:
    """Import the Python API on first use, so that `minigpt --help` does not import torch."""
    if name not in ("load_run", "runs"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from minigpt.cpu import prepare_process

    prepare_process()
    from minigpt import api

    return getattr(api, name)
