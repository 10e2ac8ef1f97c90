"""From options to tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from minigpt.data.corpus import CORPORA, Corpus, DataConfig
from minigpt.data.tokens import TokenData
from minigpt.errors import UserError
from minigpt.run.directory import RunDirectory
from minigpt.tokenizer import Tokenizer, TokenizerConfig, load_tokenizer


@dataclass(frozen=True)
class Prepared:
    """A corpus, its tokenizer and its tokens."""

    corpus: Corpus
    tokenizer: Tokenizer
    tokens: TokenData


def prepare(
    data: DataConfig, tokenizer: TokenizerConfig, of_run: RunDirectory | None = None
) -> Prepared:
    """Read the corpus, make the tokenizer, and load or make the tokens.

    With `of_run` the tokenizer is the one that run saved, and the text must be what it was trained
    on. Raises UserError where that is not so, or the text cannot be had, is not UTF-8 or too short.
    """
    directory = Path(data.dir).expanduser()
    corpus = CORPORA.build(data).corpus()
    if of_run is None:
        made = corpus.tokenizer(tokenizer, directory)
    else:
        _require_same_text(of_run, corpus)
        made = load_tokenizer(of_run.tokenizer)
    return Prepared(corpus, made, corpus.tokens(made, directory))


def _require_same_text(run: RunDirectory, corpus: Corpus) -> None:
    now, then = corpus.sha256, str(run.read_json(run.manifest).get("data_sha256"))
    if now != then:
        raise UserError(
            f"{run.path}: the text has changed since this run began (sha256 {now[:12]}, "
            f"was {then[:12]}); restore it, or start a new run"
        )
