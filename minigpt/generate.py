"""Text from a model, token by token."""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minigpt.errors import require
from minigpt.model import GPT
from minigpt.model.cache import KVCache
from minigpt.tokenizer import Tokenizer
from minigpt.train.device import Compute

ROOM = 64  # slots of a cache beyond twice its texts, so that it seldom grows


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. `temperature` 0 takes the likeliest; None cuts nothing off."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        require(self.temperature >= 0, "--temperature", self.temperature, "must be 0 or more")
        top_k_ok = self.top_k is None or self.top_k >= 1
        require(top_k_ok, "--top-k", self.top_k, "must be 1 or more")
        top_p_ok = self.top_p is None or 0 < self.top_p <= 1
        require(top_p_ok, "--top-p", self.top_p, "must be above 0 and at most 1")
        min_p_ok = self.min_p is None or 0 < self.min_p <= 1
        require(min_p_ok, "--min-p", self.min_p, "must be above 0 and at most 1")
        penalty, why = self.repetition_penalty, "must be above 0; 1 is none"
        require(0 < penalty < math.inf, "--repetition-penalty", penalty, why)

    def choose(
        self, logits: Tensor, generator: torch.Generator, text: list[int] | None = None
    ) -> Tensor:
        """One token a row, (b, 1), from logits (b, n). `text`: what the penalty counts as said."""
        if self.repetition_penalty != 1 and text:
            logits = self.penalised(logits, text)
        if self.temperature == 0:
            return logits.argmax(dim=-1, keepdim=True)
        probabilities = self.probabilities(logits)
        return torch.multinomial(probabilities, 1, generator=generator)

    def penalised(self, logits: Tensor, text: list[int]) -> Tensor:
        """Logits (b, n), those of tokens in `text` over the penalty, or times it where below 0.

        Keskar et al. 2019, section 4.1; the rule for negative ones has become usual since.
        """
        said = torch.tensor(sorted(set(text)), device=logits.device)
        before, penalty = logits[:, said], self.repetition_penalty
        after = torch.where(before > 0, before / penalty, before * penalty)
        return logits.index_copy(1, said, after)

    def probabilities(self, logits: Tensor) -> Tensor:
        """The distribution sampled from, (b, n): cut to the top k, min p, top p, and renormalised.

        min_p keeps tokens at least that part of the likeliest one's probability (Nguyen et al.
        2024), top_p the fewest likeliest tokens whose sum reaches p (Holtzman et al. 2020).
        """
        logits = logits.float()
        # The likeliest at 0, so that no temperature overflows.
        logits = (logits - logits.amax(dim=-1, keepdim=True)) / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            values, kept = logits.topk(self.top_k)  # exactly k, also among equals
            logits = torch.full_like(logits, -torch.inf).scatter(-1, kept, values)
        if self.min_p is not None:  # the likeliest is at 0 still
            logits = logits.masked_fill(logits < math.log(self.min_p), -torch.inf)
        probabilities = logits.softmax(dim=-1)
        if self.top_p is not None:
            ordered, order = probabilities.sort(dim=-1, descending=True)
            ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= self.top_p, 0.0)
            probabilities = torch.zeros_like(ordered).scatter(-1, order, ordered)
            probabilities = probabilities / probabilities.sum(-1, keepdim=True)
        return probabilities


class Decoder:
    """Logits of the next token of texts that grow token by token, several of any lengths at once.

    A key-value cache holds what the model has seen, so that a new token costs one position. Where a
    text outgrows `context`, every token is computed from the text's last `context` tokens anew:
    cutting keys off a cache would leave what they have told later tokens. None is the most there
    is: the scheme's `max_length`, or no bound. Raises UserError for more than that.
    """

    def __init__(self, model: GPT, prompts: list[list[int]], context: int | None) -> None:
        assert all(prompts), "a model continues at least one token"
        limit = model.positional.max_length
        if limit is not None and context is not None:
            why = f"{model.config.positional.name} has {limit} positions; use that or fewer"
            require(context <= limit, "--context", context, why)
        assert context is None or context >= 1
        self.model, self.context = model, limit if context is None else context
        self.texts = [list(prompt) for prompt in prompts]
        self.cache: KVCache
        self.next = self._read()

    def append(self, tokens: list[int]) -> None:
        """Add one token to each text."""
        for text, token in zip(self.texts, tokens, strict=True):
            text.append(token)
        longest = max(map(len, self.texts))
        if self.context is not None and longest > self.context:
            self.next = self._read()
            return
        if longest > self.cache.capacity:
            self.cache.grow(self._capacity(longest))
        device = self.next.device
        positions = torch.tensor([[len(text) - 1] for text in self.texts], device=device)
        new = torch.tensor([[token] for token in tokens], device=device)
        self.next = self.model(new, positions, self.cache)[:, -1]

    def _read(self) -> Tensor:
        """Read the texts, or their ends, into a new cache: logits (b, n) after each."""
        ends = self.texts if self.context is None else [t[-self.context :] for t in self.texts]
        lengths = [len(end) for end in ends]
        longest = max(lengths)
        device = self.model.head.weight.device
        tokens = torch.tensor([end + [0] * (longest - len(end)) for end in ends], device=device)
        self.cache = KVCache(len(ends), self._capacity(longest), device, lengths)
        logits = self.model(tokens, cache=self.cache)
        return logits[torch.arange(len(ends)), [length - 1 for length in lengths]]

    def _capacity(self, longest: int) -> int:
        capacity = 2 * longest + ROOM
        return capacity if self.context is None else min(capacity, self.context)


def generate(
    model: GPT,
    prompts: list[list[int]],
    n_tokens: int,
    sampling: Sampling,
    generators: list[torch.Generator],
    compute: Compute,
    context: int | None,
) -> Iterator[list[int]]:
    """Yield `n_tokens` times one new token for each prompt of at least one token.

    Each prompt draws from its own generator. `context`: most tokens the model sees, see `Decoder`;
    the prompts are read at once. Leaves the model's train/eval mode as it was. On a CPU it computes
    in fp32: bf16 kernels are compiled anew for every length of a text. Raises UserError for a
    context the model has not.
    """
    if compute.device == "cpu":
        compute = replace(compute, precision="fp32")
    with model.evaluating(), compute.autocast():
        decoder = Decoder(model, prompts, context)

    def steps() -> Iterator[list[int]]:
        for step in range(n_tokens):
            with model.evaluating(), compute.autocast():
                rows = zip(decoder.next.split(1), generators, decoder.texts, strict=True)
                tokens = [int(sampling.choose(*row)) for row in rows]
                if step + 1 < n_tokens:
                    decoder.append(tokens)
            yield tokens

    return steps()


def stop_at(pieces: Iterable[str], stops: list[str]) -> Iterator[str]:
    """Text before the stop that is complete first; holds back what may be the start of one."""
    held = ""
    for piece in pieces:
        held += piece
        found = [(held.find(stop) + len(stop), held.find(stop)) for stop in stops if stop in held]
        if found:
            yield held[: min(found)[1]]
            return
        # The longest end of the text that a stop begins with.
        ends = (n for n in range(len(held), 0, -1) if any(s.startswith(held[-n:]) for s in stops))
        keep = next(ends, 0)
        yield held[: len(held) - keep]
        held = held[len(held) - keep :]
    yield held


def stream_text(tokenizer: Tokenizer, tokens: Iterable[int]) -> Iterator[str]:
    """Text as its tokens come; a character spread over several tokens waits for its last byte."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in tokens:
        yield decoder.decode(tokenizer.token_bytes(token))
    yield decoder.decode(b"", final=True)
