"""Tokenizers as a `tokenizers` JSON, the tokenizer.json of transformers, and back."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from minigpt.errors import UserError, first_line
from minigpt.tokenizer import Tokenizer
from minigpt.tokenizer.base import character_error, chunks, require_utf8
from minigpt.tokenizer.bpe import (
    BOUNDARY,
    BYTE_SYMBOLS,
    GPT2_WORDS,
    MAX_WORD_CHARACTERS,
    BPETokenizer,
    symbol_bytes,
    word_splitter,
)
from minigpt.tokenizer.char import CharTokenizer
from minigpt.tokenizer.tiktoken_ import GPT2_PATTERN, TiktokenTokenizer

ANY_CHARACTER = r"[\s\S]"
SYMBOL_OF_BYTE = {byte: symbol for symbol, byte in BYTE_SYMBOLS.items()}
NEVER, ANYWHERE = re.compile(r"(?!)"), re.compile(r"(?=[\s\S])")


def to_tokenizer_json(tokenizer: Tokenizer, advance: Callable[[], object] = lambda: None) -> str:
    """Return the content of a tokenizer.json that encodes and decodes as a tokenizer of a run.

    `advance`: called for each token whose merge is found.
    """
    saved = tokenizer.to_json()
    if isinstance(tokenizer, JsonTokenizer):
        return json.dumps(saved["json"])
    if isinstance(tokenizer, CharTokenizer):
        engine = _char_engine(saved["characters"])
    elif isinstance(tokenizer, BPETokenizer):
        engine = _bpe_engine(saved["vocabulary"], saved["merges"])
    else:
        assert isinstance(tokenizer, TiktokenTokenizer), tokenizer
        engine = _ranked_engine(tokenizer, advance)
    return engine.to_str()


def _char_engine(characters: str) -> tokenizers.Tokenizer:
    """Return an engine with a token per character, and an error for any other character."""
    ids = {character: token for token, character in enumerate(characters)}
    engine = tokenizers.Tokenizer(models.WordLevel(ids))
    engine.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(ANY_CHARACTER), "isolated")
    engine.decoder = decoders.Fuse()  # without a decoder, spaces would join the characters
    return engine


def _bpe_engine(vocabulary: list[str], merges: list[str]) -> tokenizers.Tokenizer:
    ids = {symbol: token for token, symbol in enumerate(vocabulary)}
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    engine = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=pairs))
    engine.pre_tokenizer = word_splitter(MAX_WORD_CHARACTERS)
    engine.decoder = decoders.ByteLevel()
    return engine


def _ranked_engine(
    tokenizer: TiktokenTokenizer, advance: Callable[[], object]
) -> tokenizers.Tokenizer:
    """Return an engine with the merges that the ranks of a tiktoken encoding imply."""
    saved = tokenizer.to_json()
    ranks = {base64.b64decode(token): rank for token, rank in saved["ranks"].items()}
    ids = {_symbols(token): rank for token, rank in ranks.items()}
    pairs = merges_of_ranks(ranks, advance)
    merges = [(_symbols(left), _symbols(right)) for left, right in pairs]
    # As in tiktoken, a word that is a token needs no merges.
    engine = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=merges, ignore_merges=True))
    words = tokenizers.Regex(_oniguruma(saved["pattern"]))
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "isolated"), as_bytes]
    )
    engine.decoder = decoders.ByteLevel()
    special = sorted(saved["special_tokens"].items(), key=lambda item: item[1])
    engine.add_special_tokens([AddedToken(name, special=True) for name, _ in special])
    return engine


def merges_of_ranks(
    ranks: dict[bytes, int], advance: Callable[[], object] = lambda: None
) -> list[tuple[bytes, bytes]]:
    """Return the pairs that byte-pair encoding merges, in the order of the ranks of their tokens.

    The last merge of a token joins the two parts that merges of lower ranks leave of it.
    """
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        advance()
        if len(token) > 1:
            parts = [token[i : i + 1] for i in range(len(token))]
            while len(parts) > 2:
                joined = [ranks.get(a + b, rank) for a, b in pairwise(parts)]
                lowest = min(joined)
                if lowest >= rank:
                    break
                at = joined.index(lowest)
                parts[at : at + 2] = [parts[at] + parts[at + 1]]
            if len(parts) == 2:
                merges.append((parts[0], parts[1]))
    return merges


def _symbols(token: bytes) -> str:
    """Return a token in GPT-2's byte alphabet."""
    return "".join(map(SYMBOL_OF_BYTE.__getitem__, token))


def _oniguruma(pattern: str) -> str:
    """Return a pattern of tiktoken for the regular expressions of `tokenizers`.

    There `$` also matches at the end of a line, and `{1,3}+` is not possessive. None of tiktoken's
    patterns matches otherwise without possessive quantifiers, which only save time.
    """
    if pattern == GPT2_PATTERN:
        return GPT2_WORDS
    return re.sub(r"(?<!\\)([+*?}])\+", r"\1", pattern).replace("$", r"\z")


