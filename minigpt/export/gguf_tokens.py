"""The tokenizer of a GGUF file: tokenizer.json in the words of llama.cpp, and back to bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import models, pre_tokenizers

from minigpt.errors import UserError
from minigpt.tokenizer.bpe import GPT2_WORDS, MAX_WORD_CHARACTERS, symbol_bytes, word_splitter
from minigpt.tokenizer.json_ import char_engine

# Byte-level pairs within words; and the longest token first, which is a character where all are.
PAIRS, LONGEST = "gpt2", "rwkv"
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # types of tokens
END = "<|endoftext|>"
NO_TEXT = "ÿ"  # the byte 0xFF, which UTF-8 never has
PREFIX = "tokenizer.ggml."
ESCAPE = re.compile(rb"\\x([0-9a-f]{2})")


def vocabulary(saved: Mapping[str, Any], n_vocab: int) -> dict[str, Any]:
    """Return the metadata for the content of a tokenizer.json with `n_vocab` token ids.

    Raises UserError for a tokenizer that llama.cpp does not have.
    """
    kind, words = saved["model"]["type"], _without_offsets(saved.get("pre_tokenizer"))
    if kind == "WordLevel" and words == _saved(char_engine("").pre_tokenizer):
        return _characters(saved["model"]["vocab"])
    if kind != "BPE":
        raise _refusal(f"model.type={kind}", "only byte-level pairs and characters leave")
    if saved.get("normalizer") is not None:
        raise _refusal("normalizer", "it must not change the text")
    if words not in _gpt2_words():
        raise _refusal("pre_tokenizer", "it must split the text into GPT-2's words")
    return _pairs(saved, n_vocab)


def _refusal(key: str, why: str) -> UserError:
    remedy = "train with tokenizer=char, bpe or gpt2"
    return UserError(f"tokenizer.json: {key}: llama.cpp has no such tokenizer ({why}); {remedy}")


def _characters(ids: Mapping[str, int]) -> dict[str, Any]:
    """Return the vocabulary of a token per character.

    Of the tokenizers of llama.cpp this one has no token that ends a text; others take token 11.
    """
    return {
        f"{PREFIX}model": LONGEST,
        f"{PREFIX}tokens": [_escaped(character) for character in sorted(ids, key=ids.__getitem__)],
        f"{PREFIX}token_type": [NORMAL] * len(ids),
    }


def _pairs(saved: Mapping[str, Any], n_vocab: int) -> dict[str, Any]:
    """Return the vocabulary of byte-pair encoding within GPT-2's words.

    llama.cpp needs a token that ends a text. Without `<|endoftext|>` it is that of a byte that no
    text has.
    """
    ids: dict[str, int] = saved["model"]["vocab"]
    added = {one["content"]: one for one in saved.get("added_tokens") or []}
    by_id = {token: name for name, token in ids.items()}
    by_id |= {one["id"]: name for name, one in added.items()}
    kinds = {one["id"]: CONTROL if one["special"] else USER_DEFINED for one in added.values()}
    end = added[END]["id"] if END in added else ids.get(NO_TEXT)
    if end is None:
        raise _refusal("model.vocab", f"it needs {END}, or all bytes, as a token that ends a text")
    merges = [one if isinstance(one, str) else " ".join(one) for one in saved["model"]["merges"]]
    tokens = range(n_vocab)
    return {
        f"{PREFIX}model": PAIRS,
        f"{PREFIX}pre": "gpt-2",
        f"{PREFIX}tokens": [by_id.get(token, f"[UNUSED{token}]") for token in tokens],
        f"{PREFIX}token_type": [
            kinds.get(token, NORMAL if token in by_id else UNUSED) for token in tokens
        ],
        # an empty list would be left out, and llama.cpp needs one
        f"{PREFIX}merges": merges or [f"{NO_TEXT} {NO_TEXT}"],
        f"{PREFIX}bos_token_id": end,
        f"{PREFIX}eos_token_id": end,
        f"{PREFIX}add_bos_token": False,
    }


def token_bytes(model: str, tokens: list[str], types: list[int]) -> list[bytes]:
    """Return the bytes of each token of the metadata: the inverse of `vocabulary`."""
    replacement = "\N{REPLACEMENT CHARACTER}".encode()

    def as_bytes(token: str, kind: int) -> bytes:
        if model == LONGEST:
            return ESCAPE.sub(lambda found: bytes.fromhex(found[1].decode()), token.encode())
        if kind == NORMAL:
            return symbol_bytes(token)
        return replacement if kind == UNUSED else token.encode()

    return [as_bytes(token, kind) for token, kind in zip(tokens, types, strict=True)]


def _escaped(character: str) -> str:
    """Return a character as the tokenizer LONGEST reads it: some are written as their bytes."""
    if character.isprintable() and character != "\\":
        return character
    return "".join(f"\\x{byte:02x}" for byte in character.encode())


def _gpt2_words() -> list[Any]:
    """Return the pre-tokenizers that split a text into GPT-2's words.

    Ours cuts words after MAX_WORD_CHARACTERS, llama.cpp does not.
    """
    words = tokenizers.Regex(GPT2_WORDS)
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Sequence([pre_tokenizers.Split(words, "isolated"), as_bytes])
    library = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return [_saved(one) for one in (word_splitter(MAX_WORD_CHARACTERS), split, library)]


def _saved(pre_tokenizer: Any) -> Any:
    engine = tokenizers.Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizer
    return _without_offsets(json.loads(engine.to_str())["pre_tokenizer"])


def _without_offsets(part: Any) -> Any:
    """Return a part of a tokenizer.json without what changes offsets alone."""
    if isinstance(part, list):
        return [_without_offsets(one) for one in part]
    if not isinstance(part, dict):
        return part
    default = {"use_regex": True} if part.get("type") == "ByteLevel" else {}
    kept = {key: _without_offsets(value) for key, value in part.items() if key != "trim_offsets"}
    return {**default, **kept}
