"""Autoregressive generation with a KV cache: sampling, decoding several prompts, streaming text."""

from __future__ import annotations

import codecs
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from minigpt.errors import require
from minigpt.inference.static import StaticTokens, static_limit
from minigpt.model import GPT
from minigpt.model.kv_cache import KVCache, StaticKVCache
from minigpt.model.memory import Memory
from minigpt.objective.base import Beginning
from minigpt.runtime import Runtime, choose_runtime
from minigpt.tokenizer import Tokenizer

CACHE_MARGIN = 64  # free positions of a new cache beyond twice its tokens, so that it rarely grows
CONTEXT_STEPS = 8  # a full context drops 1/8 of its tokens at once, so the model attends to >= 7/8

# Maximum context in tokens: a number, "all", or None for `model.block_size`.
Context = int | Literal["all"] | None


def require_repetition_penalty(penalty: float) -> None:
    """Raise UserError unless a repetition penalty is finite and positive."""
    why = "must be a finite number above 0; 1 disables it"
    require(0 < penalty < math.inf, "--repetition-penalty", penalty, why)


@dataclass(frozen=True)
class Sampling:
    """Options of sampling. `temperature` 0 is greedy; None disables top_k, top_p or min_p."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        require(self.temperature >= 0, "--temperature", self.temperature, "must be 0 or more")
        top_k_ok = self.top_k is None or self.top_k >= 1
        require(top_k_ok, "--top-k", self.top_k, "must be 1 or more")
        for name, p in (("--top-p", self.top_p), ("--min-p", self.min_p)):
            require(p is None or 0 < p <= 1, name, p, "must be above 0 and at most 1")
        require_repetition_penalty(self.repetition_penalty)

    def sample(
        self, logits: Tensor, generator: torch.Generator, seen_tokens: Sequence[int] = ()
    ) -> Tensor:
        """Sample one token per row, (b, 1), from logits (b, n_vocab).

        The repetition penalty applies to `seen_tokens`, which all rows share.
        """
        rows = [seen_tokens] * len(logits)
        logits = apply_repetition_penalty(logits, rows, self.repetition_penalty)
        if self.temperature == 0:
            return logits.argmax(dim=-1, keepdim=True)
        probabilities = self.probabilities(logits)
        return torch.multinomial(probabilities, 1, generator=generator)

    def choose(self, logits: Tensor, noise: Tensor) -> Tensor:
        """Return the token per row (b,) that `sample` draws if `noise` is its random numbers.

        `noise` (b, n_vocab): Exponential(1). No repetition penalty. The host does not wait.
        """
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        return (self.probabilities(logits) / noise).argmax(dim=-1)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the distribution (b, n_vocab) after top-k, min-p and top-p, renormalized.

        min_p keeps tokens with at least that fraction of the highest probability (Nguyen et al.
        2024), top_p the smallest set of most likely tokens whose sum reaches p (Holtzman et al.
        2020). Temperature 0 returns a one-hot distribution.
        """
        if self.temperature == 0:
            likeliest = logits.argmax(dim=-1, keepdim=True)
            return torch.zeros_like(logits, dtype=torch.float).scatter(-1, likeliest, 1.0)
        logits = logits.float()
        # The maximum becomes 0, so that no temperature overflows.
        logits = (logits - logits.amax(dim=-1, keepdim=True)) / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            values, indices = logits.topk(self.top_k)  # exactly k, even with ties
            logits = torch.full_like(logits, -torch.inf).scatter(-1, indices, values)
        if self.min_p is not None:  # the maximum is still 0
            logits = logits.masked_fill(logits < math.log(self.min_p), -torch.inf)
        probabilities = logits.softmax(dim=-1)
        if self.top_p is not None:
            ordered, order = probabilities.sort(dim=-1, descending=True)
            ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= self.top_p, 0.0)
            probabilities = torch.zeros_like(ordered).scatter(-1, order, ordered)
            probabilities = probabilities / probabilities.sum(-1, keepdim=True)
        return probabilities


DEFAULT_SAMPLING = Sampling()


