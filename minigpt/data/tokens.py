"""A corpus as token ids: prepared once, kept by content, drawn as random windows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minigpt.data.stored import Numbered
from minigpt.errors import UserError
from minigpt.files import atomic_path, sha256
from minigpt.tokenizer import Tokenizer

if TYPE_CHECKING:
    from minigpt.data.corpus import TextCorpus

FORMAT = 1  # raise it when the meaning of a cached file changes


@dataclass(frozen=True)
class Batch:
    """Windows: inputs and the tokens that follow them (b, t), int64, and the inputs' documents."""

    inputs: Tensor
    targets: Tensor
    documents: Tensor | None

    def chunk(self, n: int) -> Iterator[Batch]:
        """The same windows in n parts."""
        documents = [None] * n if self.documents is None else self.documents.chunk(n)
        return map(Batch, self.inputs.chunk(n), self.targets.chunk(n), documents)


@dataclass(frozen=True)
class Split:
    """One split's tokens (n,), and the UTF-8 bytes of all but the first of them.

    `documents` (n,): which document each token belongs to as an input. The last token of a
    document is the first input of the next, since what it predicts begins that one. None: all are
    of one. Both are tensors of integers, or `Stored`, which offers what is used of them here.
    """

    name: str
    tokens: Any
    target_bytes: int
    documents: Any = None

    @property
    def document_lengths(self) -> Tensor:
        """Tokens of each document, with its separator."""
        n = torch.tensor([len(self.tokens)])
        if self.documents is None:
            return n
        if isinstance(self.documents, Numbered):
            last = torch.from_numpy(self.documents.ends.copy())
        else:
            last = self.documents.cpu().diff(prepend=torch.tensor([0])).nonzero().flatten()
        return torch.cat((last + 1, n)).unique().diff(prepend=torch.tensor([0]))

    def to(self, device: str) -> Split:
        """The same split with its tokens, or the batches of stored ones, on a device."""
        documents = None if self.documents is None else self.documents.to(device)
        return Split(self.name, self.tokens.to(device), self.target_bytes, documents)

    def head(self, n: int) -> Split:
        """The first n tokens, at most; the bytes in proportion."""
        n = min(n, len(self.tokens))
        documents = None if self.documents is None else self.documents[:n]
        n_bytes = self.target_bytes * n // len(self.tokens)
        return Split(self.name, self.tokens[:n], n_bytes, documents)

    def draw(self, batch_size: int, block_size: int, generator: torch.Generator) -> Batch:
        """Random windows of block_size, drawn where the tokens live."""
        last = len(self.tokens) - block_size
        device = self.tokens.device
        first = torch.randint(last, (batch_size, 1), generator=generator, device=device)
        return self._batch(first, block_size)

    def windows(self, block_size: int, batch_size: int) -> Iterator[Batch]:
        """Every token after the first as a target exactly once, in order.

        Neighbours overlap by the one token that is the target of one and the input of the next.
        The last window may be shorter than block_size.
        """
        n_whole, rest = divmod(len(self.tokens) - 1, block_size)
        first = block_size * torch.arange(n_whole + 1, device=self.tokens.device)[:, None]
        for rows in first[:-1].split(batch_size):
            yield self._batch(rows, block_size)
        if rest:
            yield self._batch(first[-1:], rest)

    def _batch(self, first: Tensor, length: int) -> Batch:
        """The windows of a length that begin at the tokens `first` (b, 1)."""
        places = first + torch.arange(length + 1, device=first.device)
        tokens, documents = self.tokens[places].long(), self.documents
        of_inputs = None if documents is None else documents[places[:, :-1]].long()
        return Batch(tokens[:, :-1], tokens[:, 1:], of_inputs)


@dataclass(frozen=True)
class TokenData:
    """Both splits as tokens."""

    train: Split
    val: Split

    def to(self, device: str) -> TokenData:
        """The same data on a device."""
        return TokenData(self.train.to(device), self.val.to(device))

    def require_block(self, block_size: int) -> None:
        """Raise UserError unless each split holds at least one window of block_size + 1 tokens."""
        for split in (self.train, self.val):
            if len(split.tokens) <= block_size:
                raise UserError(
                    f"model.block_size={block_size}: the {split.name} split has only "
                    f"{len(split.tokens)} tokens, one window needs {block_size + 1}; "
                    f"give more text or a smaller block"
                )


def documents_of(text: str, separator: str | None) -> list[str]:
    """A text cut after each separator. The last document may lack it."""
    if separator is None:
        return [text]
    *whole, rest = text.split(separator)
    return [document + separator for document in whole] + ([rest] if rest else [])


def load_tokens(corpus: TextCorpus, tokenizer: Tokenizer, directory: Path) -> TokenData:
    """Tokens of both splits, from the cache in `directory` or made and kept there.

    The cache file's name is a digest of everything that decides its content. Writing is atomic,
    so processes that prepare the same tokens at once all end well.
    """
    decisive = (FORMAT, corpus.sha256, corpus.n_train, corpus.separator, tokenizer.fingerprint)
    identity = json.dumps(decisive)
    path = directory / "tokens" / f"{sha256(identity)}.safetensors"
    cached = _read(path)
    if cached is not None:
        return cached
    tensors: dict[str, Tensor] = {}
    n_bytes: dict[str, str] = {}
    for name, text in corpus.splits.items():
        tensors[name], documents = encode_documents(text, corpus.separator, tokenizer)
        if documents is not None:
            tensors[f"{name}_documents"] = documents
        first = tokenizer.token_bytes(int(tensors[name][0]))
        n_bytes[name] = str(len(text.encode("utf-8")) - len(first))
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=n_bytes)
    return _token_data(tensors, n_bytes)


def encode_documents(
    text: str, separator: str | None, tokenizer: Tokenizer
) -> tuple[Tensor, Tensor | None]:
    """A text's tokens and their documents, as in `Split`; each document is encoded by itself."""
    texts = documents_of(text, separator)
    parts = [torch.tensor(tokenizer.encode(part), dtype=torch.int32) for part in texts]
    tokens = torch.cat(parts)
    if separator is None:
        return tokens, None
    is_end = torch.zeros_like(tokens)
    ends = torch.tensor([len(part) for part in parts]).cumsum(0) - 1
    is_end[ends if texts[-1].endswith(separator) else ends[:-1]] = 1
    return tokens, is_end.cumsum(0, dtype=torch.int32)


def _token_data(tensors: dict[str, Tensor], n_bytes: dict[str, str]) -> TokenData:
    return TokenData(
        *(
            Split(name, tensors[name], int(n_bytes[name]), tensors.get(f"{name}_documents"))
            for name in ("train", "val")
        )
    )


def _read(path: Path) -> TokenData | None:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return _token_data(tensors, file.metadata())
    except (FileNotFoundError, SafetensorError):  # absent or cut short: make it again
        return None
