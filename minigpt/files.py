"""Atomic writing of files and directories, JSON, and digests."""

from __future__ import annotations

import glob
import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minigpt.errors import UserError, first_line, require

CONTENT = "content_sha256"  # in a file, the digest of its other content


def user_path(key: str, text: str) -> Path:
    """Return a path that a user wrote, with ~ expanded.

    Raises UserError for ~NAME of an unknown user, and for a name that is not UTF-8.
    """
    expanded = os.path.expanduser(text)
    why = f"there is no such user here; write ./{text} for a file of that name"
    require(expanded != text or not text.startswith("~"), key, text, why)
    _require_utf8(key, expanded)
    return Path(expanded)


def absolute_path(path: str) -> str:
    """Return a path with ~ expanded, absolute; symbolic links stay.

    Raises UserError for a name that is not UTF-8, as that of the working directory.
    """
    absolute = os.path.abspath(os.path.expanduser(path))
    _require_utf8("path", absolute)
    return absolute


def readable_name(path: Path | str) -> str:
    """Return a path, or what was typed, as text; bytes that are not UTF-8 as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _require_utf8(key: str, path: str) -> None:
    name = readable_name(Path(path))
    why = "a name that is not UTF-8; rename it, or use a link to it with another name"
    require(os.fsencode(name) == os.fsencode(Path(path)), key, name, why)


def matching_paths(pattern: str) -> list[Path]:
    """Return the paths that match a glob pattern. Leading folders that exist as written are names.

    So a folder whose name contains brackets needs no escapes.
    """
    path = Path(pattern)
    folder = next(part for part in (path, *path.parents) if part.exists())
    if folder == path:
        return [path]
    rest = str(path.relative_to(folder))
    return [folder / name for name in sorted(glob.glob(rest, root_dir=folder, recursive=True))]


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path that is renamed to `path` when the block ends without an error.

    Readers see the old file or the new one, never a partial one. The last writer wins.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:  # errors name the requested file, not the temporary one
        raise OSError(error.errno, error.strerror, str(path)) from None
    os.close(handle)
    temporary = Path(name)
    try:
        with named(path):
            yield temporary
            temporary.chmod(0o644)
            _flush_to_disk(temporary)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def require_writable(key: str, path: Path) -> None:
    """Raise UserError unless a file could be written there now. Leaves nothing behind.

    Only a regular file may be replaced.
    """
    try:
        require(not path.is_dir(), key, path, "is a folder; name a file in it")
        require(path.is_file() or not os.path.lexists(path), key, path, "is not a regular file")
    except OSError as error:
        raise _unwritable(key, path, error) from None
    require_new_file(key, path)


def require_new_file(key: str, path: Path) -> None:
    """Raise UserError unless a new file or folder could be written there now."""
    try:
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        tempfile.NamedTemporaryFile(prefix=f".{path.name}.", dir=folder).close()
    except OSError as error:
        raise _unwritable(key, path, error) from None


def _unwritable(key: str, path: Path, error: OSError) -> UserError:
    why = f"cannot be written ({error.strerror}); name a path in a folder where you may write"
    return UserError(f"{key}={path}: {why}")


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Add the name of a file to an OSError without one: a full disk fails in the middle."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


@contextmanager
def optional_cache(path: Path) -> Iterator[None]:
    """Print a line to stderr if the block cannot write a cached file; the work goes on without."""
    try:
        yield
    except OSError as error:
        print(f"minigpt: {path}: not cached ({error.strerror or error})", file=sys.stderr)


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


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raises OSError, and ValueError for anything else.

    Also for values other than those with the digest that `write_json` adds.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("not an object")
    require_content(content.pop(CONTENT, None), _canonical(content))
    return content


def require_content(digest: str | None, content: str) -> None:
    """Raise ValueError unless the digest is of this content, or None."""
    if digest is not None and digest != sha256(content):
        raise ValueError(f"its {CONTENT} is of other values; delete that line if you edited them")


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def try_read_json(path: Path, problems: list[str] | None = None) -> dict[str, Any]:
    """Return the object in a JSON file, {} if it is missing or broken.

    A broken file adds one line to `problems`.
    """
    try:
        return read_json(path)
    except FileNotFoundError:
        pass
    except (ValueError, OSError) as error:
        if problems is not None:
            problems.append(f"{path}: broken JSON ({first_line(error)}); ignored")
    return {}


def read_json_lines(path: Path, tail_bytes: int | None = None) -> list[dict[str, Any]]:
    """Return the objects in a file of JSON lines, [] if it is missing.

    `tail_bytes`: read only this many bytes at the end. Incomplete lines are skipped: a writer may
    be in the middle of a line, or was killed there.
    """
    try:
        with path.open("rb") as file:
            if tail_bytes is not None:
                file.seek(max(0, path.stat().st_size - tail_bytes))
            lines = file.read().splitlines()
    except OSError:
        return []
    objects = []
    for line in lines:
        try:
            content = json.loads(line)
        except ValueError:
            continue
        if isinstance(content, dict):
            objects.append(content)
    return objects


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Any, digest: bool = False) -> None:
    """Write a JSON file atomically, indented. `digest`: add that of the values of an object."""
    if digest:
        value = {CONTENT: sha256(_canonical(json.loads(to_json(value)))), **value}
    write_text(path, to_json(value, indent=2) + "\n")


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory that replaces `path` when the block ends without an error.

    No portable call swaps two directories: for an instant only `.<name>.old` exists. Readers use
    `readable_directory`; after a crash the writer calls `recover_directory`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = path.with_name(f".{path.name}.new"), _old(path)
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
    _remove(old)


def readable_directory(path: Path) -> Path:
    """Return the path to read an `atomic_directory` from, also during a swap."""
    old = _old(path)
    return old if old.exists() and not path.exists() else path


def recover_directory(path: Path) -> None:
    """Finish a swap of `atomic_directory` that was interrupted. Only its writer may call this."""
    old = _old(path)
    if path.exists():
        _remove(old)
    elif old.exists():
        os.rename(old, path)


def _remove(path: Path) -> None:
    """Remove a directory, or a link to one, if it exists."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def file_state(path: Path) -> tuple[int, ...] | None:
    """Return what differs once a file is written again; None if it is missing.

    Times are only compared with others of the same file: the clock may go back.
    """
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def directory_bytes(path: Path) -> int:
    """Return the size of all files below a directory; links are not followed."""
    files = (os.path.join(parent, name) for parent, _, names in os.walk(path) for name in names)
    return sum(map(_bytes, files))


def _bytes(file: str) -> int:
    try:
        return os.lstat(file).st_size
    except FileNotFoundError:  # replaced since it was listed
        return 0


def sha256(content: bytes | str) -> str:
    """Return the hex digest of bytes, or of the UTF-8 bytes of a string."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    return hashlib.sha256(data).hexdigest()


def sha256_of_file(path: Path) -> str:
    """Return the hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_files(paths: Sequence[Path]) -> str:
    """Return the hex digest of one file's content; of several, that of their digests."""
    digests = [sha256_of_file(path) for path in paths]
    return digests[0] if len(digests) == 1 else sha256("\n".join(digests))


def _flush_to_disk(path: Path) -> None:
    with path.open("r+b") as file:  # Windows can flush only files open for writing
        os.fsync(file.fileno())
