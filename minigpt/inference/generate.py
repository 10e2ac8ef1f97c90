"""Text from a model, token by token."""

from __future__ import annotations

import codecs
import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minigpt.errors import require
from minigpt.model import GPT
from minigpt.model.kv_cache import KVCache
from minigpt.runtime import Runtime
from minigpt.tokenizer import Tokenizer

ROOM = 64  # slots of a cache beyond twice its texts, so that it seldom grows
MOVES = 8  # beyond the context a text is read anew after so many of its parts: it sees 7/8 or more


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
        require_repetition_penalty(self.repetition_penalty)

    def choose(
        self, logits: Tensor, generator: torch.Generator, text: list[int] | None = None
    ) -> Tensor:
        """One token a row, (b, 1), from logits (b, n). `text`: what the penalty counts as said."""
        logits = penalised(logits, [text or []] * len(logits), self.repetition_penalty)
        if self.temperature == 0:
            return logits.argmax(dim=-1, keepdim=True)
        probabilities = self.probabilities(logits)
        return torch.multinomial(probabilities, 1, generator=generator)

    def probabilities(self, logits: Tensor) -> Tensor:
        """The distribution sampled from, (b, n): cut to the top k, min p, top p, and renormalised.

        min_p keeps tokens at least that part of the likeliest one's probability (Nguyen et al.
        2024), top_p the fewest likeliest tokens whose sum reaches p (Holtzman et al. 2020).
        Temperature 0 leaves the likeliest alone.
        """
        if self.temperature == 0:
            likeliest = logits.argmax(dim=-1, keepdim=True)
            return torch.zeros_like(logits, dtype=torch.float).scatter(-1, likeliest, 1.0)
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


def require_repetition_penalty(penalty: float) -> None:
    """Raise UserError for a penalty that none can apply."""
    why = "must be a finite number above 0; 1 is none"
    require(0 < penalty < math.inf, "--repetition-penalty", penalty, why)


def penalised(logits: Tensor, texts: list[list[int]], penalty: float) -> Tensor:
    """Logits (b, n), each row's of tokens in its text over the penalty, or times it where below 0.

    Keskar et al. 2019, section 4.1; the rule for negative ones has become usual since.
    """
    if penalty == 1:
        return logits
    said = torch.zeros_like(logits, dtype=torch.bool)
    for row, text in zip(said, texts, strict=True):
        row[text] = True
    return torch.where(said, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def for_decoding(runtime: Runtime) -> Runtime:
    """On a CPU fp32: its bf16 kernels are compiled anew for every length of a text."""
    return replace(runtime, precision="fp32") if runtime.device == "cpu" else runtime


class Decoder:
    """Logits of the next token of texts that grow token by token, several of any lengths at once.

    A key-value cache holds what the model has seen, so that a new token costs one position. Where a
    text outgrows `context`, the model reads its end anew, from where `first_seen` says: cutting
    keys off a cache would leave what they have told later tokens. None is the most there is: the
    scheme's `max_length`, or no bound. Raises UserError for more than that.

    `next`: logits (b, n) after each text.
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
        self.device = model.head.weight.device
        self._read()

    def append(self, tokens: list[int]) -> None:
        """Add one token to each text."""
        self.extend([[token] for token in tokens])

    def extend(self, tokens: list[list[int]]) -> Tensor:
        """Add as many tokens to each text, in one pass where the context holds them.

        Returns logits (b, t, n) after each of them.
        """
        logits: list[Tensor] = []
        done, n_new = 0, len(tokens[0])
        while done < n_new:
            n = min(self._room(), n_new - done)
            new = [row[done : done + max(n, 1)] for row in tokens]
            for text, more in zip(self.texts, new, strict=True):
                text.extend(more)
            if n == 0:
                self._read()
                logits.append(self.next[:, None])
            else:
                logits.append(self._go_on(new))
                self.next = logits[-1][:, -1]
            done += len(new[0])
        return torch.cat(logits, dim=1)

    def select(self, rows: list[int]) -> None:
        """Go on with these texts alone, in this order; one may be taken several times."""
        self.texts = [list(self.texts[row]) for row in rows]
        self.starts = [self.starts[row] for row in rows]
        index = torch.tensor(rows, device=self.device)
        self.cache.select(index)
        self.next = self.next[index]

    def rewind(self, length: int) -> None:
        """Take back what the only text has beyond `length` tokens, at most what was added to it.

        The rest is read anew where the cache cannot go back. `next` is known again once the text is
        longer.
        """
        (text,) = self.texts
        del text[length:]
        same_start = self.starts == [first_seen(length, self.context)]
        if not same_start or not self.cache.rewind(length - self.starts[0]):
            self._read()

    def _room(self) -> int:
        """How many tokens more the cache takes before one of the texts is to be read anew."""
        if self.context is None:
            return sys.maxsize
        return self.context - max(self._seen())

    def _seen(self) -> list[int]:
        """How many tokens of each text the model sees."""
        return [len(text) - start for text, start in zip(self.texts, self.starts, strict=True)]

    def _go_on(self, new: list[list[int]]) -> Tensor:
        """Read the tokens that were just added: logits (b, t, n) after each."""
        n, seen = len(new[0]), self._seen()
        if max(seen) > self.cache.capacity:
            self.cache.grow(self._capacity(max(seen)))
        first = torch.tensor(seen, device=self.device)[:, None] - n
        positions = first + torch.arange(n, device=self.device)
        return self.model(torch.tensor(new, device=self.device), positions, self.cache)

    def _read(self) -> None:
        """Read what the model sees of the texts into a new cache."""
        self.starts = [first_seen(len(text), self.context) for text in self.texts]
        ends = [text[start:] for text, start in zip(self.texts, self.starts, strict=True)]
        lengths = [len(end) for end in ends]
        self.cache = KVCache(len(ends), self._capacity(max(lengths)), self.device, lengths)
        padded = [end + [0] * (max(lengths) - len(end)) for end in ends]
        logits = self.model(torch.tensor(padded, device=self.device), cache=self.cache)
        self.next = logits[torch.arange(len(ends)), [length - 1 for length in lengths]]

    def _capacity(self, longest: int) -> int:
        capacity = 2 * longest + ROOM
        return capacity if self.context is None else min(capacity, self.context)


def first_seen(length: int, context: int | None) -> int:
    """From which of its tokens on the model sees a text of `length` tokens, 0 within the context.

    It moves by `context` over MOVES at once, so that most tokens cost one position, and depends on
    nothing else: however a text has come about, it goes on the same.
    """
    if context is None or length <= context:
        return 0
    move = max(1, context // MOVES)
    return -(-(length - context) // move) * move


def generate(
    model: GPT,
    prompts: list[list[int]],
    n_tokens: int,
    sampling: Sampling,
    generators: list[torch.Generator],
    runtime: Runtime,
    context: int | None,
) -> Iterator[list[int]]:
    """Yield `n_tokens` times one new token for each prompt of at least one token.

    Each prompt draws from its own generator. `context`: most tokens the model sees, see `Decoder`;
    the prompts are read at once. Leaves the model's train/eval mode as it was. Raises UserError for
    a context the model has not.
    """
    runtime = for_decoding(runtime)
    with model.evaluating(), runtime.autocast():
        decoder = Decoder(model, prompts, context)

    def steps() -> Iterator[list[int]]:
        for step in range(n_tokens):
            with model.evaluating(), runtime.autocast():
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