def apply_repetition_penalty(
    logits: Tensor, seen_tokens: Sequence[Sequence[int]], penalty: float
) -> Tensor:
    """Divide positive logits (b, n_vocab) of each row's seen tokens by the penalty.

    Negative logits are multiplied by it, as in Hugging Face (Keskar et al. 2019, section 4.1).
    """
    if penalty == 1:
        return logits
    seen = torch.zeros_like(logits, dtype=torch.bool)
    for row, tokens in zip(seen, seen_tokens, strict=True):
        row[list(tokens)] = True
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def decoding_runtime(model: GPT, runtime: Runtime | None) -> Runtime:
    """Return the runtime for decoding, by default that of the model's device.

    On a CPU it is fp32: bf16 kernels would be compiled again for every length of a sequence.
    """
    if runtime is None:
        runtime = choose_runtime(model.head.weight.device.type, "auto")
    return replace(runtime, precision="fp32") if runtime.device == "cpu" else runtime


def max_context(model: GPT, context: Context) -> int | None:
    """Return the maximum context in tokens, None if unlimited."""
    if context is None:
        return model.config.block_size
    return None if context == "all" else context


class Decoder:
    """Next-token logits of several sequences that grow token by token, with a KV cache.

    A new token needs a forward pass over one position. A sequence longer than `context` is cut at
    `context_start`, and the rest is prefilled again, since cached keys and values depend on the
    tokens that were cut. `context` None: the scheme's `max_length`, or unlimited. Raises UserError
    if `context` exceeds `max_length`. `static_tokens`: if positive, that many new tokens can be
    processed outside of the decoder, in a StaticKVCache; see `processed`.

    A prefix decoder reads the prompts, or what is left of them after a cut, in both directions.
    `sources`: what the encoder reads of each sequence, for a model that has one; it reads it once.
    Special tokens have no probability, unless `may_end`: a sentinel ends the text of a gap.

    `next_logits`: (b, n_vocab) after each sequence.
    """

    def __init__(
        self,
        model: GPT,
        prompts: list[list[int]],
        context: int | None,
        static_tokens: int = 0,
        *,
        sources: list[list[int]] | None = None,
        may_end: bool = False,
    ) -> None:
        assert all(prompts), "a prompt has at least one token"
        limit = model.positional.max_length
        if limit is not None and context is not None:
            why = f"{model.config.positional.name} has {limit} positions; use that or fewer"
            require(context <= limit, "--context", context, why)
        assert context is None or context >= 1
        self.model, self.context = model, limit if context is None else context
        self.sequences = [list(prompt) for prompt in prompts]
        self.prompt_lengths = list(map(len, prompts))
        self.device = model.head.weight.device
        self.memory = None if sources is None else encoded(model, sources)
        self.n_allowed = model.n_vocab if may_end else model.n_ordinary
        self.static_cache: StaticKVCache | None = None
        if static_tokens:
            longest = max(len(prompt) for prompt in prompts) + static_tokens
            capacity = longest if self.context is None else min(longest, self.context)
            self.static_cache = StaticKVCache(len(prompts), capacity, self.device)
        self._prefill()

    def processed(self, tokens: list[list[int]]) -> None:
        """Append tokens (b, t) that were processed outside; `next_logits` stays as it was."""
        for sequence, more in zip(self.sequences, tokens, strict=True):
            sequence.extend(more)

    def append(self, tokens: list[int]) -> None:
        """Append one token to each sequence."""
        self.extend([[token] for token in tokens])

    def extend(self, tokens: list[list[int]]) -> Tensor:
        """Append t tokens to each sequence, and return the logits (b, t, n_vocab) after each.

        It takes one forward pass if they fit into the context.
        """
        logits: list[Tensor] = []
        done, n_new = 0, len(tokens[0])
        while done < n_new:
            n = min(self.free(), n_new - done)
            new = [row[done : done + max(n, 1)] for row in tokens]
            for sequence, more in zip(self.sequences, new, strict=True):
                sequence.extend(more)
            if n == 0:
                self._prefill()
                logits.append(self.next_logits[:, None])
            else:
                logits.append(self._forward(new))
                self.next_logits = logits[-1][:, -1]
            done += len(new[0])
        return torch.cat(logits, dim=1)

    def select(self, rows: list[int]) -> None:
        """Keep only these sequences, in this order; rows may repeat."""
        self.sequences = [list(self.sequences[row]) for row in rows]
        self.starts = [self.starts[row] for row in rows]
        self.prompt_lengths = [self.prompt_lengths[row] for row in rows]
        index = torch.tensor(rows, device=self.device)
        if self.memory is not None:
            self.memory = self.memory.select(index)
        self.cache.select(index)
        self.next_logits = self.next_logits[index]

    def rewind(self, length: int) -> None:
        """Shorten a single sequence to `length` tokens, but not to less than its prompt.

        Prefills again if the cache cannot be rewound. `next_logits` is valid only after the next
        token.
        """
        (sequence,) = self.sequences
        del sequence[length:]
        same_start = self.starts == [context_start(length, self.context)]
        if not same_start or not self.cache.rewind(length - self.starts[0]):
            self._prefill()

    def free(self) -> int:
        """Return the number of tokens that still fit into the context."""
        return sys.maxsize if self.context is None else self.context - max(self.lengths())

    def lengths(self) -> list[int]:
        """Return the number of tokens of each sequence in the context."""
        return [len(s) - start for s, start in zip(self.sequences, self.starts, strict=True)]

    def _forward(self, new: list[list[int]]) -> Tensor:
        """Return logits (b, t, n_vocab) after each of the newest t tokens."""
        n, lengths = len(new[0]), self.lengths()
        if max(lengths) > self.cache.capacity:
            self.cache.grow(self._capacity(max(lengths)))
        first = torch.tensor(lengths, device=self.device)[:, None] - n
        positions = first + torch.arange(n, device=self.device)
        new_tokens = torch.tensor(new, device=self.device)
        return self._allowed(self.model(new_tokens, positions, self.cache, memory=self.memory))

    def _allowed(self, logits: Tensor) -> Tensor:
        """Return logits (..., n_vocab) in which only allowed tokens have a probability."""
        if self.n_allowed == logits.shape[-1]:
            return logits
        is_special = torch.arange(logits.shape[-1], device=logits.device) >= self.n_allowed
        return logits.masked_fill(is_special, -torch.inf)

    def _prefill(self) -> None:
        """Fill a new cache with the context of each sequence, and set `next_logits`."""
        self.starts = [context_start(len(sequence), self.context) for sequence in self.sequences]
        contexts = [s[start:] for s, start in zip(self.sequences, self.starts, strict=True)]
        lengths = [len(tokens) for tokens in contexts]
        self.cache = self._empty_cache(lengths)
        padded = [tokens + [0] * (max(lengths) - len(tokens)) for tokens in contexts]
        parts = {"cache": self.cache, "lengths": self._prefixes(), "memory": self.memory}
        logits = self._allowed(self.model(torch.tensor(padded, device=self.device), **parts))
        self.next_logits = logits[torch.arange(len(contexts)), [n - 1 for n in lengths]]

    def _prefixes(self) -> Tensor | None:
        """Return the tokens (b,) of each prompt that are in the context, for a prefix decoder."""
        if self.model.config.architecture != "prefix_decoder":
            return None
        pairs = zip(self.prompt_lengths, self.starts, strict=True)
        return torch.tensor([max(0, n - start) for n, start in pairs], device=self.device)

    def _empty_cache(self, lengths: list[int]) -> KVCache:
        if self.static_cache is None:
            return KVCache(len(lengths), self._capacity(max(lengths)), self.device, lengths)
        self.static_cache.reset(lengths)
        return self.static_cache

    def _capacity(self, longest: int) -> int:
        capacity = 2 * longest + CACHE_MARGIN
        return capacity if self.context is None else min(capacity, self.context)


