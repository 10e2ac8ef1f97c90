"""A corpus as token ids: prepared once, kept by content, drawn as random windows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minigpt.data.corpus import Corpus
from minigpt.errors import UserError
from minigpt.files import atomic_path, sha256
from minigpt.tokenizer import Tokenizer

FORMAT = 1  # raise it when the meaning of a cached file changes


@dataclass(frozen=True)
class Split:
    """One split's tokens (n,), int32, and the UTF-8 bytes of all but the first of them."""

    name: str
    tokens: Tensor
    target_bytes: int

    def to(self, device: str) -> Split:
        """The same split with its tokens on a device."""
        return Split(self.name, self.tokens.to(device), self.target_bytes)

    def head(self, n: int) -> Split:
        """The first n tokens, at most; the bytes in proportion."""
        n = min(n, len(self.tokens))
        return Split(self.name, self.tokens[:n], self.target_bytes * n // len(self.tokens))

    def draw(self, batch_size: int, block_size: int, generator: torch.Generator) -> Tensor:
        """Random windows (b, t + 1), int64, drawn where the tokens live: inputs and next tokens."""
        device = self.tokens.device
        last = len(self.tokens) - block_size
        start = torch.randint(last, (batch_size, 1), generator=generator, device=device)
        return self.tokens[start + torch.arange(block_size + 1, device=device)].long()

    def windows(self, block_size: int, batch_size: int) -> Iterator[Tensor]:
        """Every token after the first as a target exactly once: windows (b, t + 1), in order.

        Neighbours overlap by the one token that is the target of one and the input of the next.
        The last window may be shorter than block_size.
        """
        n_whole = (len(self.tokens) - 1) // block_size
        end = n_whole * block_size
        whole = self.tokens[: end + 1].unfold(0, block_size + 1, block_size) if n_whole else []
        for first in range(0, n_whole, batch_size):
            yield whole[first : first + batch_size].long()  # type: ignore[index]
        if end + 1 < len(self.tokens):
            yield self.tokens[None, end:].long()


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


def load_tokens(corpus: Corpus, tokenizer: Tokenizer, directory: Path) -> TokenData:
    """Tokens of both splits, from the cache in `directory` or made and kept there.

    The cache file's name is a digest of everything that decides its content. Writing is atomic,
    so processes that prepare the same tokens at once all end well.
    """
    identity = json.dumps([FORMAT, corpus.sha256, corpus.n_train, tokenizer.fingerprint])
    path = directory / "tokens" / f"{sha256(identity)}.safetensors"
    cached = _read(path)
    if cached is not None:
        return cached
    tokens = {
        name: torch.tensor(tokenizer.encode(text), dtype=torch.int32)
        for name, text in corpus.splits.items()
    }
    n_bytes = {
        name: len(text.encode("utf-8")) - len(tokenizer.token_bytes(int(tokens[name][0])))
        for name, text in corpus.splits.items()
    }
    with atomic_path(path) as temporary:
        save_file(tokens, temporary, metadata={name: str(n) for name, n in n_bytes.items()})
    return TokenData(*(Split(name, tokens[name], n_bytes[name]) for name in ("train", "val")))


def _read(path: Path) -> TokenData | None:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            return TokenData(
                *(
                    Split(name, file.get_tensor(name), int(metadata[name]))
                    for name in ("train", "val")
                )
            )
    except (FileNotFoundError, SafetensorError):  # absent or cut short: make it again
        return None
