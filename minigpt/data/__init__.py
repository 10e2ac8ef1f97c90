"""Text, its split, and batches of its tokens."""

from minigpt.data.corpus import CORPORA, Corpus, DataConfig, TextCorpus
from minigpt.data.tokens import Batch, Split, TokenData, load_tokens

__all__ = [
    "CORPORA",
    "Batch",
    "Corpus",
    "DataConfig",
    "Split",
    "TextCorpus",
    "TokenData",
    "load_tokens",
]
