"""One token per character, as in nanoGPT's character-level Shakespeare."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from minigpt.tokenizer.base import TOKENIZERS, Tokenizer, TokenizerConfig, character_error


@TOKENIZERS.register("char", TokenizerConfig)
class CharTokenizer(Tokenizer):
    """Token ids are the indices of the characters of the corpus, sorted by code point."""

    kind = "char"
    boundary = re.compile("")

    def __init__(self, characters: str) -> None:
        self._characters = characters
        self._ids = {character: token for token, character in enumerate(characters)}

    @classmethod
    def create(cls, config: Any, text: str, n_train: int, directory: Path) -> CharTokenizer:
        # The validation split may have characters that the training split lacks, so the whole text
        # defines the alphabet. This leaks no statistics.
        return cls("".join(sorted(set(text))))

    @property
    def n_vocab(self) -> int:
        return len(self._characters)

    def encode(self, text: str) -> list[int]:
        try:
            return list(map(self._ids.__getitem__, text))
        except KeyError as error:
            why = (
                f"not among the {self.n_vocab} characters of tokenizer=char; "
                "remove it, or train with tokenizer=gpt2 or tokenizer=bpe"
            )
            raise character_error(text, text.index(error.args[0]), why) from None

    def token_bytes(self, token: int) -> bytes:
        return self._characters[token].encode("utf-8")

    def to_json(self) -> dict[str, Any]:
        return {"characters": self._characters}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> CharTokenizer:
        return cls(saved["characters"])
