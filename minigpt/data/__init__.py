"""Text, its split, and batches of its tokens."""

from minigpt.data.corpus import CORPORA, Corpus, DataConfig
from minigpt.data.tokens import Batch, Split, TokenData, load_tokens

__all__ = ["CORPORA", "Batch", "Corpus", "DataConfig", "Split", "TokenData", "load_tokens"]
