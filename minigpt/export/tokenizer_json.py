"""Tokenizers as a `tokenizers` JSON, the tokenizer.json of transformers."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from itertools import pairwise

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from minigpt.tokenizer import Tokenizer
from minigpt.tokenizer.bpe import (
    BYTE_SYMBOLS,
    GPT2_WORDS,
    MAX_WORD_CHARACTERS,
    BPETokenizer,
    word_splitter,
)
from minigpt.tokenizer.char import CharTokenizer
from minigpt.tokenizer.json_ import JsonTokenizer, char_engine
from minigpt.tokenizer.tiktoken_ import GPT2_PATTERN, TiktokenTokenizer

SYMBOL_OF_BYTE = {byte: symbol for symbol, byte in BYTE_SYMBOLS.items()}


def to_tokenizer_json(tokenizer: Tokenizer, advance: Callable[[], object] = lambda: None) -> str:
    """Return the content of a tokenizer.json that encodes and decodes as a tokenizer of a run.

    `advance`: called for each token whose merge is found.
    """
    saved = tokenizer.to_json()
    if isinstance(tokenizer, JsonTokenizer):
        return json.dumps(saved["json"])
    if isinstance(tokenizer, CharTokenizer):
        engine = char_engine(saved["characters"])
    elif isinstance(tokenizer, BPETokenizer):
        engine = _bpe_engine(saved["vocabulary"], saved["merges"])
    else:
        assert isinstance(tokenizer, TiktokenTokenizer), tokenizer
        engine = _ranked_engine(tokenizer, advance)
    return engine.to_str()


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
