"""Speculative decoding, compared with decoding without a draft."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from minigpt.errors import UserError
from minigpt.inference import speculative
from minigpt.inference.generate import Sampling, apply_repetition_penalty, generate
from minigpt.inference.speculative import Draft, DraftStatistics, speculate, verify
from minigpt.model import GPT
from minigpt.model.attention import ATTENTION
from minigpt.model.positional import POSITIONAL
from tests.model.reference import ATTENTION_OPTIONS
from tests.model.tiny import random_model, random_tokens, tiny_config

pytestmark = pytest.mark.usefixtures("float64_inference")

BLOCK = 8
GREEDY = Sampling(temperature=0)
Verify = Callable[[Tensor, Tensor, list[int], torch.Generator], list[int]]


def seeded(seed: int = 0) -> torch.Generator:
    """Return a seeded generator."""
    return torch.Generator().manual_seed(seed)


def perturbed(model: GPT, noise: float) -> GPT:
    """Return a copy of the model with noise on its weights, whose proposals are often accepted."""
    draft = GPT(model.config, model.n_vocab).eval()
    draft.load_state_dict(model.state_dict())
    for parameter in draft.parameters():
        parameter.add_(noise * torch.randn(parameter.shape, generator=seeded()))
    return draft


def with_draft(
    model: GPT,
    draft: Draft,
    prompt: list[int],
    n: int,
    sampling: Sampling = GREEDY,
    context: int | None = None,
    seed: int = 0,
) -> tuple[list[int], DraftStatistics]:
    """Return the new tokens and the statistics of speculative decoding."""
    statistics = DraftStatistics()
    max_context = "all" if context is None else context
    tokens = speculate(
        model, draft, prompt, n, sampling, seed=seed, context=max_context, statistics=statistics
    )
    return [*tokens], statistics


def distribution(model: GPT, text: list[int], sampling: Sampling, context: int | None) -> Tensor:
    """Return the distribution of the token after a text, by a full pass."""
    visible = text if context is None else text[-context:]
    logits = model(torch.tensor([visible]))[:, -1]
    return sampling.probabilities(
        apply_repetition_penalty(logits, [text], sampling.repetition_penalty)
    )[0]


# --- greedy


@pytest.mark.parametrize("n_draft", [1, 4])
@pytest.mark.parametrize("scheme", POSITIONAL.names())
def test_greedy_equals_greedy_without_a_draft(scheme: str, n_draft: int) -> None:
    model = random_model(tiny_config(scheme, block_size=BLOCK))
    other = random_model(tiny_config("rope", n_layer=1, block_size=BLOCK - 3))
    drafts = [
        Draft(perturbed(model, 0.05), n_draft, BLOCK),
        Draft(other, n_draft, BLOCK - 3),
    ]
    limit = model.positional.max_length
    for context, length in itertools.product({5, limit}, (1, BLOCK + 2)):
        prompt = random_tokens(1, length, seed=length)[0].tolist()
        steps = generate(model, [prompt], 13, GREEDY, context="all" if context is None else context)
        expected = [step[0] for step in steps]
        for draft in drafts:
            tokens, tally = with_draft(model, draft, prompt, 13, context=context)
            assert tokens == expected
            assert tally.tokens == 13 and tally.accepted <= tally.proposed


@pytest.mark.parametrize("ffn", ["relu2", "conv"])
@pytest.mark.parametrize("attention", ATTENTION.names())
def test_all_kinds_of_caches(attention: str, ffn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also caches that cannot be rewound, or by few tokens only."""
    monkeypatch.setattr("minigpt.model.kv_cache.SPARE", 2)
    if (attention, ffn) == ("landmark", "conv"):  # an invalid design
        return
    small: dict[str, Any] = {"n_head": 2, "n_embd": 8, "block_size": 6}
    options = ATTENTION_OPTIONS[attention][0]
    model = random_model(
        tiny_config("rope", ffn, attention=attention, attention_options=options, **small)
    )
    steps = generate(model, [[1, 2]], 20, GREEDY, context="all")
    expected = [step[0] for step in steps]
    tallies: list[DraftStatistics] = []
    for noise in (0.05, 0.4):
        tokens, tally = with_draft(model, Draft(perturbed(model, noise), 4, "all"), [1, 2], 20)
        assert tokens == expected
        tallies.append(tally)
    assert 0 < sum(t.accepted for t in tallies) < sum(t.proposed for t in tallies)


