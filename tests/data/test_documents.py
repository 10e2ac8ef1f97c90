"""Documents: split after each separator, encoded separately, packed into windows."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minigpt.config.compose import composed_config
from minigpt.data.corpus import DataConfig, TextCorpus
from minigpt.data.prepare import prepare
from minigpt.data.tokens import Split, encode_documents, split_documents
from minigpt.tokenizer import TOKENIZERS, Tokenizer

TEXT = "".join(
    f"ROLE {i}:\nTo be — {i * i} — or not?{' Ay.' * (i % 4)}\n{' ' * (i % 3)}\n" for i in range(90)
)
SEPARATORS = ["\n\n", "\n", " ", "—", "?", "Ay. Ay", ":\nTo be"]


@cache
def make_tokenizer(name: str, directory: Path, text: str = TEXT) -> Tokenizer:
    """Return the tokenizer that a run on this text would have."""
    config = composed_config([f"tokenizer={name}", *["tokenizer.vocab_size=300"] * (name == "bpe")])
    return TOKENIZERS.variant(name).create(config.tokenizer, text, len(text), directory)


def plain_documents(text: str, separator: str) -> list[str]:
    """Split a text after each separator, one character at a time."""
    documents, document = [], ""
    for character in text:
        document += character
        if document.endswith(separator):
            documents.append(document)
            document = ""
    return documents + ([document] if document else [])


def plain_inputs(documents: list[list[int]], ends: bool) -> list[tuple[int, int]]:
    """Return (token, document id) of each input; the last token of a document has the next id.

    `ends`: whether the last document ends with its separator.
    """
    inputs = []
    for number, tokens in enumerate(documents):
        for place, token in enumerate(tokens):
            is_last = place == len(tokens) - 1 and (ends or number < len(documents) - 1)
            inputs.append((token, number + 1 if is_last else number))
    return inputs


@given(st.text("ab\n", min_size=1), st.text("ab\n", min_size=1, max_size=3))
def test_documents_end_with_the_separator(text: str, separator: str) -> None:
    documents = split_documents(text, separator)
    assert documents == plain_documents(text, separator)
    assert "".join(documents) == text
    assert split_documents(text, None) == [text]


@pytest.mark.parametrize("separator", SEPARATORS)
@pytest.mark.parametrize("name", ["char", "gpt2", "bpe"])
def test_documents_of_a_split_are_encoded_separately(
    workdir: Path, name: str, separator: str
) -> None:
    tokenizer = make_tokenizer(name, workdir)
    corpus = TextCorpus(TEXT, len(TEXT) // 2 + 7, separator)
    tokens = corpus.tokens(tokenizer, workdir)
    for split in (tokens.train, tokens.val):
        text = corpus.splits[split.name]
        texts = plain_documents(text, separator)
        encoded = [tokenizer.encode(document) for document in texts]
        assert split.document_ids is not None and split.document_ids.dtype == torch.int32
        pairs = [*zip(split.tokens.tolist(), split.document_ids.tolist(), strict=True)]
        assert pairs == plain_inputs(encoded, text.endswith(separator))
        assert split.document_lengths.tolist() == [len(tokens) for tokens in encoded]
        n_bytes = len(text.encode()) - len(tokenizer.token_bytes(encoded[0][0]))
        assert split.target_bytes == split.count_bytes(tokenizer) == n_bytes
        assert tokenizer.decode(split.tokens.tolist()) == text


@given(
    text=st.text("ab\n", min_size=3, max_size=60).filter(lambda text: "\n" in text),
    block_size=st.integers(1, 9),
    batch_size=st.integers(1, 4),
)
def test_windows_hold_each_target_once(text: str, block_size: int, batch_size: int) -> None:
    tokenizer = make_tokenizer("char", Path("unused"), "ab\n")
    tokens, documents = encode_documents(text, "\n", tokenizer)
    split = Split("val", tokens, len(tokens) - 1, documents)
    inputs, targets = [], []
    for batch in split.windows(block_size, batch_size):
        assert batch.document_ids is not None and batch.document_ids.dtype == torch.int64
        pairs = zip(batch.inputs.flatten(), batch.document_ids.flatten(), strict=True)
        inputs += [(int(token), int(document)) for token, document in pairs]
        targets += batch.targets.flatten().tolist()
    assert targets == tokenizer.encode(text)[1:]
    encoded = [tokenizer.encode(document) for document in plain_documents(text, "\n")]
    assert inputs == plain_inputs(encoded, text.endswith("\n"))[:-1]


def test_draws_are_slices(workdir: Path) -> None:
    tokens, documents = encode_documents(TEXT, "\n", make_tokenizer("gpt2", workdir))
    assert documents is not None
    split = Split("train", tokens, 0, documents)
    numbered = Split("train", torch.arange(len(tokens)), 0)
    batch, places = (s.draw(6, 9, torch.Generator().manual_seed(0)) for s in (split, numbered))
    assert torch.equal(batch.inputs, tokens[places.inputs].long())
    assert torch.equal(batch.targets, tokens[places.inputs + 1].long())
    assert batch.document_ids is not None
    assert torch.equal(batch.document_ids, documents[places.inputs].long())


def test_the_head_of_documents(workdir: Path) -> None:
    tokens, documents = encode_documents("ab\na\nb", "\n", make_tokenizer("char", workdir, "ab\n"))
    head = Split("train", tokens, 5, documents).head(4)
    assert head.document_ids is not None and head.document_ids.tolist() == [0, 0, 1, 1]
    assert head.document_lengths.tolist() == [3, 1]


def test_tokens_are_cached_by_separator(workdir: Path) -> None:
    tokenizer = make_tokenizer("gpt2", workdir)
    folder = workdir / "tokens"
    for n_files, separator in enumerate([None, "\n", "\n\n"], 1):
        corpus = TextCorpus(TEXT, 500, separator)
        first, again = (corpus.tokens(tokenizer, workdir) for _ in range(2))
        assert len([*folder.iterdir()]) == n_files
        for split, other in ((first.train, again.train), (first.val, again.val)):
            assert torch.equal(split.tokens, other.tokens)
            assert split.target_bytes == other.target_bytes
            if split.document_ids is None or other.document_ids is None:
                assert separator is None and split.document_ids is other.document_ids
            else:
                assert torch.equal(split.document_ids, other.document_ids)


@pytest.mark.parametrize(
    ("written", "separator"),
    [
        (r"\n\n", "\n\n"),
        ("\n\n", "\n\n"),
        (r"a\tb\r\n", "a\tb\r\n"),
        (r"\\n", r"\n"),
        (r"\\\n", "\\\n"),
        ("<|é|>", "<|é|>"),
        (None, None),
    ],
)
def test_escapes(written: str | None, separator: str | None) -> None:
    assert DataConfig("x", "d", 0.9, document_separator=written).separator == separator


def test_prepare_passes_the_separator_on(workdir: Path) -> None:
    options = ["data=text", "data.path=text.txt", r"data.document_separator=\n"]
    config = composed_config(options)
    prepared = prepare(config.data, config.tokenizer)
    assert isinstance(prepared.corpus, TextCorpus) and prepared.corpus.separator == "\n"
    lengths = [len(line) for line in prepared.corpus.splits["val"].splitlines(keepends=True)]
    assert prepared.tokens.val.document_lengths.tolist() == lengths
