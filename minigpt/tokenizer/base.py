"""The interface of tokenizers, and loading a tokenizer from tokenizer.json."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from minigpt.errors import UserError
from minigpt.files import sha256, write_json
from minigpt.registry import Registry

# Encoded at once, at least: `tokenizers` needs about 200 bytes per character, and while a library
# encodes in the main thread, no signal is handled.
CHUNK_CHARACTERS = 1 << 20


@dataclass
class TokenizerConfig:
    """Options of every tokenizer."""

    name: str


class Tokenizer(ABC):
    """A lossless map between text and token ids: decode(encode(text)) == text.

    `to_json` contains the whole tokenizer, so that a run directory can be used on any machine.
    """

    kind: ClassVar[str]
    boundary: re.Pattern[str]  # matches where text can be split without changing its tokens

    @classmethod
    @abstractmethod
    def create(cls, config: Any, text: str, n_train: int, directory: Path) -> Tokenizer:
        """Return the tokenizer of a config.

        `text` is the whole corpus; its first `n_train` characters are the training split.
        Statistics are learned from the training split only. `directory` is the data directory,
        where tokenizers that are slow to train are cached.
        """

    @property
    @abstractmethod
    def n_vocab(self) -> int:
        """Number of token ids: 0 to n_vocab - 1."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text. Raises UserError at a character that has no token."""

    def can_encode(self, text: str) -> bool:
        """Return whether every character of a text has tokens."""
        try:
            self.encode(text)
        except UserError:
            return False
        return True

    @abstractmethod
    def token_bytes(self, token: int) -> bytes:
        """Return the UTF-8 bytes of one token, which may be part of a character."""

    def decode(self, tokens: list[int]) -> str:
        """Decode token ids. Invalid UTF-8, such as an incomplete character, becomes U+FFFD."""
        return b"".join(map(self.token_bytes, tokens)).decode("utf-8", errors="replace")

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Return the tokenizer as JSON. `save` adds `kind`."""

    @classmethod
    @abstractmethod
    def from_json(cls, saved: dict[str, Any]) -> Tokenizer:
        """Return the tokenizer that `to_json` describes."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the saved form. Equal fingerprints mean equal tokens."""
        return _fingerprint({"kind": self.kind, **self.to_json()})

    def save(self, path: Path) -> None:
        """Write tokenizer.json."""
        saved = {"kind": self.kind, **self.to_json()}
        write_json(path, {"fingerprint": _fingerprint(saved), **saved})


TOKENIZERS: Registry[Tokenizer] = Registry("tokenizer", "tokenizer", "minigpt.tokenizer")


def chunks(text: str, boundary: re.Pattern[str]) -> Iterator[str]:
    """Yield parts of CHUNK_CHARACTERS or more, split where `boundary` matches."""
    start = 0
    while match := boundary.search(text, start + CHUNK_CHARACTERS):
        yield text[start : match.start()]
        start = match.start()
    yield text[start:]


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a tokenizer.json. Raises UserError if it is missing, damaged or edited."""
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        if saved.pop("fingerprint") != _fingerprint(saved):
            raise ValueError("its content does not match its fingerprint")
        kinds = {variant.kind: variant for variant in TOKENIZERS.variants()}
        return kinds[saved.pop("kind")].from_json(saved)
    except FileNotFoundError:
        raise UserError(f"{path}: file not found; is this a complete run directory?") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); make it readable") from None
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: not written by minigpt, or damaged ({why}); restore it") from None


def character_error(text: str, offset: int, why: str) -> UserError:
    """Return the error for the character at `offset`. `why` ends with what to do."""
    character = text[offset]
    return UserError(f"text={character!r} (U+{ord(character):04X}) at offset {offset}: {why}")


def require_utf8(text: str) -> None:
    """Raise UserError at a lone surrogate, which UTF-8 cannot encode."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        why = "a lone surrogate, left by decoding invalid UTF-8; remove it"
        raise character_error(text, error.start, why) from None


def _fingerprint(saved: dict[str, Any]) -> str:
    return sha256(json.dumps(saved, sort_keys=True))