def encoded(model: GPT, sources: list[list[int]]) -> Memory:
    """Return what an encoder makes of sources. Raises UserError beyond its `max_length`."""
    longest, device = max(map(len, sources)), model.head.weight.device
    padded = [source + [0] * (longest - len(source)) for source in sources]
    lengths = None
    if any(len(source) < longest for source in sources):
        lengths = torch.tensor(list(map(len, sources)), device=device)
    return model.encode(torch.tensor(padded, device=device), lengths)


def context_start(length: int, context: int | None) -> int:
    """Return the index of the first token in the context of a sequence of `length` tokens.

    It is 0 if the sequence fits, and otherwise a multiple of `context // CONTEXT_STEPS`, so that
    most new tokens need one position. It depends only on the length, so that the next token's
    distribution does not depend on how the sequence was built.
    """
    if context is None or length <= context:
        return 0
    step = max(1, context // CONTEXT_STEPS)
    return -(-(length - context) // step) * step


def generate(
    model: GPT,
    prompts: list[list[int]],
    n_tokens: int,
    sampling: Sampling = DEFAULT_SAMPLING,
    *,
    seed: int | Sequence[int] = 1,
    runtime: Runtime | None = None,
    context: Context = None,
    sources: list[list[int]] | None = None,
) -> Iterator[list[int]]:
    """Yield `n_tokens` times the next token of each prompt. Prompts must not be empty.

    `sources`: see `Decoder`. `seed`: one per prompt, or one for all. Each prompt has its own random
    generator. The prompts are prefilled before this returns. Restores the model's train/eval mode.
    Raises UserError for a context beyond the scheme's `max_length`.
    """
    runtime = decoding_runtime(model, runtime)
    seeds = [seed] * len(prompts) if isinstance(seed, int) else seed
    generators = [torch.Generator(runtime.device).manual_seed(s) for s in seeds]
    n_static = n_tokens if static_decoding(model, sampling, runtime) else 0
    with model.evaluating(), runtime.autocast():
        decoder = Decoder(model, prompts, max_context(model, context), n_static, sources=sources)
    if decoder.static_cache is not None:
        return static_steps(decoder, sampling, generators, n_tokens, runtime)

    def steps() -> Iterator[list[int]]:
        for step in range(n_tokens):
            with model.evaluating(), runtime.autocast():
                rows = zip(decoder.next_logits.split(1), generators, decoder.sequences, strict=True)
                tokens = [int(sampling.sample(*row)) for row in rows]
                if step + 1 < n_tokens:
                    decoder.append(tokens)
            yield tokens

    return steps()


def generate_from(
    model: GPT,
    beginnings: Sequence[Beginning],
    n_tokens: int,
    sampling: Sampling = DEFAULT_SAMPLING,
    **options: Any,
) -> Iterator[list[int]]:
    """Return `generate` for what an objective makes of each prompt."""
    sources = [start.source for start in beginnings if start.source is not None]
    prompts = [start.tokens for start in beginnings]
    return generate(model, prompts, n_tokens, sampling, sources=sources or None, **options)


def static_decoding(model: GPT, sampling: Sampling, runtime: Runtime) -> bool:
    """Whether `generate` computes each token as a CUDA graph, with equal results up to rounding."""
    plain = sampling.repetition_penalty == 1  # which reads tokens on the host
    return runtime.device == "cuda" and plain and static_limit(model) is None


def static_steps(
    decoder: Decoder,
    sampling: Sampling,
    generators: Sequence[torch.Generator],
    n_tokens: int,
    runtime: Runtime,
) -> Iterator[list[int]]:
    """Yield `n_tokens` times the next token of each sequence of a decoder with a static cache.

    They arrive in chunks, so that the host seldom waits.
    """
    model, cache = decoder.model, decoder.static_cache
    assert cache is not None
    captured = runtime.device == "cuda"
    parts = (model, cache, sampling.choose, generators, runtime)
    tokens: StaticTokens | None = None
    newest: list[int] = []
    done = 0
    while done < n_tokens:
        with model.evaluating():
            tokens = tokens or StaticTokens(*parts, captured)
            n = min(n_tokens - done, tokens.chunk, decoder.free()) if newest else 0
            if n:
                rows = tokens.take(n)
                before = [[token, *row[:-1]] for token, row in zip(newest, rows, strict=True)]
                decoder.processed(before)
            else:
                if newest:
                    with runtime.autocast():
                        decoder.append(newest)  # the context is full: this prefills again
                rows = [[token] for token in tokens.start(decoder.lengths(), decoder.next_logits)]
        newest = [row[-1] for row in rows]
        done += len(rows[0])
        yield from map(list, zip(*rows, strict=True))


def stop_at(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """Yield text up to the first stop string.

    Text that may be the beginning of a stop string is held back.
    """
    pending = ""
    for piece in pieces:
        pending += piece
        ends = [(pending.find(s) + len(s), pending.find(s)) for s in stops if s in pending]
        if ends:
            yield pending[: min(ends)[1]]
            return
        # The longest suffix that is a prefix of a stop string.
        starts = range(len(pending))
        end = next(
            (n for n in starts if any(s.startswith(pending[n:]) for s in stops)), len(pending)
        )
        yield pending[:end]
        pending = pending[end:]
    yield pending


def stream_text(tokenizer: Tokenizer, tokens: Iterable[int]) -> Iterator[str]:
    """Decode tokens one by one. A character that spans tokens is yielded when it is complete."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in tokens:
        yield decoder.decode(tokenizer.token_bytes(token))
    yield decoder.decode(b"", final=True)
