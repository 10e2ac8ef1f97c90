"""Beam search, compared with exhaustive search and with beam search without a cache."""

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
from tests.model.tiny import random_model, random_tokens, tiny_config

pytestmark = pytest.mark.usefixtures("float64_inference")

BLOCK = 8
IsEnd = Callable[[list[int]], bool]


@dataclass(frozen=True)
class Reference:
    """Searches without a cache: every step is a full pass over the context."""

    model: GPT
    prompt: list[int]
    context: int | None
    repetition_penalty: float = 1.0

    def log_probabilities(self, new: list[int]) -> list[float]:
        """Return the log-probability of each token after the prompt and the new tokens."""
        text = self.prompt + new
        visible = text if self.context is None else text[-self.context :]
        logits = self.model(torch.tensor([visible]))[0, -1].tolist()
        penalty = self.repetition_penalty
        for token in set(text):
            logits[token] = (
                logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
            )
        log_sum = math.log(sum(map(math.exp, logits)))
        return [logit - log_sum for logit in logits]

    def texts(self, n_tokens: int, ended: IsEnd) -> Iterator[tuple[list[int], float]]:
        """Yield every complete text and its log-probability."""

        def continuations(new: list[int], total: float) -> Iterator[tuple[list[int], float]]:
            if new and (ended(new) or len(new) == n_tokens):
                yield new, total
                return
            for token, log_p in enumerate(self.log_probabilities(new)):
                yield from continuations([*new, token], total + log_p)

        return continuations([], 0.0)

    def beams(self, n_tokens: int, search: BeamSearch, ended: IsEnd) -> list[int]:
        """Return the result of a beam search that runs until all beams have ended."""
        active: list[tuple[float, list[int]]] = [(0.0, [])]
        complete: list[tuple[float, list[int]]] = []
        while active:
            candidates = [
                (total + log_p, [*new, token])
                for total, new in active
                for token, log_p in enumerate(self.log_probabilities(new))
            ]
            best = sorted(candidates, reverse=True)[: search.beams]
            complete += [(t, new) for t, new in best if ended(new) or len(new) == n_tokens]
            active = [(t, new) for t, new in best if not ended(new) and len(new) < n_tokens]
        return max(complete, key=lambda text: text[0] / len(text[1]) ** search.length_penalty)[1]


def never(tokens: list[int]) -> bool:
    """Return False, so that texts end at the maximum length."""
    return False


def ends_with_token(tokens: list[int]) -> bool:
    """Return whether the last token is 0."""
    return tokens[-1] == 0


def ends_with_pair(tokens: list[int]) -> bool:
    """Return whether the last two tokens are 1, 2."""
    return tokens[-2:] == [1, 2]


def search_with_cache(
    reference: Reference, n_tokens: int, beams: int, length_penalty: float, ended: IsEnd
) -> Hypothesis:
    """Run minigpt's beam search with the settings of a reference search."""
    search = BeamSearch(beams, length_penalty, reference.repetition_penalty)
    context = "all" if reference.context is None else reference.context
    return beam_search(reference.model, reference.prompt, n_tokens, search, ended, context=context)


@pytest.mark.parametrize("ended", [never, ends_with_token, ends_with_pair])
@pytest.mark.parametrize(
    ("scheme", "context", "repetition_penalty"),
    [("rope", None, 1.0), ("alibi", 3, 1.0), ("cope", None, 1.6), ("learned", 2, 1.6)],
)
def test_enough_beams_equal_exhaustive_search(
    scheme: str, context: int | None, repetition_penalty: float, ended: IsEnd
) -> None:
    model = random_model(tiny_config(scheme, block_size=BLOCK), n_vocab=3)
    lengths: set[int] = set()
    for prompt, n_tokens in itertools.product(([0], [2, 1, 1, 2]), (1, 2, 4)):
        reference = Reference(model, prompt, context, repetition_penalty)
        texts = [*reference.texts(n_tokens, ended)]
        for length_penalty in (0.0, 0.6, 1.0, 3.0):
            expected, total = max(texts, key=lambda t: t[1] / len(t[0]) ** length_penalty)
            prefixes = 3 ** (n_tokens - 1)
            result = search_with_cache(reference, n_tokens, prefixes, length_penalty, ended)
            assert result.tokens == expected
            assert result.log_probability == pytest.approx(total, rel=1e-10)
            assert result.score == pytest.approx(total / len(expected) ** length_penalty, rel=1e-10)
            lengths.add(len(expected) if n_tokens == 4 else 4)
    assert ended is not ends_with_token or len(lengths) > 1


