"""Atomic writing of files and directories, JSON, and digests."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path that is renamed to `path` when the block ends without an error.

    Readers see the old file or the new one, never a partial one. The last writer wins.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:  # name the requested file, not the temporary one
        raise OSError(error.errno, error.strerror, str(path)) from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        _flush_to_disk(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write a UTF-8 text file atomically, without translating newlines."""
    write_bytes(path, content.encode("utf-8"))


def to_json(value: Any, indent: int | None = None) -> str:
    """Return a value as standard JSON: NaN and infinities become null."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, indented."""
    write_text(path, to_json(value, indent=2) + "\n")


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory that replaces `path` when the block ends without an error.

    No portable call swaps two directories: for an instant only `.<name>.old` exists. Readers use
    `readable_directory`; after a crash the writer calls `recover_directory`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = path.with_name(f".{path.name}.new"), path.with_name(f".{path.name}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for file in temporary.iterdir():
        file.chmod(0o644)
        _flush_to_disk(file)
    recover_directory(path)
    if path.exists():
        os.rename(path, old)
    os.rename(temporary, path)
    shutil.rmtree(old, ignore_errors=True)


def readable_directory(path: Path) -> Path:
    """Return the path of the content of an `atomic_directory`, also during a swap."""
    old = path.with_name(f".{path.name}.old")
    return old if old.exists() and not path.exists() else path


def recover_directory(path: Path) -> None:
    """Finish a swap of `atomic_directory` that was interrupted. Only its writer may call this."""
    old = path.with_name(f".{path.name}.old")
    if not old.exists():
        return
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(old, path)


def sha256(content: bytes | str) -> str:
    """Return the hex digest of bytes, or of the UTF-8 bytes of a string."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    return hashlib.sha256(data).hexdigest()


def _flush_to_disk(path: Path) -> None:
    with path.open("r+b") as file:  # Windows can flush only files open for writing
        os.fsync(file.fileno())