def test_some_proposals_are_accepted_and_some_rejected() -> None:
    model = random_model(tiny_config("rope", block_size=BLOCK))
    _, tally = with_draft(model, Draft(perturbed(model, 0.05), 3, "all"), [1, 2], 60)
    assert 0.2 < (tally.acceptance_rate or 0) < 0.9


@pytest.mark.parametrize("n", [1, 2, 9, 10, 11])
def test_proposals_of_an_identical_draft_are_all_accepted(n: int) -> None:
    model = random_model(tiny_config("rope", block_size=BLOCK))
    widths: list[int] = []
    hook = model.token_embedding.register_forward_hook(
        lambda _module, inputs, _output: widths.append(inputs[0].shape[1])
    )
    tokens, tally = with_draft(model, Draft(perturbed(model, 0.0), 3, "all"), [1, 2], n)
    hook.remove()
    # The prompt's pass yields one token, each further pass four, the last pass the remainder.
    rounds = math.ceil((n - 1) / 4)
    remainder = n - 1 - 4 * (rounds - 1)
    assert widths == [2, *[4] * (rounds - 1), *[remainder] * (rounds > 0)]
    assert (tally.passes, tally.tokens, len(tokens)) == (1 + rounds, n, n)
    assert tally.accepted == tally.proposed == n - 1 - rounds
    assert tally.acceptance_rate == (1.0 if tally.proposed else None)


