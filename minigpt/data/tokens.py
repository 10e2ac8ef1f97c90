"""Token ids of a corpus, cached in files, and batches of windows of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from minigpt.console import interruptible
from minigpt.data.lazy import DocumentIds
from minigpt.errors import require
from minigpt.files import CONTENT, optional_cache, write_bytes
from minigpt.tokenizer import Tokenizer

TOKENS_AT_ONCE = 1 << 20  # read to count bytes, so that large corpora take constant memory
CACHE_FORMAT = 2  # format version: increase it when the meaning of a cached file changes


@dataclass(frozen=True)
class Batch:
    """Inputs (b, t) of a model and what it predicts at each, targets (b, t), int64.

    A split yields windows, with the next tokens as targets; an objective changes them.
    `document_ids` (b, t), int64: the document of each input. None: each row is one document.
    `weights` (b, t): of the losses, with mean 1 over the whole batch of a step; None: all 1.
    `lengths` (b,): the length of each prefix, see `Stack.hidden`. `source` (b, s): what the encoder
    reads.
    """

    inputs: Tensor
    targets: Tensor
    document_ids: Tensor | None
    weights: Tensor | None = None
    lengths: Tensor | None = None
    source: Tensor | None = None

    @property
    def tensors(self) -> tuple[Any, ...]:
        """The arguments of a loss: all fields up to the last one that is not None."""
        values = [getattr(self, field.name) for field in fields(self)]
        while values[-1] is None:
            values.pop()
        return tuple(values)


@dataclass(frozen=True)
class Split:
    """The tokens (n,) of one split, and the number of UTF-8 bytes of all but the first token.

    `document_ids` (n,): the document each token belongs to as an input. The last token of a
    document has the id of the next one, because its target is the first token of that document.
    None: the split is one document. Both are integer tensors, or `LazyTensor`s.
    """

    name: str
    tokens: Any
    target_bytes: int
    document_ids: Any = None

    @property
    def document_lengths(self) -> Tensor:
        """The number of tokens of each document, including its separator."""
        n = torch.tensor([len(self.tokens)])
        if self.document_ids is None:
            return n
        if isinstance(self.document_ids, DocumentIds):
            last = torch.from_numpy(self.document_ids.ends.copy())
        else:
            last = self.document_ids.cpu().diff(prepend=torch.tensor([0])).nonzero().flatten()
        return torch.cat((last + 1, n)).unique().diff(prepend=torch.tensor([0]))

    def to(self, device: str) -> Split:
        """Return the split on a device. Lazy tokens stay in files; batches are moved to it."""
        ids = None if self.document_ids is None else self.document_ids.to(device)
        return Split(self.name, self.tokens.to(device), self.target_bytes, ids)

    def head(self, n: int) -> Split:
        """Return the first n tokens, or all if there are fewer. `target_bytes` is scaled."""
        n = min(n, len(self.tokens))
        ids = None if self.document_ids is None else self.document_ids[:n]
        n_bytes = self.target_bytes * n // len(self.tokens)
        return Split(self.name, self.tokens[:n], n_bytes, ids)

    def count_bytes(self, tokenizer: Tokenizer) -> int:
        """Return the number of UTF-8 bytes of all but the first token."""
        counts = torch.zeros(tokenizer.n_vocab, dtype=torch.int64)
        for batch in self.windows(min(TOKENS_AT_ONCE, len(self.tokens) - 1), 1):
            counts += batch.targets.flatten().bincount(minlength=tokenizer.n_vocab).cpu()
        used = counts.nonzero().flatten().tolist()
        return sum(int(counts[token]) * len(tokenizer.token_bytes(token)) for token in used)

    def draw(self, batch_size: int, block_size: int, generator: torch.Generator) -> Batch:
        """Draw random windows (batch_size, block_size) on the device of the tokens."""
        return self.windows_at(self.random_starts(batch_size, block_size, generator), block_size)

    def random_starts(self, batch_size: int, block_size: int, generator: torch.Generator) -> Tensor:
        """Draw the first index (batch_size, 1) of each of some random windows."""
        last, device = len(self.tokens) - block_size, self.tokens.device
        return torch.randint(last, (batch_size, 1), generator=generator, device=device)

    def windows(self, block_size: int, batch_size: int) -> Iterator[Batch]:
        """Yield batches of consecutive windows; each token but the first is a target exactly once.

        The last target of a window is the first input of the next. The last window may be shorter
        than block_size; it is in its own batch.
        """
        for starts, length in self.window_places(block_size, batch_size):
            yield self.windows_at(starts, length)

    def window_places(self, block_size: int, batch_size: int) -> list[tuple[Tensor, int]]:
        """Return the batches of `windows` as arguments of `windows_at`."""
        n_whole, rest = divmod(len(self.tokens) - 1, block_size)
        starts = block_size * torch.arange(n_whole + 1, device=self.tokens.device)[:, None]
        whole = [(rows, block_size) for rows in starts[:-1].split(batch_size) if len(rows)]
        return [*whole, (starts[-1:], rest)] if rest else whole

    def windows_at(self, starts: Tensor, length: int) -> Batch:
        """Return the windows of `length` that begin at the indices `starts` (b, 1)."""
        indices = starts + torch.arange(length + 1, device=starts.device)
        tokens, ids = self.tokens[indices].long(), self.document_ids
        input_ids = None if ids is None else ids[indices[:, :-1]].long()
        return Batch(tokens[:, :-1], tokens[:, 1:], input_ids)


@dataclass(frozen=True)
class TokenData:
    """The tokens of each split. `test`: None without `data.test_fraction`."""

    train: Split
    val: Split
    test: Split | None = None

    @property
    def splits(self) -> list[Split]:
        """Return the splits that there are."""
        return [split for split in (self.train, self.val, self.test) if split is not None]

    def to(self, device: str) -> TokenData:
        """Return the same data on a device."""
        return TokenData(*(split.to(device) for split in self.splits))

    def train_slice(self, tokenizer: Tokenizer) -> Split:
        """Return the first tokens of the training split, as many as the validation split has.

        `train_loss` in result.json and eval.json is the loss of this slice.
        """
        head = self.train.head(len(self.val.tokens))
        return replace(head, target_bytes=head.count_bytes(tokenizer))

    def require_block(self, block_size: int) -> None:
        """Raise UserError unless each split has at least one window of block_size + 1 tokens."""
        for split in self.splits:
            n, needed = len(split.tokens), block_size + 1
            why = f"the {split.name} split has only {n} tokens, one window needs {needed}"
            remedy = "use more text or a smaller block"
            require(n >= needed, "model.block_size", block_size, f"{why}; {remedy}")


def split_documents(text: str, separator: str | None) -> list[str]:
    """Return the documents of a text with their separators, which the last one may lack."""
    if separator is None:
        return [text]
    *whole, rest = text.split(separator)
    return [document + separator for document in whole] + ([rest] if rest else [])


class Encoder(Protocol):
    """What encodes text, such as a tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text. Raises UserError at a character that has no token."""
        ...


def encode_documents(
    text: str, separator: str | None, tokenizer: Encoder
) -> tuple[Tensor, Tensor | None]:
    """Encode each document separately. Return `tokens` and `document_ids` as in `Split`."""
    texts = split_documents(text, separator)
    encoded = [torch.tensor(tokenizer.encode(document), dtype=torch.int32) for document in texts]
    tokens = torch.cat(encoded)
    if separator is None:
        return tokens, None
    is_end = torch.zeros_like(tokens)
    ends = torch.tensor([len(document) for document in encoded]).cumsum(0) - 1
    is_end[ends if texts[-1].endswith(separator) else ends[:-1]] = 1
    return tokens, is_end.cumsum(0, dtype=torch.int32)


def write_tokens(
    path: Path, splits: dict[str, str], separator: str | None, tokenizer: Tokenizer
) -> TokenData:
    """Encode the splits and write them to a safetensors file.

    Writing is atomic: processes that write the same file at the same time all succeed.
    """
    tensors: dict[str, Tensor] = {}
    n_bytes: dict[str, str] = {}
    for name, text in splits.items():
        encode = partial(encode_documents, text, separator, tokenizer)
        activity = f"encoding {len(text):,} characters of the {name} split"
        tensors[name], document_ids = interruptible(encode, activity)
        if document_ids is not None:
            tensors[f"{name}_documents"] = document_ids
        first = tokenizer.token_bytes(int(tensors[name][0]))
        n_bytes[name] = str(len(text.encode("utf-8")) - len(first))
    with optional_cache(path):
        write_bytes(path, save(tensors, metadata={**n_bytes, CONTENT: _digest(tensors, n_bytes)}))
    return _token_data(tensors, n_bytes)


def read_tokens(path: Path) -> TokenData | None:
    """Return the tokens that `write_tokens` wrote; None if the file is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            n_bytes = file.metadata() or {}
    except (FileNotFoundError, SafetensorError):
        return None
    if n_bytes.pop(CONTENT, None) != _digest(tensors, n_bytes):  # none in earlier versions
        return None
    return _token_data(tensors, n_bytes)


def _digest(tensors: dict[str, Tensor], n_bytes: dict[str, str]) -> str:
    """Return the digest of the content of a cached file, whatever the order of its parts."""
    digest = hashlib.sha256(json.dumps(n_bytes, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()


def _token_data(tensors: dict[str, Tensor], n_bytes: dict[str, str]) -> TokenData:
    def split(name: str) -> Split:
        ids = tensors.get(f"{name}_documents")
        return Split(name, tensors[name], int(n_bytes[name]), ids)

    return TokenData(*(split(name) for name in ("train", "val", "test") if name in tensors))