class JsonTokenizer(Tokenizer):
    """A tokenizer that a `tokenizers` JSON describes. It adds no special tokens.

    `fingerprint`: that of the tokenizer it was written from, if that is known: equal tokens.
    """

    kind = "tokenizers"

    def __init__(self, saved: dict[str, Any], fingerprint: str | None = None) -> None:
        self._saved, self._fingerprint = saved, fingerprint
        self._engine = tokenizers.Tokenizer.from_str(json.dumps(saved))
        self._engine.no_padding()
        self._engine.no_truncation()
        self._bytes = _token_bytes(saved, self._engine)
        self._known = None
        if (
            saved["model"]["type"] == "WordLevel"
            and saved["model"].get("unk_token") not in (saved["model"]["vocab"])
        ):
            self._known = saved["model"]["vocab"].keys()
        self.boundary = _boundary(saved)

    @classmethod
    def create(cls, config: Any, text: str, n_train: int, directory: Path) -> Tokenizer:
        raise AssertionError("it is only read")

    @property
    def n_vocab(self) -> int:
        return len(self._bytes)

    @property
    def fingerprint(self) -> str:
        return super().fingerprint if self._fingerprint is None else self._fingerprint

    def encode(self, text: str) -> list[int]:
        require_utf8(text)
        return [token for chunk in chunks(text, self.boundary) for token in self._encode(chunk)]

    def _encode(self, text: str) -> list[int]:
        try:
            return self._engine.encode_batch_fast([text], add_special_tokens=False)[0].ids
        except Exception as error:  # the library raises no other class
            why = f"this tokenizer cannot encode it ({first_line(error)}); remove it"
            unknown = [i for i, c in enumerate(text) if self._known and c not in self._known]
            raise character_error(text, unknown[0] if unknown else 0, why) from None

    def token_bytes(self, token: int) -> bytes:
        return self._bytes[token]

    def to_json(self) -> dict[str, Any]:
        return {"json": self._saved}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> JsonTokenizer:
        return cls(saved["json"])


def read_tokenizer_json(path: Path, fingerprint: str | None = None) -> JsonTokenizer:
    """Read a tokenizer.json. Raises UserError if it is missing, damaged or of an unknown kind."""
    try:
        return JsonTokenizer(json.loads(path.read_text(encoding="utf-8")), fingerprint)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; only tokenizers saved as JSON are read") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); make it readable") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # the library raises no other class
        raise UserError(
            f"{path}: not a tokenizers JSON ({first_line(error)}); restore it"
        ) from None


def _boundary(saved: dict[str, Any]) -> re.Pattern[str]:
    """Return where a text can be split without changing its tokens; nowhere if that is unknown."""
    engine = tokenizers.Tokenizer(models.BPE())
    engine.pre_tokenizer = word_splitter(MAX_WORD_CHARACTERS)
    words = [_part(engine, "pre_tokenizer")]
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.append(_part(engine, "pre_tokenizer"))
    if saved.get("normalizer") is not None:
        return NEVER
    if saved.get("pre_tokenizer") in words:
        return BOUNDARY
    by_character = _part(_char_engine(""), "pre_tokenizer")
    return ANYWHERE if saved.get("pre_tokenizer") == by_character else NEVER


def _part(engine: tokenizers.Tokenizer, name: str) -> Any:
    return json.loads(engine.to_str())[name]


def _decoder_types(decoder: dict[str, Any] | None) -> set[str]:
    if decoder is None:
        return set()
    parts: Iterable[dict[str, Any]] = decoder.get("decoders", [])
    return {decoder["type"], *(part["type"] for part in parts)} - {"Sequence"}


def _token_bytes(saved: dict[str, Any], engine: tokenizers.Tokenizer) -> list[bytes]:
    """Return the bytes of each token id. Raises UserError for a decoder without such bytes."""
    types, kind = _decoder_types(saved.get("decoder")), saved["model"]["type"]
    if "ByteLevel" in types:
        decode = symbol_bytes
    elif kind == "WordLevel" and types == {"Fuse"}:
        decode = partial(str.encode, encoding="utf-8")
    elif "ByteFallback" in types:
        decode = _fallback_bytes
    else:
        names = ", ".join(sorted(types)) or "none"
        raise UserError(
            f"decoder={names}: its tokens are not bytes of the text; minigpt reads byte-level, "
            "byte-fallback and character tokenizers"
        )
    added = {token["id"]: token["content"].encode() for token in saved.get("added_tokens") or []}
    n = engine.get_vocab_size(with_added_tokens=True)
    by_id = {token: name for name, token in engine.get_vocab(with_added_tokens=True).items()}
    missing = "\N{REPLACEMENT CHARACTER}".encode()
    size = max(n, max(by_id, default=-1) + 1)
    return [
        added[i] if i in added else decode(by_id[i]) if i in by_id else missing for i in range(size)
    ]


def _fallback_bytes(name: str) -> bytes:
    """Return the bytes of a token of a SentencePiece vocabulary."""
    byte = re.fullmatch(r"<0x([0-9A-F]{2})>", name)
    return bytes.fromhex(byte[1]) if byte else name.replace("\u2581", " ").encode()
