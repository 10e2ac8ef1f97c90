"""A large corpus: tokens written once, in constant memory, to files that are mapped, not read."""

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
    Corpus,
    DataConfig,
    Source,
    TextSource,
    n_train,
    require_separator,
)
from minigpt.data.stored import Array, Joined, Numbered
from minigpt.data.tokens import Split, TokenData
from minigpt.errors import UserError, require
from minigpt.files import atomic_directory, sha256, write_json
from minigpt.tokenizer import TOKENIZERS, Tokenizer, TokenizerConfig, load_tokenizer

INDEX, TOKENIZER = "index.json", "tokenizer.json"
FORMAT = 1  # raise it when the meaning of the files changes
SHARD_TOKENS = 1 << 26
PIECE = 1 << 20  # characters encoded at once, at least
LEADING = 1 << 25  # characters of the training split that a tokenizer learns from, at most
COMMAND = "minigpt data --shards"


@dataclass
class ShardsConfig(DataConfig):
    """`path`: a folder of shards. What they were made with must be asked for again."""

    path: str

    def __post_init__(self) -> None:
        why = f"missing; give a folder that {COMMAND} wrote"
        require(self.path != "", "data.path", "", why)
        super().__post_init__()
        why = "shards are all that data=shards needs, nothing else is kept; leave it out"
        require(self.dir == self.path, "data.dir", self.dir, why)


@dataclass(frozen=True)
class Index:
    """What stands in index.json: the text, what its tokens were made with, the files.

    `splits`: by name `target_bytes`, the tokens of each file in order, and how many documents end.
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
        """Read a folder's index. Raises UserError if it is missing, damaged or was edited."""
        try:
            saved = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            digest, index = saved.pop("digest"), cls(**saved)
            if digest != index._digest or index.format != FORMAT:
                raise ValueError("edited, or of another version")
            return index
        except OSError as error:
            why = f"no {INDEX} to read there ({error.strerror})"
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            why = f"{INDEX} is none that minigpt wrote ({type(error).__name__}: {error})"
        raise UserError(f"data.path={folder}: {why}; give a folder that {COMMAND} wrote")

    @property
    def _digest(self) -> str:
        return sha256(json.dumps(asdict(self), sort_keys=True))


def data_settings(config: DataConfig) -> dict[str, Any]:
    """What decides where a text is cut, by full key."""
    return {
        "data.train_fraction": config.train_fraction,
        "data.document_separator": config.separator,
    }


def tokenizer_settings(config: TokenizerConfig) -> dict[str, Any]:
    """What decides a tokenizer, by full key."""
    options = {f"tokenizer.{key}": value for key, value in asdict(config).items()}
    return {"tokenizer": options.pop("tokenizer.name"), **options}


class ShardCorpus(Corpus):
    """Tokens in the files of a folder. They are what its index says; their text is not there."""

    def __init__(self, config: ShardsConfig) -> None:
        self._folder = Path(config.path).expanduser()
        self._index = Index.read(self._folder)
        self._documents = config.separator is not None
        self._require_made_with(data_settings(config))

    @property
    def sha256(self) -> str:
        return self._index.sha256

    @property
    def n_bytes(self) -> int:
        return self._index.n_bytes

    @property
    def characters(self) -> dict[str, int]:
        return self._index.characters

    def tokenizer(self, config: TokenizerConfig, directory: Path) -> Tokenizer:
        self._require_made_with(tokenizer_settings(config))
        return load_tokenizer(self._folder / TOKENIZER)

    def tokens(self, tokenizer: Tokenizer, directory: Path) -> TokenData:
        then, now = self._index.tokenizer_sha256, tokenizer.fingerprint
        why = (
            f"its tokens are of another tokenizer (sha256 {then[:12]}) than the one in use "
            f"({now[:12]}); restore the folder, or make it anew with {COMMAND}"
        )
        require(then == now, "data.path", self._folder, why)
        dtype = token_type(tokenizer)
        return TokenData(self._split("train", dtype), self._split("val", dtype))

    def _require_made_with(self, asked: dict[str, Any]) -> None:
        for key, value in asked.items():
            then = self._index.made_with.get(key)
            why = (
                f"the shards in {self._folder} were made with {key}={then!r}; "
                f"ask for that, or make others with {COMMAND}"
            )
            require(then == value, key, value, why)

    def _split(self, name: str, dtype: np.dtype[Any]) -> Split:
        about = self._index.splits[name]
        tokens = Joined([self._array(f, (n,), dtype) for f, n in about["shards"].items()])
        documents = None
        if self._documents:
            ends = self._array(ends_file(name), (about["ends"],), np.dtype(np.int64))
            documents = Numbered(ends, len(tokens))
        return Split(name, tokens, about["target_bytes"], documents)

    def _array(self, file: str, shape: tuple[int], dtype: np.dtype[Any]) -> Array:
        """A mapped file. Raises UserError where it is not what the index says."""
        found = "missing"
        try:
            mapped = np.load(self._folder / file, mmap_mode="r")
            if (mapped.shape, mapped.dtype) == (shape, dtype):
                return mapped
            found = f"{mapped.shape} of {mapped.dtype}"
        except FileNotFoundError:
            pass
        except (OSError, ValueError, EOFError) as error:
            found = f"damaged ({error})"
        raise UserError(
            f"data.path={self._folder}: {file} is {found}, but the index says {shape} of {dtype}; "
            f"restore it, or make the folder anew with {COMMAND}"
        )


