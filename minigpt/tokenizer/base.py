"""What every tokenizer offers."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from minigpt.errors import UserError
from minigpt.files import sha256, write_json
from minigpt.registry import Registry


@dataclass
class TokenizerConfig:
    """Options every tokenizer has."""

    name: str


class Tokenizer(ABC):
    """A lossless map between text and token ids: decode(encode(text)) == text.

    A tokenizer is data: `to_json` holds all it needs, so a run directory can decode its own
    tokens anywhere, and its hash names the tokens it made.
    """

    kind: ClassVar[str]
    cut: re.Pattern[str]  # matches where a text can be cut without changing its tokens

    @classmethod
    @abstractmethod
    def create(cls, config: Any, text: str, n_train: int, directory: Path) -> Tokenizer:
        """Make the tokenizer a config asks for.

        `text` is the whole corpus and its first `n_train` characters are the training split.
        Statistics are learned from the training split only. `directory` is the data directory,
        for files worth keeping between runs.
        """

    @property
    @abstractmethod
    def n_vocab(self) -> int:
        """Number of token ids: 0 to n_vocab - 1."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Token ids of a text. Raises UserError at a character that no token can hold."""

    @abstractmethod
    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes one token stands for (a part of a character is possible)."""

    def decode(self, tokens: list[int]) -> str:
        """The text of token ids; bytes that are no UTF-8 (a cut character) become U+FFFD."""
        return b"".join(map(self.token_bytes, tokens)).decode("utf-8", errors="replace")

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Everything needed to encode and decode, as JSON; `kind` is added by `save`."""

    @classmethod
    @abstractmethod
    def from_json(cls, saved: dict[str, Any]) -> Tokenizer:
        """The inverse of `to_json`."""

    @property
    def fingerprint(self) -> str:
        """sha256 of the saved form: equal for tokenizers that encode alike."""
        return _fingerprint(self._saved())

    def save(self, path: Path) -> None:
        """Write tokenizer.json."""
        write_json(path, {"fingerprint": self.fingerprint, **self._saved()})

    def _saved(self) -> dict[str, Any]:
        return {"kind": self.kind, **self.to_json()}


TOKENIZERS: Registry[Tokenizer] = Registry("tokenizer", "tokenizer", "minigpt.tokenizer")


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json. Raises UserError if it is missing, damaged or was edited."""
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        if saved.pop("fingerprint") != _fingerprint(saved):
            raise ValueError("its content does not match its fingerprint")
        kinds = {variant.kind: variant for variant in map(TOKENIZERS.variant, TOKENIZERS.names())}
        return kinds[saved.pop("kind")].from_json(saved)
    except FileNotFoundError:
        raise UserError(f"{path}: no tokenizer there; is this a whole run directory?") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); make it readable") from None
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: not a tokenizer minigpt wrote ({why}); restore it") from None


def refused(text: str, offset: int, why: str) -> UserError:
    """The error for the character at `offset`. `why` ends with what to do."""
    character = text[offset]
    return UserError(f"text={character!r} (U+{ord(character):04X}) at offset {offset}: {why}")


def require_utf8(text: str) -> None:
    """Raise UserError at a lone surrogate: UTF-8 has no bytes for it, nor has any byte token."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        why = "half a character, left by bytes that were no UTF-8; remove it"
        raise refused(text, error.start, why) from None


def _fingerprint(saved: dict[str, Any]) -> str:
    return sha256(json.dumps(saved, sort_keys=True))
