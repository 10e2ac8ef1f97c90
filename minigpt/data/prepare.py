"""Read a corpus and encode it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from minigpt.data.corpus import CORPORA, Corpus, DataConfig
from minigpt.data.tokens import TokenData
from minigpt.errors import UserError
from minigpt.tokenizer import Tokenizer, TokenizerConfig, load_tokenizer


@dataclass(frozen=True)
class Prepared:
    """A corpus, its tokenizer and its encoded splits."""

    corpus: Corpus
    tokenizer: Tokenizer
    tokens: TokenData


def prepare(
    data: DataConfig,
    tokenizer: TokenizerConfig,
    saved: Path | Tokenizer | None = None,
    expected_sha256: str | None = None,
) -> Prepared:
    """Read the text, build or load the tokenizer, and return the encoded splits.

    To continue or evaluate a trained run, pass the tokenizer it `saved`, or its file, and the
    sha256 of its text.
    Raises UserError if the text is missing, too short or not UTF-8, or has another sha256.
    """
    directory = data.directory
    corpus = CORPORA.build(data).corpus()
    if expected_sha256 is not None and corpus.sha256 != expected_sha256:
        raise UserError(
            f"data={data.name}: the text has changed since this run was trained (sha256 "
            f"{corpus.sha256[:12]}, was {expected_sha256[:12]}); restore it, or start a new run"
        )
    if saved is None:
        encoder = corpus.tokenizer(tokenizer, directory)
    else:
        encoder = load_tokenizer(saved) if isinstance(saved, Path) else saved
    return Prepared(corpus, encoder, corpus.tokens(encoder, directory))
