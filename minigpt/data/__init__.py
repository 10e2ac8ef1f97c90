"""Corpora, their training and validation splits, and batches of tokens."""

from minigpt.data.corpus import CORPORA, Corpus, DataConfig, TextCorpus
from minigpt.data.tokens import Batch, Split, TokenData

__all__ = ["CORPORA", "Batch", "Corpus", "DataConfig", "Split", "TextCorpus", "TokenData"]
