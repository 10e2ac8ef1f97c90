"""Import large packages quickly."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Do not collect garbage in this block, nor ever among the objects that it leaves.

    Importing torch makes half a million objects and hardly any garbage. Passes over them take an
    eighth of the time of the imports.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
