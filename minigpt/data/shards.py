"""Large corpora: tokens are written once, in constant memory, and memory-mapped in training."""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from minigpt.data.corpus import (
    CORPORA,
    FILE,
    Corpus,
    DataConfig,
    Source,
    TextSource,
    n_train,
    require_separator,
)
from minigpt.data.lazy import Array, DocumentIds, ShardedTokens
from minigpt.data.tokens import Split, TokenData
from minigpt.errors import UserError, require
from minigpt.files import atomic_directory, sha256, user_path, write_json
from minigpt.tokenizer import TOKENIZERS, Tokenizer, TokenizerConfig, load_tokenizer
from minigpt.tokenizer.bpe import MAX_LEARNED_CHARACTERS

INDEX, TOKENIZER = "index.json", "tokenizer.json"
FORMAT = 1  # format version: increase it when the meaning of the files changes
SHARD_TOKENS = 1 << 26
CHUNK_CHARACTERS = 1 << 20  # minimum number of characters encoded at once
COMMAND = "minigpt data --shards"


@dataclass
class ShardsConfig(DataConfig):
    """`path`: a folder of shards. All other options must be those used to write the shards."""

    path: str

    def __post_init__(self) -> None:
        why = f"missing; give a folder that {COMMAND} wrote"
        require(self.path != "", "data.path", "", why)
        super().__post_init__()
        why = "data=shards caches nothing outside data.path; leave it out"
        require(self.dir in (None, self.path), "data.dir", self.dir, why)

    @property
    def directory(self) -> Path:
        """The folder of the shards."""
        return user_path("data.path", self.path)


@dataclass(frozen=True)
class Index:
    """The content of index.json: facts about the text, the options, and the list of files.

    `splits`: for each split `target_bytes`, `shards` (the number of tokens of each file, in order)
    and `ends` (the number of documents that end in it).
    """

    sha256: str
    n_bytes: int
    characters: dict[str, int]
    made_with: dict[str, Any]
    tokenizer_sha256: str
    splits: dict[str, dict[str, Any]]
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        """Write index.json, with a digest of itself."""
        write_json(folder / INDEX, {"digest": self._digest, **asdict(self)})

    @classmethod
    def read(cls, folder: Path) -> Index:
        """Read a folder's index. Raises UserError if it is missing, damaged or edited."""
        try:
            saved = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            digest, index = saved.pop("digest"), cls(**saved)
            if digest != index._digest or index.format != FORMAT:
                raise ValueError("edited, or another version")
            return index
        except OSError as error:
            why = f"{INDEX} cannot be read ({error.strerror})"
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            why = f"{INDEX} was not written by minigpt ({type(error).__name__}: {error})"
        raise UserError(f"data.path={folder}: {why}; give a folder that {COMMAND} wrote")

    @property
    def _digest(self) -> str:
        return sha256(json.dumps(asdict(self), sort_keys=True))


def data_settings(config: DataConfig) -> dict[str, Any]:
    """Return the options that determine the splits, by full key.

    Raises UserError for a test split, and for a part of the training split.
    """
    why = "shards have no test split; use data=text, or 0"
    require(config.test_fraction == 0, "data.test_fraction", config.test_fraction, why)
    why = "shards are used whole; use data=text, or 1"
    require(config.fraction == 1, "data.fraction", config.fraction, why)
    return {
        "data.train_fraction": config.train_fraction,
        "data.document_separator": FILE if config.document_separator == FILE else config.separator,
    }


def tokenizer_settings(config: TokenizerConfig) -> dict[str, Any]:
    """Return the options of a tokenizer, by full key."""
    options = {f"tokenizer.{key}": value for key, value in asdict(config).items()}
    return {"tokenizer": options.pop("tokenizer.name"), **options}