# --- distributions of the model and the draft


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.7, top_k=6, top_p=0.9),
        Sampling(temperature=1.5, min_p=0.02, repetition_penalty=1.5),
    ],
)
@pytest.mark.parametrize("scheme", POSITIONAL.names())
def test_verified_distributions_equal_full_passes(
    scheme: str, sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model(tiny_config(scheme, block_size=BLOCK))
    draft = Draft(perturbed(model, 0.5), 3, 6)

    def check(prompt: list[int], context: int) -> DraftStatistics:
        text = list(prompt)

        def compare_and_verify(
            p: Tensor, q: Tensor, tokens: list[int], generator: torch.Generator
        ) -> list[int]:
            texts = [text + tokens[:n] for n in range(len(tokens) + 1)]
            ps = [distribution(model, t, sampling, context) for t in texts]
            qs = [distribution(draft.model, t, sampling, draft.max_context) for t in texts[:-1]]
            torch.testing.assert_close(p, torch.stack(ps), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(q, torch.stack(qs) if qs else p[:0], rtol=1e-5, atol=1e-6)
            new = verify(p, q, tokens, generator)
            text.extend(new)
            return new

        monkeypatch.setattr(speculative, "verify", compare_and_verify)
        tally = DraftStatistics()
        tokens = speculate(
            model, draft, prompt, 12, sampling, seed=3, context=context, statistics=tally
        )
        text.append(next(tokens))  # the model samples the first token, so it is not verified
        generated = [*text, *tokens]
        assert generated == text and tally.tokens == 12
        return tally

    tallies = [check([1], 7), check([1, 2, 3, 4, 5], 8), check([5] * 9, 4)]
    assert 0 < sum(t.accepted for t in tallies) < sum(t.proposed for t in tallies)


# --- distribution of the generated texts


def chi_square_z(counts: Counter[Any], expected: dict[Any, float]) -> float:
    """Return how many standard deviations Pearson's chi-square statistic is above its mean.

    Outcomes with an expected count below five are merged.
    """
    n = counts.total()
    if any(expected[outcome] == 0 for outcome in counts):
        return math.inf
    cells = [(counts[outcome], n * p) for outcome, p in expected.items() if n * p >= 5]
    rest = n - sum(p for _, p in cells)
    if rest >= 5:
        cells.append((n - sum(count for count, _ in cells), rest))
    freedom = len(cells) - 1
    chi_square = sum((count - p) ** 2 / p for count, p in cells)
    return (chi_square - freedom) / math.sqrt(2 * freedom)


def accept_all(p: Tensor, q: Tensor, tokens: list[int], generator: torch.Generator) -> list[int]:
    """Accept every proposal, which is wrong."""
    return [*tokens, int(torch.multinomial(p[-1], 1, generator=generator))]


def resample_from_p(
    p: Tensor, q: Tensor, tokens: list[int], generator: torch.Generator
) -> list[int]:
    """Resample rejected tokens from p, which is wrong: it has to be max(p - q, 0)."""
    new = verify(p, q, tokens, generator)
    n_accepted = len(new) - 1
    return [*new[:-1], int(torch.multinomial(p[n_accepted], 1, generator=generator))]


def accept_with_p(p: Tensor, q: Tensor, tokens: list[int], generator: torch.Generator) -> list[int]:
    """Accept tokens with probability p, which is wrong: it has to be p / q."""
    return verify(p, torch.ones_like(q), tokens, generator)


WRONG_RULES: list[Verify] = [accept_all, resample_from_p, accept_with_p]


def pair_z(rule: Verify) -> float:
    """Return chi_square_z of the first two tokens after two proposals, from 4000 trials."""
    rows = torch.tensor([[1.0, 4.0, 2.0, 0.0], [3.0, 3.0, 0.0, 1.0], [1.0, 1.0, 1.0, 5.0]])
    p = (rows / rows.sum(-1, keepdim=True)).float()
    q = torch.tensor([[0.4, 0.2, 0.1, 0.3], [0.0, 0.3, 0.3, 0.4]]).float()
    generator = seeded(1)
    counts: Counter[tuple[int, int]] = Counter()
    for _ in range(4000):
        proposed = torch.multinomial(q, 1, generator=generator)[:, 0].tolist()
        new = rule(p, q, proposed, generator)
        if len(new) == 1:  # sample the second token, as the next round would
            new.append(int(torch.multinomial(p[1], 1, generator=generator)))
        counts[new[0], new[1]] += 1
    return chi_square_z(
        counts, {(i, j): float(p[0, i] * p[1, j]) for i in range(4) for j in range(4)}
    )


def test_verified_tokens_follow_the_model_distribution() -> None:
    assert pair_z(verify) < 3


@pytest.mark.parametrize("rule", WRONG_RULES)
def test_wrong_rules_change_the_token_distribution(rule: Verify) -> None:
    assert pair_z(rule) > 10


def test_equal_distributions_keep_every_token() -> None:
    p = torch.tensor([0.3, 0.0, 0.7]).float().expand(4, -1)
    for seed in range(50):
        assert verify(p, p[:-1], [0, 2, 2], seeded(seed))[:3] == [0, 2, 2]
    lower = torch.tensor([0.3, 0.0, 0.69]).float().expand(4, -1)  # max(p - q, 0) is zero
    samples = {tuple(verify(lower, p[:-1], [2, 2, 2], seeded(seed))) for seed in range(300)}
    assert min(map(len, samples)) < 4 and all(1 not in tokens for tokens in samples)


def text_z(sampling: Sampling, context: int | None, n: int) -> float:
    """Return chi_square_z of n texts of four tokens from two different models.

    The first token is left out: the model samples it without the draft.
    """
    model = random_model(tiny_config("alibi", n_layer=1, block_size=BLOCK), n_vocab=3)
    draft_model = random_model(tiny_config("rope", n_layer=1, n_embd=6), n_vocab=3)
    model.head.weight.mul_(2.5)
    draft_model.head.weight.mul_(2.5)
    draft = Draft(draft_model, 2, "all" if context is None else context)
    prompt = [1, 0]
    expected: defaultdict[tuple[int, ...], float] = defaultdict(float)
    for tokens in itertools.product(range(3), repeat=4):
        p = 1.0
        for place, token in enumerate(tokens):
            text = [*prompt, *tokens[:place]]
            p *= float(distribution(model, text, sampling, context)[token])
        expected[tokens[1:]] += p
    counts = Counter(
        tuple(with_draft(model, draft, prompt, 4, sampling, context, seed)[0][1:])
        for seed in range(n)
    )
    return chi_square_z(counts, expected)


TRUNCATED = Sampling(temperature=1.3, top_p=0.9, repetition_penalty=1.4)


@pytest.mark.parametrize(("sampling", "context"), [(Sampling(), None), (TRUNCATED, 3)])
def test_texts_follow_the_model_distribution(sampling: Sampling, context: int | None) -> None:
    assert text_z(sampling, context, n=400) < 3


@pytest.mark.parametrize(("rule", "n"), [(accept_all, 150), (resample_from_p, 600)])
def test_wrong_rules_change_the_text_distribution(
    rule: Verify, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speculative, "verify", rule)
    assert text_z(Sampling(), None, n) > 6


def test_an_error_restores_the_training_mode() -> None:
    model = random_model(tiny_config("learned", block_size=BLOCK)).train()
    with pytest.raises(UserError, match=f"^--context={BLOCK + 1}: "):
        with_draft(model, Draft(model, 2, "all"), [1], 3, context=BLOCK + 1)
    assert model.training
