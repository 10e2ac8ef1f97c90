"""Beam search, against every text there is and against a search without a cache."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch

from minigpt.errors import UserError
from minigpt.inference.beam import BeamSearch, Hypothesis, beam_search
from minigpt.inference.generate import Sampling, generate
from minigpt.model import GPT
from minigpt.model.positional import POSITIONAL
from minigpt.runtime import Runtime
from tests.model.tiny import default_dtype, random_model, random_tokens, tiny_config

CPU = Runtime("cpu", "", "fp32", "")
BLOCK = 8
Ended = Callable[[list[int]], bool]


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """In float64, without gradients."""
    with default_dtype(torch.float64), torch.inference_mode():
        yield


@dataclass(frozen=True)
class Slow:
    """Log-probabilities by a full pass over the end of a text."""

    model: GPT
    prompt: list[int]
    context: int | None
    repetition_penalty: float = 1.0

    def log_probabilities(self, new: list[int]) -> list[float]:
        text = self.prompt + new
        seen = text if self.context is None else text[-self.context :]
        logits = self.model(torch.tensor([seen]))[0, -1].tolist()
        penalty = self.repetition_penalty
        for token in set(text):
            logits[token] = (
                logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
            )
        log_sum = math.log(sum(map(math.exp, logits)))
        return [logit - log_sum for logit in logits]

    def texts(self, n_tokens: int, ended: Ended) -> Iterator[tuple[list[int], float]]:
        """Every text that ends, the first time it does, and its log-probability."""

        def after(new: list[int], total: float) -> Iterator[tuple[list[int], float]]:
            if new and (ended(new) or len(new) == n_tokens):
                yield new, total
                return
            for token, log_p in enumerate(self.log_probabilities(new)):
                yield from after([*new, token], total + log_p)

        return after([], 0.0)

    def beams(self, n_tokens: int, search: BeamSearch, ended: Ended) -> list[int]:
        """A beam search to the end, with lists."""
        going_on: list[tuple[float, list[int]]] = [(0.0, [])]
        over: list[tuple[float, list[int]]] = []
        while going_on:
            grown = [
                (total + log_p, [*new, token])
                for total, new in going_on
                for token, log_p in enumerate(self.log_probabilities(new))
            ]
            kept = sorted(grown, reverse=True)[: search.beams]
            over += [(t, new) for t, new in kept if ended(new) or len(new) == n_tokens]
            going_on = [(t, new) for t, new in kept if not ended(new) and len(new) < n_tokens]
        return max(over, key=lambda found: found[0] / len(found[1]) ** search.length_penalty)[1]


def never(tokens: list[int]) -> bool:
    return False


def token_0(tokens: list[int]) -> bool:
    return tokens[-1] == 0


def a_pair(tokens: list[int]) -> bool:
    return tokens[-2:] == [1, 2]


def search_for(
    slow: Slow, n_tokens: int, beams: int, length_penalty: float, ended: Ended
) -> Hypothesis:
    search = BeamSearch(beams, length_penalty, slow.repetition_penalty)
    context = "all" if slow.context is None else slow.context
    return beam_search(slow.model, slow.prompt, n_tokens, search, ended, context=context)


@pytest.mark.parametrize("ended", [never, token_0, a_pair])
@pytest.mark.parametrize(
    ("scheme", "context", "repetition_penalty"),
    [("rope", None, 1.0), ("alibi", 3, 1.0), ("cope", None, 1.6), ("learned", 2, 1.6)],
)
def test_enough_beams_equal_every_text(
    scheme: str, context: int | None, repetition_penalty: float, ended: Ended
) -> None:
    model = random_model(tiny_config(scheme, block_size=BLOCK), n_vocab=3)
    lengths: set[int] = set()
    for prompt, n_tokens in itertools.product(([0], [2, 1, 1, 2]), (1, 2, 4)):
        slow = Slow(model, prompt, context, repetition_penalty)
        every = [*slow.texts(n_tokens, ended)]
        for length_penalty in (0.0, 0.6, 1.0, 3.0):
            expected, total = max(every, key=lambda t: t[1] / len(t[0]) ** length_penalty)
            prefixes = 3 ** (n_tokens - 1)
            found = search_for(slow, n_tokens, prefixes, length_penalty, ended)
            assert found.tokens == expected
            assert found.log_probability == pytest.approx(total, rel=1e-10)
            assert found.score == pytest.approx(total / len(expected) ** length_penalty, rel=1e-10)
            lengths.add(len(expected) if n_tokens == 4 else 4)
    assert ended is not token_0 or len(lengths) > 1  # penalties and prompts do matter


@pytest.mark.parametrize("ended", [never, token_0, a_pair])
@pytest.mark.parametrize("scheme", POSITIONAL.names())
def test_few_beams_equal_a_search_without_a_cache(scheme: str, ended: Ended) -> None:
    model = random_model(tiny_config(scheme, block_size=BLOCK), n_vocab=5)
    for beams, length_penalty, prompt in (
        (2, 0.0, [3]),
        (3, 1.0, [4, 1, 1, 3, 2]),  # past the block
        (4, 2.0, [1] * (BLOCK + 2)),
    ):
        slow = Slow(model, prompt, BLOCK)
        search = BeamSearch(beams, length_penalty)
        expected = slow.beams(6, search, ended)
        assert search_for(slow, 6, beams, length_penalty, ended).tokens == expected


@pytest.mark.parametrize("ended", [never, token_0])
@pytest.mark.parametrize("scheme", POSITIONAL.names())
def test_one_beam_is_greedy(scheme: str, ended: Ended) -> None:
    model = random_model(tiny_config(scheme, block_size=BLOCK))
    for prompt in random_tokens(3, 4).tolist():
        greedy = Sampling(temperature=0)
        steps = generate(model, [prompt], 12, greedy)
        expected = [step[0] for step in steps]
        ends = (n for n in range(1, 12) if ended(expected[:n]))
        expected = expected[: next(ends, 12)]
        assert search_for(Slow(model, prompt, BLOCK), 12, 1, 0.0, ended).tokens == expected


def test_more_beams_find_likelier_texts() -> None:
    model = random_model(tiny_config("rope"))
    found = [search_for(Slow(model, [0], None), 6, n, 0.0, never) for n in (1, 3, 200)]
    one, few, many = (text.log_probability for text in found)
    assert one < few < many


def test_a_step_costs_one_position_a_beam() -> None:
    model = random_model(tiny_config("rope", block_size=BLOCK))
    shapes: list[tuple[int, ...]] = []
    hook = model.token_embedding.register_forward_hook(
        lambda _module, inputs, _output: shapes.append(tuple(inputs[0].shape))
    )
    search_for(Slow(model, [1, 2, 3], None), 5, 3, 1.0, never)
    assert shapes == [(1, 3), *[(3, 1)] * 4]
    shapes.clear()
    found = search_for(Slow(model, [1, 2, 3], None), 500, 3, 0.0, lambda tokens: True)
    assert shapes == [(1, 3)] and len(found.tokens) == 1  # all of them are over
    hook.remove()


def test_a_search_ends_when_nothing_better_can_come() -> None:
    model = random_model(tiny_config("rope"))
    lengths: list[int] = []

    def ended(tokens: list[int]) -> bool:
        lengths.append(len(tokens))
        return tokens[-1] == 10

    found = search_for(Slow(model, [1], None), 200, 3, 0.0, ended)
    assert found.tokens[-1] == 10 and max(lengths) == len(found.tokens) + 1


def test_a_refusal_leaves_the_mode() -> None:
    model = random_model(tiny_config("learned", block_size=BLOCK)).train()
    with pytest.raises(UserError, match=f"^--context={BLOCK + 1}: "):
        search_for(Slow(model, [1], BLOCK + 1), 3, 2, 1.0, never)
    assert model.training
