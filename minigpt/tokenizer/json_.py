"""A tokenizer that a `tokenizers` JSON describes, the tokenizer.json of transformers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from minigpt.errors import UserError, first_line
from minigpt.tokenizer.base import (
    TOKENIZERS,
    Tokenizer,
    TokenizerConfig,
    character_error,
    chunks,
    require_utf8,
)
from minigpt.tokenizer.bpe import BOUNDARY, MAX_WORD_CHARACTERS, symbol_bytes, word_splitter

ANY_CHARACTER = r"[\s\S]"
NEVER, ANYWHERE = re.compile(r"(?!)"), re.compile(r"(?=[\s\S])")


def char_engine(characters: str) -> tokenizers.Tokenizer:
    """Return an engine with a token per character, and an error for any other character."""
    ids = {character: token for token, character in enumerate(characters)}
    engine = tokenizers.Tokenizer(models.WordLevel(ids))
    engine.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(ANY_CHARACTER), "isolated")
    engine.decoder = decoders.Fuse()  # without a decoder, spaces would join the characters
    return engine


@TOKENIZERS.register("json", TokenizerConfig, listed=False)
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
        why = "is read from a folder; give init=FOLDER, or choose another tokenizer"
        raise UserError(f"tokenizer.name={config.name}: {why}")

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
        equal = {} if self._fingerprint is None else {"equal_to": self._fingerprint}
        return {"json": self._saved, **equal}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> JsonTokenizer:
        return cls(saved["json"], saved.get("equal_to"))


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
    by_character = _part(char_engine(""), "pre_tokenizer")
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