@CORPORA.register("shards", ShardsConfig)
class Shards(Source):
    """A folder that `minigpt data --shards` wrote."""

    def corpus(self) -> ShardCorpus:
        return ShardCorpus(self.config)


# ---- writing ----


def write_shards(
    data: DataConfig,
    tokenizer: TokenizerConfig,
    folder: Path,
    progress: Callable[[str, int], object] = lambda doing, characters: None,
    shard_tokens: int = SHARD_TOKENS,
    piece: int = PIECE,
) -> Index:
    """Write a text's tokens to a new folder; it is whole or not there.

    The text is read twice, first to know where to split it and its characters, and is held no
    further than to the next place where its tokenizer lets it be cut (see `pieces`). Memory grows
    by 8 bytes a document. The tokens are those that the text would have in memory; of a longer
    training split `bpe` learns from the first LEADING characters.
    `progress` is told what is done and of how many characters. Raises UserError.
    """
    require(not folder.exists(), "--shards", folder, "is there already; name a new folder")
    source = CORPORA.build(data)
    why = "is no text that can be read; name one that is"
    require(isinstance(source, TextSource), "data", data.name, why)
    assert isinstance(source, TextSource)
    first = _Counted(source.blocks(), lambda n: progress("reading", n))
    leading, alphabet = "", set[str]()
    for block in first:
        leading += block[: LEADING - len(leading)]
        alphabet.update(block)
    n = n_train(data, first.n_characters)
    leading = leading[:n]
    create = TOKENIZERS.variant(tokenizer.name).create
    # Whatever comes after the training split is looked at for its characters alone.
    text = leading + "".join(sorted(alphabet))
    made = create(tokenizer, text, len(leading), Path(data.dir).expanduser())
    second = _Counted(source.blocks(), lambda n: progress("encoding", n))
    splits = {}
    with atomic_directory(folder) as temporary:
        for name, parts in groupby(_cut_at(n, second), key=itemgetter(0)):
            texts = pieces((part for _, part in parts), data.separator, made.cut, piece)
            splits[name] = _write_split(temporary, name, texts, made, shard_tokens)
            require_separator(data.separator is None or splits[name]["ends"] > 0, data, name)
        if second.sha256 != first.sha256:
            raise UserError(f"data={data.name}: the text changed while it was read; try again")
        made.save(temporary / TOKENIZER)
        index = Index(
            first.sha256,
            first.n_bytes,
            {"train": n, "val": first.n_characters - n},
            data_settings(data) | tokenizer_settings(tokenizer),
            made.fingerprint,
            splits,
        )
        index.write(temporary)
    return index


def token_type(tokenizer: Tokenizer) -> np.dtype[Any]:
    """The smallest unsigned integers that hold every token."""
    return np.min_scalar_type(tokenizer.n_vocab - 1)


def ends_file(split: str) -> str:
    """Where the places of the last tokens of documents stand."""
    return f"{split}_ends.npy"


def pieces(
    blocks: Iterable[str], separator: str | None, cut: re.Pattern[str], size: int = PIECE
) -> Iterator[tuple[str, bool]]:
    """A text in pieces that have the tokens of the whole, and whether a document ends with each.

    A text is cut after separators, and where `cut` matches at `size` characters or later. A text
    without such places is held until one comes.
    """
    rest, beyond = "", 0 if separator is None else len(separator)
    for block in blocks:
        rest += block
        if separator is not None:
            *documents, rest = rest.split(separator)
            yield from ((document + separator, True) for document in documents)
        # What may be the beginning of a separator stays whole.
        while len(rest) - beyond > size and (place := cut.search(rest, size, len(rest) - beyond)):
            yield rest[: place.start()], False
            rest = rest[place.start() :]
    if rest:
        yield rest, False


class _Counted:
    """Passes a text's blocks on and counts them."""

    def __init__(self, blocks: Iterable[str], progress: Callable[[int], object]) -> None:
        self._blocks, self._progress = blocks, progress
        self._digest = hashlib.sha256()
        self.n_characters = self.n_bytes = 0

    def __iter__(self) -> Iterator[str]:
        for block in self._blocks:
            content = block.encode("utf-8")
            self._digest.update(content)
            self.n_characters += len(block)
            self.n_bytes += len(content)
            yield block
            self._progress(self.n_characters)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


def _cut_at(n: int, blocks: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Blocks with the split they belong to: the first n characters are for training."""
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
    """Write a split's tokens, and say what was written, as `Index.splits` holds it."""
    dtype = token_type(tokenizer)
    shards: dict[str, int] = {}
    held, ends = array(dtype.char), array("q")
    n_bytes = n_tokens = 0

    def write() -> None:
        file = f"{name}_{len(shards):05}.npy"
        np.save(folder / file, np.frombuffer(held, dtype))
        shards[file] = len(held)

    for text, is_end in texts:
        tokens = tokenizer.encode(text)
        if n_tokens == 0:  # nothing predicts the first token
            n_bytes -= len(tokenizer.token_bytes(tokens[0]))
        held.extend(tokens)
        n_tokens += len(tokens)
        n_bytes += len(text.encode("utf-8"))
        if is_end:
            ends.append(n_tokens - 1)
        if len(held) >= shard_tokens:
            write()
            held = array(dtype.char)
    if held:
        write()
    if ends:
        np.save(folder / ends_file(name), np.frombuffer(ends, np.int64))
    return {"target_bytes": n_bytes, "shards": shards, "ends": len(ends)}
