"""Byte-level byte-pair encoding learned from the corpus (Sennrich et al. 2016), as in GPT-2."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from minigpt.console import interruptible
from minigpt.errors import UserError, require
from minigpt.files import optional_cache, sha256
from minigpt.tokenizer.base import (
    TOKENIZERS,
    Tokenizer,
    TokenizerConfig,
    chunks,
    load_tokenizer,
    require_utf8,
)

# Threads hardly help with one text, and the library then warns at every fork.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# No match of GPT-2's pattern contains a space or newline that follows a non-space, so splitting a
# text there does not change its tokens. Python's \s covers all of Unicode's white space.
BOUNDARY = re.compile(r"(?<=\S)(?=[ \n])")

# The time to learn from a word grows with the square of its length, so that a line of DNA, or a
# million spaces, would take days. Words are cut after this many characters.
MAX_WORD_CHARACTERS = 1000
MAX_LEARNED_CHARACTERS = 1 << 25  # of the training split, from its beginning
# GPT-2's pattern of words, which is also that of pre_tokenizers.ByteLevel.
GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# The byte of each character of GPT-2's byte alphabet: visible Latin-1 characters represent their
# own byte; all other bytes are represented by U+0100 and following.
_VISIBLE = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
_HIDDEN = [byte for byte in range(256) if byte not in _VISIBLE]
BYTE_SYMBOLS = {chr(byte): byte for byte in _VISIBLE}
BYTE_SYMBOLS |= {chr(256 + n): byte for n, byte in enumerate(_HIDDEN)}


def symbol_bytes(symbol: str) -> bytes:
    """Return the bytes of a token that is written in GPT-2's byte alphabet."""
    return bytes(map(BYTE_SYMBOLS.__getitem__, symbol))


@dataclass
class BPEConfig(TokenizerConfig):
    """`vocab_size` includes the 256 bytes. A corpus with too few pairs gives fewer tokens."""

    vocab_size: int

    def __post_init__(self) -> None:
        why = "each of the 256 bytes is a token; use 256 or more"
        require(self.vocab_size >= 256, "tokenizer.vocab_size", self.vocab_size, why)


@TOKENIZERS.register("bpe", BPEConfig)
class BPETokenizer(Tokenizer):
    """Byte-pair encoding within the words of GPT-2's pattern, of MAX_WORD_CHARACTERS at most.

    `vocabulary`: the tokens by id. `merges`: the pairs "left right" in the order learned. Both use
    GPT-2's byte alphabet.
    """

    kind = "bpe"
    boundary = BOUNDARY

    def __init__(self, vocabulary: list[str], merges: list[str]) -> None:
        self._vocabulary, self._merges = vocabulary, merges
        self._bytes = list(map(symbol_bytes, vocabulary))
        ids = {symbol: token for token, symbol in enumerate(vocabulary)}
        pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
        self._engine = _engine(models.BPE(vocab=ids, merges=pairs))

    @classmethod
    def create(cls, config: BPEConfig, text: str, n_train: int, directory: Path) -> Tokenizer:
        train_text = text[: min(n_train, MAX_LEARNED_CHARACTERS)]
        key = sha256(
            f"{tokenizers.__version__} {MAX_WORD_CHARACTERS} {config.vocab_size} {train_text}"
        )
        path = directory / "tokenizers" / f"bpe-{config.vocab_size}-{key[:16]}.json"
        try:
            return load_tokenizer(path)
        except UserError:
            tokenizer = cls.train(train_text, config.vocab_size)
            with optional_cache(path):
                tokenizer.save(path)
            return tokenizer

    @classmethod
    def train(cls, text: str, vocab_size: int) -> BPETokenizer:
        """Learn merges until there are `vocab_size` tokens or every word is one token."""
        engine = _engine(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=[],
            show_progress=False,
        )
        learning = f"learning {vocab_size:,} tokens of tokenizer=bpe from {len(text):,} characters"
        learn = partial(engine.train_from_iterator, chunks(text, BOUNDARY), trainer)
        interruptible(learn, learning)
        learned = json.loads(engine.to_str())["model"]
        vocabulary = sorted(learned["vocab"], key=learned["vocab"].__getitem__)
        return cls(vocabulary, [" ".join(pair) for pair in learned["merges"]])

    @property
    def n_vocab(self) -> int:
        return len(self._vocabulary)

    def encode(self, text: str) -> list[int]:
        require_utf8(text)
        # encode_batch_fast skips offsets, which cost as much as the encoding.
        encodings = (self._engine.encode_batch_fast([chunk])[0] for chunk in chunks(text, BOUNDARY))
        return [token for encoding in encodings for token in encoding.ids]

    def token_bytes(self, token: int) -> bytes:
        return self._bytes[token]

    def to_json(self) -> dict[str, Any]:
        return {"vocabulary": self._vocabulary, "merges": self._merges}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> BPETokenizer:
        return cls(saved["vocabulary"], saved["merges"])


def word_splitter(max_characters: int) -> pre_tokenizers.PreTokenizer:
    """Return the library's splitter into GPT-2's words, cut after `max_characters`."""
    words = tokenizers.Regex(GPT2_WORDS.replace("+", f"{{1,{max_characters}}}"))
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(words, "isolated"), as_bytes])


def _engine(model: models.BPE) -> tokenizers.Tokenizer:
    engine = tokenizers.Tokenizer(model)
    engine.pre_tokenizer = word_splitter(MAX_WORD_CHARACTERS)
    return engine