@pytest.mark.parametrize("ended", [never, ends_with_token, ends_with_pair])
@pytest.mark.parametrize("scheme", POSITIONAL.names())
def test_few_beams_equal_search_without_a_cache(scheme: str, ended: IsEnd) -> None:
    model = random_model(tiny_config(scheme, block_size=BLOCK), n_vocab=5)
    for beams, length_penalty, prompt in (
        (2, 0.0, [3]),
        (3, 1.0, [4, 1, 1, 3, 2]),  # longer than the block
        (4, 2.0, [1] * (BLOCK + 2)),
    ):
        reference = Reference(model, prompt, BLOCK)
        search = BeamSearch(beams, length_penalty)
        expected = reference.beams(6, search, ended)
        assert search_with_cache(reference, 6, beams, length_penalty, ended).tokens == expected


@pytest.mark.parametrize("ended", [never, ends_with_token])
@pytest.mark.parametrize("scheme", POSITIONAL.names())
def test_one_beam_equals_greedy_decoding(scheme: str, ended: IsEnd) -> None:
    model = random_model(tiny_config(scheme, block_size=BLOCK))
    for prompt in random_tokens(3, 4).tolist():
        greedy = Sampling(temperature=0)
        steps = generate(model, [prompt], 12, greedy)
        expected = [step[0] for step in steps]
        ends = (n for n in range(1, 12) if ended(expected[:n]))
        expected = expected[: next(ends, 12)]
        result = search_with_cache(Reference(model, prompt, BLOCK), 12, 1, 0.0, ended)
        assert result.tokens == expected


def test_more_beams_find_texts_of_higher_probability() -> None:
    model = random_model(tiny_config("rope"))
    reference = Reference(model, [0], None)
    results = [search_with_cache(reference, 6, n, 0.0, never) for n in (1, 3, 200)]
    one, few, many = (result.log_probability for result in results)
    assert one < few < many


def test_a_step_computes_one_position_per_beam() -> None:
    model = random_model(tiny_config("rope", block_size=BLOCK))
    shapes: list[tuple[int, ...]] = []
    hook = model.token_embedding.register_forward_hook(
        lambda _module, inputs, _output: shapes.append(tuple(inputs[0].shape))
    )
    search_with_cache(Reference(model, [1, 2, 3], None), 5, 3, 1.0, never)
    assert shapes == [(1, 3), *[(3, 1)] * 4]
    shapes.clear()
    result = search_with_cache(Reference(model, [1, 2, 3], None), 500, 3, 0.0, lambda tokens: True)
    assert shapes == [(1, 3)] and len(result.tokens) == 1  # all beams have ended
    hook.remove()


def test_search_stops_when_no_better_text_is_possible() -> None:
    model = random_model(tiny_config("rope"))
    lengths: list[int] = []

    def ended(tokens: list[int]) -> bool:
        lengths.append(len(tokens))
        return tokens[-1] == 10

    result = search_with_cache(Reference(model, [1], None), 200, 3, 0.0, ended)
    assert result.tokens[-1] == 10 and max(lengths) == len(result.tokens) + 1


def test_an_error_restores_the_training_mode() -> None:
    model = random_model(tiny_config("learned", block_size=BLOCK)).train()
    with pytest.raises(UserError, match=f"^--context={BLOCK + 1}: "):
        search_with_cache(Reference(model, [1], BLOCK + 1), 3, 2, 1.0, never)
    assert model.training
