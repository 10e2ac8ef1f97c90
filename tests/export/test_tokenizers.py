"""Tokenizers as a `tokenizers` JSON: equal ids, exact decoding, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Engine
from tokenizers import models

from minigpt.errors import UserError
from minigpt.export.check import import_transformers
from minigpt.export.tokenizer_json import merges_of_ranks, to_tokenizer_json
from minigpt.tokenizer import TOKENIZERS, Tokenizer
from minigpt.tokenizer.bpe import BPETokenizer
from minigpt.tokenizer.json_ import JsonTokenizer, read_tokenizer_json
from minigpt.tokenizer.tiktoken_ import TiktokenTokenizer

TEXT = (
    "To be, or  not to be:\n\n\n   that is\tthe 'question'.  \r\n"
    "don't we'LL  you 're 12345 naïve café, e\u0301 日本語 \x00\x7f\xa0\u2028 \U0001d518\n\n"
    + "a" * 300
    + " " * 300
    + "\n" * 30
    + " x "
)
# The pattern of tiktoken's cl100k_base, with possessive quantifiers and an end of text.
LATER_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)


def tokenizer_of(name: str, folder: Path) -> Tokenizer:
    """Return a tokenizer of TEXT."""
    if name == "later":
        return later_tokenizer()
    options: dict[str, Any] = {"bpe": {"vocab_size": 300}}.get(name, {})
    config = TOKENIZERS.options(name)(name=name, **options)
    return TOKENIZERS.variant(name).create(config, TEXT, len(TEXT), folder)


def later_tokenizer() -> TiktokenTokenizer:
    """Return an encoding like tiktoken's later ones, with few tokens and a special one."""
    words = [" th", "th", " t", "he", "es", "est", "\n\n", "  ", "    ", "que", "qu", "12", "123"]
    parts = sorted({word.encode() for word in words}, key=len)
    ranks = {bytes([byte]): byte for byte in range(256)}
    for part in parts:
        ranks[part] = len(ranks)
    return TiktokenTokenizer("later", LATER_PATTERN, ranks, {"<|end|>": len(ranks)})


@pytest.mark.parametrize("name", ["char", "bpe", "gpt2", "later"])
def test_transformers_and_minigpt_read_the_same_tokens(tmp_path: Path, name: str) -> None:
    tokenizer = tokenizer_of(name, tmp_path)
    (tmp_path / "tokenizer.json").write_text(to_tokenizer_json(tokenizer), encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = import_transformers().AutoTokenizer.from_pretrained(tmp_path)
    read = read_tokenizer_json(tmp_path / "tokenizer.json")
    ours = tokenizer.encode(TEXT)
    assert theirs(TEXT)["input_ids"] == read.encode(TEXT) == ours
    assert theirs.decode(ours) == read.decode(ours) == TEXT
    assert read.n_vocab == tokenizer.n_vocab
    tokens = range(tokenizer.n_vocab)
    assert [read.token_bytes(t) for t in tokens] == [tokenizer.token_bytes(t) for t in tokens]
    assert JsonTokenizer.from_json(read.to_json()).encode(TEXT) == ours
    assert to_tokenizer_json(read) == json.dumps(read.to_json()["json"])


def test_a_character_without_a_token_is_named(tmp_path: Path) -> None:
    read = JsonTokenizer(json.loads(to_tokenizer_json(tokenizer_of("char", tmp_path))))
    assert read.can_encode("\n") and not read.can_encode("Z")
    with pytest.raises(UserError, match=r"text='Z' \(U\+005A\) at offset 3: .*; remove it"):
        read.encode("be Zo")


def test_merges_of_ranks_are_those_learned() -> None:
    learned = BPETokenizer.train(TEXT, 320).to_json()
    ranks = {token: rank for rank, token in enumerate(BPETokenizer(**learned)._bytes)}
    assert len(merges_of_ranks(ranks)) == len(learned["merges"])


def test_a_tokenizer_without_bytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(Engine(models.WordLevel({"a": 0})).to_str())
    with pytest.raises(UserError, match=r"decoder=none: its tokens are not bytes of the text"):
        read_tokenizer_json(path)
    path.write_text("{")
    with pytest.raises(UserError, match=r"not a tokenizers JSON"):
        read_tokenizer_json(path)
