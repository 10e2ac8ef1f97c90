"""The user's own text files."""

from __future__ import annotations

import codecs
import glob
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

from minigpt.data.corpus import CORPORA, FILE, FILE_END, DataConfig, TextSource
from minigpt.errors import UserError, require
from minigpt.files import matching_paths, readable_name, user_path

BLOCK_BYTES = 1 << 20  # read from a file at once
N_NAMED = 3  # files named for each reason to leave files out

# Reasons to leave out a file of a folder or pattern.
HIDDEN = "hidden"
NOT_A_FILE = "not a file"  # a pipe, a broken link, a link to a folder, a folder that matches
EMPTY = "empty"
NOT_TEXT = "not UTF-8 text"
COPY = "same as another"  # a link, or a file of the same content


@dataclass
class TextConfig(DataConfig):
    """`path`: a UTF-8 text file, a folder (every file in it), or a glob pattern."""

    path: str

    def __post_init__(self) -> None:
        super().__post_init__()
        missing = self.path in ("", "???")
        require(not missing, "data.path", "", "missing; give a file, folder or glob")


@CORPORA.register("text", TextConfig)
class Text(TextSource):
    """The user's own UTF-8 text files in sorted order, each beginning a line of its own.

    In a folder or pattern each text is used once, and files that are not text are left out. The
    text is unchanged, except that a file without a final newline gets one before the next file, or
    with document_separator=file each file is followed by FILE_END.
    """

    def read(self) -> str:
        return "".join(self.blocks())

    def blocks(self) -> Iterator[str]:
        last = "\n"
        for file in self._files:
            if last != "\n" and not self._files_are_documents:
                yield "\n"
            for block in _read_utf8(file):
                if FILE_END in block and self._files_are_documents:
                    why = "has the character U+001C, which ends each file; remove it"
                    raise UserError(f"data.document_separator={FILE}: {readable_name(file)}: {why}")
                yield block
                last = block[-1:] or last
            if self._files_are_documents:
                yield FILE_END

    @property
    def _files_are_documents(self) -> bool:
        return self.config.document_separator == FILE

    @property
    def left_out(self) -> str | None:
        reasons = {path: why for path, why in self._reasons.items() if why is not None}
        if not reasons:
            return None
        return f"left out: {'; '.join(_summaries(reasons))}"

    @cached_property
    def _files(self) -> list[Path]:
        files = [path for path, reason in self._reasons.items() if reason is None]
        why = "no such file, folder or matching files; if it was moved, give data.path=NEW"
        if glob.has_magic(self.config.path):
            why += "; * ? [ ] are a pattern, write [[] for a bracket in a name"
        if self._reasons:
            why = f"has no text ({self.left_out}); give UTF-8 text files"
        require(bool(files), "data.path", self.config.path, why)
        return files

    @cached_property
    def _reasons(self) -> dict[Path, str | None]:
        """The sorted paths of `data.path`, each with the reason to leave it out, or None."""
        path = user_path("data.path", self.config.path)
        if path.is_file():
            return {path: None}
        why = "a pipe or device, but a text is read more than once; write it to a file first"
        require(path.is_dir() or not path.exists(), "data.path", path, why)
        found = _inside(path) if path.is_dir() else matching_paths(str(path))
        first_of: dict[object, Path] = {}
        return {file: _reason(file, path, first_of) for file in sorted(set(map(Path, found)))}


class NotText(UserError):
    """A file that is empty or not UTF-8 text. `reason`: EMPTY or NOT_TEXT."""

    def __init__(self, path: Path, reason: str, why: str) -> None:
        super().__init__(f"data.path: {readable_name(path)}: {why}")
        self.reason = reason


def _inside(folder: Path) -> Iterator[str]:
    """Yield all files below a folder, links to folders, and hidden folders.

    Raises UserError for a folder that cannot be read.
    """

    def fail(error: OSError) -> None:
        raise _unreadable(Path(error.filename), error)

    for parent, folders, files in os.walk(folder, onerror=fail):
        hidden = [name for name in folders if name.startswith(".")]
        folders[:] = sorted(set(folders) - set(hidden))
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        yield from (os.path.join(parent, name) for name in (*files, *hidden, *links))


def _reason(path: Path, top: Path, first_of: dict[object, Path]) -> str | None:
    """Return why a path that was found is left out; None for a text that `first_of` lacks.

    `first_of`: the first path with an inode or a content, to which this one is added. Only names
    below `top` count as hidden.
    """
    if path.name.startswith(".") and path.is_relative_to(top):
        return HIDDEN
    if not path.is_file():
        return NOT_A_FILE
    status = path.stat()
    inode = (status.st_dev, status.st_ino)
    if first_of.setdefault(inode, path) != path:
        return COPY
    digest = sha256()
    try:
        for block in _read_utf8(path):
            digest.update(block.encode("utf-8"))
    except NotText as error:
        return error.reason
    return None if first_of.setdefault(digest.digest(), path) == path else COPY


def _unreadable(path: Path, error: OSError) -> UserError:
    why = f"cannot be read ({error.strerror}); make it readable or leave it out"
    return UserError(f"data.path: {readable_name(path)}: {why}")


def _summaries(reasons: dict[Path, str]) -> Iterator[str]:
    """Yield the number of files, with the first names, for each reason."""
    for reason, n in Counter(reasons.values()).items():
        names = [readable_name(path) for path, why in reasons.items() if why == reason][:N_NAMED]
        more = [] if n <= N_NAMED else ["..."]
        yield f"{n:,} {reason} ({', '.join([*names, *more])})"


def _read_utf8(path: Path) -> Iterator[str]:
    """Yield the text of a file in blocks.

    Raises NotText if it is empty, not UTF-8, or has a NUL byte: text has none, as for grep and git.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")()  # drops a byte order mark
    n_read = n_characters = 0
    try:
        with path.open("rb") as file:
            content = None
            while content != b"":
                content = file.read(BLOCK_BYTES)
                if b"\0" in content:
                    offset = n_read + content.index(b"\0")
                    why = f"byte 0x00 at offset {offset}: a binary file; leave it out"
                    raise NotText(path, NOT_TEXT, why)
                n_read += len(content)
                text = decoder.decode(content, final=not content)
                n_characters += len(text)
                yield text
    except OSError as error:
        raise _unreadable(path, error) from None
    except UnicodeDecodeError as error:
        offset = n_read - len(error.object) + error.start  # error.object: all undecoded bytes
        why = (
            f"byte 0x{error.object[error.start]:02x} at offset {offset} is not UTF-8 "
            f"({error.reason}); convert the file to UTF-8 or leave it out"
        )
        raise NotText(path, NOT_TEXT, why) from None
    if not n_characters:
        raise NotText(path, EMPTY, "the file is empty (offset 0); leave it out")
