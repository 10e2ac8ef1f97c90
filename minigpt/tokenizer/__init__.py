"""Tokenizers: text to token ids and back. One file per variant."""

from minigpt.tokenizer.base import TOKENIZERS, Tokenizer, TokenizerConfig, load_tokenizer

__all__ = ["TOKENIZERS", "Tokenizer", "TokenizerConfig", "load_tokenizer"]
