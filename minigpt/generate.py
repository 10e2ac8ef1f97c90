"""Text from a model, token by token."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minigpt.errors import require
from minigpt.model import GPT
from minigpt.tokenizer import Tokenizer
from minigpt.train.device import Compute


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. `temperature` 0 takes the likeliest; None cuts nothing off."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        require(self.temperature >= 0, "--temperature", self.temperature, "must be 0 or more")
        top_k_ok = self.top_k is None or self.top_k >= 1
        require(top_k_ok, "--top-k", self.top_k, "must be 1 or more")
        top_p_ok = self.top_p is None or 0 < self.top_p <= 1
        require(top_p_ok, "--top-p", self.top_p, "must be above 0 and at most 1")

    def choose(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        """One token a row, (b, 1), from logits (b, n)."""
        if self.temperature == 0:
            return logits.argmax(dim=-1, keepdim=True)
        probabilities = self.probabilities(logits)
        return torch.multinomial(probabilities, 1, generator=generator)

    def probabilities(self, logits: Tensor) -> Tensor:
        """The distribution sampled from, (b, n): cut to the top k, then to the top p, renormalised.

        top_p keeps the fewest likeliest tokens whose sum reaches p (Holtzman et al. 2020).
        """
        logits = logits.float()
        # The likeliest at 0, so that no temperature overflows.
        logits = (logits - logits.amax(dim=-1, keepdim=True)) / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            values, kept = logits.topk(self.top_k)  # exactly k, also among equals
            logits = torch.full_like(logits, -torch.inf).scatter(-1, kept, values)
        probabilities = logits.softmax(dim=-1)
        if self.top_p is not None:
            ordered, order = probabilities.sort(dim=-1, descending=True)
            ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= self.top_p, 0.0)
            probabilities = torch.zeros_like(ordered).scatter(-1, order, ordered)
            probabilities = probabilities / probabilities.sum(-1, keepdim=True)
        return probabilities


def generate(
    model: GPT,
    prompt: list[int],
    n_tokens: int,
    sampling: Sampling,
    generator: torch.Generator,
    compute: Compute,
) -> Iterator[int]:
    """Yield `n_tokens` new tokens after a prompt of at least one token.

    The model sees the last block_size tokens, as in training. Leaves its train/eval mode as it was.
    On a CPU it computes in fp32: bf16 kernels are compiled anew for every length of a text.
    """
    if compute.device == "cpu":
        compute = replace(compute, precision="fp32")
    assert prompt, "a model continues at least one token"
    was_training = model.training
    tokens = torch.tensor([prompt], device=compute.device)
    for _ in range(n_tokens):
        model.eval()
        with torch.inference_mode(), compute.autocast():
            tokens = tokens[:, -model.config.block_size :]
            logits = model(tokens)[:, -1]
            token = sampling.choose(logits, generator)
            tokens = torch.cat((tokens, token), dim=1)
        model.train(was_training)
        yield int(token)


def stream_text(tokenizer: Tokenizer, tokens: Iterable[int]) -> Iterator[str]:
    """Text as its tokens come; a character spread over several tokens waits for its last byte."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in tokens:
        yield decoder.decode(tokenizer.token_bytes(token))
    yield decoder.decode(b"", final=True)