class ShardCorpus(Corpus):
    """The tokens in a folder of shards, without their text."""

    def __init__(self, config: ShardsConfig) -> None:
        self._folder = config.directory
        self._index = Index.read(self._folder)
        self.sha256, self.n_bytes = self._index.sha256, self._index.n_bytes
        self.characters = self._index.characters
        self._has_documents = config.separator is not None
        self._require_made_with(data_settings(config))

    def tokenizer(self, config: TokenizerConfig, directory: Path) -> Tokenizer:
        self._require_made_with(tokenizer_settings(config))
        return load_tokenizer(self._folder / TOKENIZER)

    def tokens(self, tokenizer: Tokenizer, directory: Path) -> TokenData:
        expected, actual = self._index.tokenizer_sha256, tokenizer.fingerprint
        why = (
            f"its tokens are of another tokenizer (sha256 {expected[:12]}) than the one in use "
            f"({actual[:12]}); restore the folder, or create it again with {COMMAND}"
        )
        require(expected == actual, "data.path", self._folder, why)
        dtype = token_type(tokenizer)
        return TokenData(self._split("train", dtype), self._split("val", dtype))

    def _require_made_with(self, settings: dict[str, Any]) -> None:
        for key, value in settings.items():
            stored = self._index.made_with.get(key)
            why = (
                f"the shards in {self._folder} were made with {key}={stored!r}; "
                f"use that value, or create other shards with {COMMAND}"
            )
            require(stored == value, key, value, why)

    def _split(self, name: str, dtype: np.dtype[Any]) -> Split:
        split = self._index.splits[name]
        tokens = ShardedTokens([self._array(f, (n,), dtype) for f, n in split["shards"].items()])
        document_ids = None
        if self._has_documents:
            ends = self._array(ends_file(name), (split["ends"],), np.dtype(np.int64))
            document_ids = DocumentIds(ends, len(tokens))
        return Split(name, tokens, split["target_bytes"], document_ids)

    def _array(self, file: str, shape: tuple[int], dtype: np.dtype[Any]) -> Array:
        """Return a memory-mapped file. Raises UserError if it does not match the index."""
        try:
            mapped = np.load(self._folder / file, mmap_mode="r")
            if (mapped.shape, mapped.dtype) == (shape, dtype):
                return mapped
            actual = f"{mapped.shape} of {mapped.dtype}"
        except FileNotFoundError:
            actual = "missing"
        except (OSError, ValueError, EOFError) as error:
            actual = f"damaged ({error})"
        raise UserError(
            f"data.path={self._folder}: {file} is {actual}, but the index says {shape} of {dtype}; "
            f"restore it, or create the folder again with {COMMAND}"
        )


@CORPORA.register("shards", ShardsConfig)
class Shards(Source):
    """A folder that `minigpt data --shards` wrote."""

    def corpus(self) -> ShardCorpus:
        return ShardCorpus(self.config)


def write_shards(
    source: Source,
    tokenizer: TokenizerConfig,
    folder: Path,
    progress: Callable[[str, int, int | None], object] = lambda phase, n_characters, total: None,
    shard_tokens: int = SHARD_TOKENS,
    chunk_characters: int = CHUNK_CHARACTERS,
) -> Index:
    """Write the tokens of a source's text to a new folder, atomically. Return its index.

    The text is read twice: first for its length and alphabet, then to encode it in chunks (see
    `chunks`). Memory grows by 8 bytes per document. The tokens equal those of the same text in
    memory. `progress` is called with the phase, the number of characters processed, and of all,
    None in the first pass. Raises UserError.
    """
    require(not folder.exists(), "--shards", folder, "already exists; name a new folder")
    data = source.config
    if not isinstance(source, TextSource):
        raise UserError(f"data={data.name}: cannot be read as text; use another corpus")
    settings = data_settings(data) | tokenizer_settings(tokenizer)
    first = _CountedBlocks(source.blocks(), lambda done: progress("reading", done, None))
    leading, alphabet = "", set[str]()
    for block in first:
        leading += block[: MAX_LEARNED_CHARACTERS - len(leading)]
        alphabet.update(block)
    n = n_train(data, first.n_characters)
    leading = leading[:n]
    create = TOKENIZERS.variant(tokenizer.name).create
    # Tokenizers use the text after the training split only to collect the alphabet.
    text = leading + "".join(sorted(alphabet))
    learned = create(tokenizer, text, len(leading), data.directory)
    total = first.n_characters
    second = _CountedBlocks(source.blocks(), lambda done: progress("encoding", done, total))
    splits = {}
    with atomic_directory(folder) as temporary:
        for name, parts in groupby(_label_splits(n, second), key=itemgetter(0)):
            blocks = (part for _, part in parts)
            texts = chunks(blocks, data.separator, learned.boundary, chunk_characters)
            splits[name] = _write_split(temporary, name, texts, learned, shard_tokens)
            has_separator = data.separator is None or splits[name]["ends"] > 0
            require_separator(has_separator, data, name, "\r" in alphabet)
        if second.sha256 != first.sha256:
            raise UserError(f"data={data.name}: the text changed while it was read; try again")
        learned.save(temporary / TOKENIZER)
        characters = {"train": n, "val": first.n_characters - n}
        facts = (first.sha256, first.n_bytes, characters, settings)
        index = Index(*facts, learned.fingerprint, splits)
        index.write(temporary)
    return index


