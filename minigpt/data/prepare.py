"""From options to tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from minigpt.data.corpus import CORPORA, Corpus, DataConfig
from minigpt.data.tokens import TokenData, load_tokens
from minigpt.errors import UserError
from minigpt.run import RunDirectory
from minigpt.tokenizer import TOKENIZERS, Tokenizer, TokenizerConfig


@dataclass(frozen=True)
class Prepared:
    """A corpus, its tokenizer and its tokens."""

    corpus: Corpus
    tokenizer: Tokenizer
    tokens: TokenData


def prepare(
    data: DataConfig, tokenizer: TokenizerConfig, saved_tokenizer: Tokenizer | None = None
) -> Prepared:
    """Read the corpus, make (or take the saved) tokenizer and load or make the tokens.

    Raises UserError where the text cannot be had, is not UTF-8 or is too short.
    """
    directory = Path(data.dir).expanduser()
    corpus = CORPORA.build(data).corpus()
    made = saved_tokenizer or TOKENIZERS.variant(tokenizer.name).create(
        tokenizer, corpus.text, corpus.n_train, directory
    )
    return Prepared(corpus, made, load_tokens(corpus, made, directory))


def require_same_text(run: RunDirectory, prepared: Prepared) -> None:
    """Raise UserError unless the text is the one that a run was trained on."""
    now, then = prepared.corpus.sha256, str(run.read_json(run.manifest).get("data_sha256"))
    if now != then:
        raise UserError(
            f"{run.path}: the text has changed since this run began (sha256 {now[:12]}, "
            f"was {then[:12]}); restore it, or start a new run"
        )
