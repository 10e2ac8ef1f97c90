"""Tokenizers: text to token ids and back. One file a variant."""

from minigpt.tokenizer.base import TOKENIZERS, Tokenizer, TokenizerConfig, load_tokenizer

__all__ = ["TOKENIZERS", "Tokenizer", "TokenizerConfig", "load_tokenizer"]