def token_type(tokenizer: Tokenizer) -> np.dtype[Any]:
    """Return the smallest unsigned integer type for the vocabulary."""
    return np.min_scalar_type(tokenizer.n_vocab - 1)


def ends_file(split: str) -> str:
    """Return the name of the file with the indices of the last tokens of documents."""
    return f"{split}_ends.npy"


def chunks(
    blocks: Iterable[str],
    separator: str | None,
    boundary: re.Pattern[str],
    size: int = CHUNK_CHARACTERS,
) -> Iterator[tuple[str, bool]]:
    """Yield chunks that can be tokenized separately, and whether each one ends a document.

    The text is split after each separator, and at the first match of `boundary` after `size`
    characters. Text without a match is held in memory until there is one.
    """
    rest, overlap = "", 0 if separator is None else len(separator)
    for block in blocks:
        rest += block
        if separator is not None:
            *documents, rest = rest.split(separator)
            yield from ((document + separator, True) for document in documents)
        # The last characters may be the beginning of a separator; they are not split.
        while len(rest) - overlap > size and (
            match := boundary.search(rest, size, len(rest) - overlap)
        ):
            yield rest[: match.start()], False
            rest = rest[match.start() :]
    if rest:
        yield rest, False


class _CountedBlocks:
    """An iterable over the blocks of a text that counts and hashes them."""

    def __init__(self, blocks: Iterable[str], progress: Callable[[int], object]) -> None:
        self._blocks, self._progress = blocks, progress
        self.n_characters = self.n_bytes = 0

    def __iter__(self) -> Iterator[str]:
        digest = hashlib.sha256()
        for block in self._blocks:
            content = block.encode("utf-8")
            digest.update(content)
            self.n_characters += len(block)
            self.n_bytes += len(content)
            yield block
            self._progress(self.n_characters)
        self.sha256 = digest.hexdigest()


def _label_splits(n: int, blocks: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield (split, text): the first n characters are the training split."""
    for block in blocks:
        for name, part in (("train", block[:n]), ("val", block[n:])):
            if part:
                yield name, part
        n = max(0, n - len(block))


def _write_split(
    folder: Path,
    name: str,
    texts: Iterable[tuple[str, bool]],
    tokenizer: Tokenizer,
    shard_tokens: int,
) -> dict[str, Any]:
    """Write the tokens of a split. Return its entry of `Index.splits`."""
    dtype = token_type(tokenizer)
    shards: dict[str, int] = {}
    buffer, ends = array(dtype.char), array("q")
    n_bytes = n_tokens = 0

    def write() -> None:
        file = f"{name}_{len(shards):05}.npy"
        np.save(folder / file, np.frombuffer(buffer, dtype))
        shards[file] = len(buffer)

    for text, is_end in texts:
        tokens = tokenizer.encode(text)
        if n_tokens == 0:  # the first token is never a target
            n_bytes -= len(tokenizer.token_bytes(tokens[0]))
        buffer.extend(tokens)
        n_tokens += len(tokens)
        n_bytes += len(text.encode("utf-8"))
        if is_end:
            ends.append(n_tokens - 1)
        if len(buffer) >= shard_tokens:
            write()
            buffer = array(dtype.char)
    if buffer:
        write()
    if ends:
        np.save(folder / ends_file(name), np.frombuffer(ends, np.int64))
    return {"target_bytes": n_bytes, "shards": shards, "ends": len(ends)}
