"""Objectives against loops over tokens: inputs, targets, weights, and the losses of models."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from minigpt.data.tokens import Batch, Split
from minigpt.errors import UserError
from minigpt.evaluate.loss import evaluate, objective_batches
from minigpt.model import GPT
from minigpt.objective import OBJECTIVES, Objective
from minigpt.objective.base import parts
from minigpt.objective.spans import random_spans, span_counts
from minigpt.ranks import ALONE
from minigpt.runtime import Runtime
from minigpt.tokenizer.char import CharTokenizer
from tests.model.tiny import default_dtype, gradients, random_model, tiny_config

TOKENIZER = CharTokenizer("abcdefgéü€🙂")
N = TOKENIZER.n_vocab
LENGTHS = range(1, 41)
# The options of each objective that the tests try.
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "causal": [{}],
    "prefix": [{}],
    "masked": [
        {"fraction": 0.15, "span": 1.0, "masked": 0.8, "random": 0.1},
        {"fraction": 0.4, "span": 3.0, "masked": 1.0, "random": 0.0},
        {"fraction": 0.99, "span": 1.0, "masked": 0.0, "random": 0.5},
    ],
    "denoise": [
        {"fraction": fraction, "span": span}
        for fraction, span in itertools.product((0.01, 0.15, 0.5, 0.9, 0.99), (1.0, 1.5, 3.0, 10.0))
    ],
}
CASES = [(name, options) for name, variants in OPTIONS.items() for options in variants]
CASE_IDS = ["-".join(map(str, (name, *options.values()))) for name, options in CASES]
FIRST = [(name, variants[0]) for name, variants in OPTIONS.items() if name != "denoise"]
FIRST.append(("denoise", {"fraction": 0.4, "span": 2.0}))
each_case = pytest.mark.parametrize(("name", "options"), CASES, ids=CASE_IDS)
each_objective = pytest.mark.parametrize(
    ("name", "options"), FIRST, ids=[name for name, _ in FIRST]
)
masked_cases = pytest.mark.parametrize("options", OPTIONS["masked"], ids=str)
denoise_cases = pytest.mark.parametrize("options", OPTIONS["denoise"], ids=str)


def objective_of(name: str, options: dict[str, Any], block_size: int = 40) -> Objective:
    config = OBJECTIVES.options(name)(name=name, **options)
    return OBJECTIVES.build(config, TOKENIZER, block_size)


def windows_of(n: int, length: int, seed: int = 0) -> Batch:
    """Return n windows of random tokens, with the next tokens as targets."""
    tokens = torch.randint(N, (n, length + 1), generator=seeded(seed))
    return Batch(tokens[:, :-1], tokens[:, 1:], None)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model_of(objective: Objective, block_size: int = 40, **changes: Any) -> GPT:
    """Return a random model for an objective."""
    config = tiny_config(
        "relative_bias",
        architecture=objective.architecture,
        n_special_tokens=objective.n_special(objective.config, block_size),
        block_size=block_size,
        **changes,
    )
    return random_model(config, N)


def fields_of(batch: Batch) -> dict[str, Tensor]:
    return {name: x for name, x in vars(batch).items() if x is not None}


# --- all objectives


def test_every_objective_is_tested() -> None:
    assert {*OPTIONS} == {*OBJECTIVES.names()}, "give the new objective options in OPTIONS"


@each_case
def test_draws_are_about_windows_and_apply_is_pure(name: str, options: dict[str, Any]) -> None:
    """Draws have a row per window; rows are applied independently; nothing is changed in place."""
    objective, windows = objective_of(name, options), windows_of(6, 17)
    draws = objective.draw(6, 17, seeded())
    assert all(len(x) == 6 for x in draws.values())
    before = [x.clone() for x in (windows.inputs, windows.targets, *draws.values())]
    whole = fields_of(objective.apply(windows, draws))
    after = (windows.inputs, windows.targets, *draws.values())
    assert all(map(torch.equal, before, after))
    again = objective.draw(6, 17, seeded())
    assert all(torch.equal(draws[key], again[key]) for key in draws)
    for row in range(6):
        own = Batch(windows.inputs[row : row + 1], windows.targets[row : row + 1], None)
        alone = objective.apply(own, {key: x[row : row + 1] for key, x in draws.items()})
        for key, x in fields_of(alone).items():
            assert torch.equal(x, whole[key][row : row + 1]), key


@each_case
def test_weights_have_mean_one(name: str, options: dict[str, Any]) -> None:
    objective = objective_of(name, options)
    for length in LENGTHS:
        draws = objective.draw(5, length, seeded(length))
        weights = objective.apply(windows_of(5, length), draws).weights
        assert (weights is None) == (name in ("causal", "denoise"))
        if weights is not None:
            assert weights.mean().item() == pytest.approx(1, abs=1e-5)


@each_case
def test_a_window_of_one_token(name: str, options: dict[str, Any]) -> None:
    objective = objective_of(name, options)
    batch = objective.apply(windows_of(3, 1), objective.draw(3, 1, seeded()))
    model = model_of(objective)
    loss, _ = model.training_loss(*batch.tensors)
    assert loss.isfinite() and loss > 0
    assert all(grad.isfinite().all() for grad in gradients(loss, model).values())


@pytest.mark.parametrize("n", [1, 2, 3, 6])
@each_objective
def test_micro_batches_give_the_loss_and_gradients_of_the_whole(
    name: str, options: dict[str, Any], n: int
) -> None:
    with default_dtype(torch.float64):
        objective, windows = objective_of(name, options, 9), windows_of(6, 9)
        model, draws = model_of(objective, 9), objective.draw(6, 9, seeded())
        whole, _ = model.training_loss(*objective.apply(windows, draws).tensors)
        expected = gradients(whole, model)
        total = torch.zeros(())
        split = zip(windows.inputs.chunk(n), windows.targets.chunk(n), parts(draws, n), strict=True)
        for inputs, targets, own in split:
            batch = objective.apply(Batch(inputs, targets, None), own)
            total = total + model.training_loss(*batch.tensors)[0] / n
    tolerance: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-7}  # weights are float32
    torch.testing.assert_close(total, whole, **tolerance)
    torch.testing.assert_close(gradients(total, model), expected, **tolerance)


@each_objective
def test_evaluation_does_not_depend_on_the_batch_size(name: str, options: dict[str, Any]) -> None:
    objective = objective_of(name, options, 9)
    tokens = torch.randint(N, (9 * 7 + 5,), generator=seeded(), dtype=torch.int32)
    split = Split("val", tokens, 100)  # 7 windows, and one of 4 tokens

    def of_size(size: int) -> list[dict[str, Tensor]]:
        batches = [fields_of(b) for b in objective_batches(split, objective, 9, size, ALONE)]
        rows = [
            {key: x[row : row + 1] for key, x in batch.items()}
            for batch in batches
            for row in range(len(batch["inputs"]))
        ]
        assert len(rows) == 8
        return rows

    expected = of_size(100)
    assert len({str(row["inputs"].tolist()) for row in expected}) == 8
    for size in (1, 2, 3, 7):
        for row, expected_row in zip(of_size(size), expected, strict=True):
            assert row.keys() == expected_row.keys()
            assert all(torch.equal(row[key], expected_row[key]) for key in row), size


@each_objective
def test_evaluation_equals_a_loop(name: str, options: dict[str, Any]) -> None:
    objective = objective_of(name, options, 9)
    model, runtime = model_of(objective, 9), Runtime("cpu", "", "fp32", "")
    tokens = torch.randint(N, (9 * 4 + 8,), generator=seeded(), dtype=torch.int32)
    lengths = [len(TOKENIZER.token_bytes(token)) for token in tokens.tolist()]
    split = Split("val", tokens, sum(lengths[1:]))
    nats, of_text, n, n_bytes = 0.0, 0.0, 0, 0
    for batch in objective_batches(split, objective, 9, 1, ALONE):
        rest: dict[str, Any] = {"lengths": batch.lengths}
        if batch.source is not None:
            rest = {"memory": model.encode(batch.source)}
        log_p = model(batch.inputs, **rest)[0].log_softmax(-1)
        for t, target in enumerate(batch.targets[0].tolist()):
            if batch.weights is None or batch.weights[0, t] > 0:
                nats -= log_p[t, target].item()
                n += 1
                if target < N:
                    of_text -= log_p[t, target].item()
                    n_bytes += len(TOKENIZER.token_bytes(target))
    evaluation = evaluate(model, split, runtime, objective=objective)
    assert evaluation.loss == pytest.approx(nats / n, rel=1e-5)
    assert evaluation.bits_per_byte == pytest.approx(of_text / math.log(2) / n_bytes, rel=1e-5)
    assert evaluation.loss_of == objective.loss_of


# --- causal


def test_causal_draws_nothing() -> None:
    objective, generator = objective_of("causal", {}), seeded()
    before, windows = generator.get_state(), windows_of(2, 5)
    assert objective.draw(2, 5, generator) == {}
    assert torch.equal(generator.get_state(), before)
    assert objective.apply(windows, {}) is windows
    assert objective.n_special(objective.config, 5) == 0


# --- prefix


def test_prefix_weights_equal_a_loop() -> None:
    objective = objective_of("prefix", {})
    for length in LENGTHS:
        windows, draws = windows_of(5, length), objective.draw(5, length, seeded(length))
        batch = objective.apply(windows, draws)
        assert batch.lengths is not None and batch.weights is not None
        assert torch.equal(batch.inputs, windows.inputs)
        assert torch.equal(batch.targets, windows.targets)
        # Target t is token t + 1 of the window: it counts unless it is in the prefix.
        counts = [[t + 1 >= n for t in range(length)] for n in batch.lengths.tolist()]
        factor = 5 * length / sum(map(sum, counts))
        expected = torch.tensor(counts) * factor
        torch.testing.assert_close(batch.weights, expected)
        assert all(1 <= n <= max(1, length - 1) for n in batch.lengths.tolist())


def test_prefix_lengths_are_uniform() -> None:
    lengths = objective_of("prefix", {}).draw(9000, 10, seeded())["lengths"]
    counts = lengths.bincount(minlength=11)
    assert counts[0] == counts[10] == 0
    # 1000 each, with a standard deviation of 30.
    assert (counts[1:10] - 1000).abs().max() < 150


def test_prefix_loss_is_the_mean_after_the_prefixes() -> None:
    objective, windows = objective_of("prefix", {}, 9), windows_of(4, 9)
    model, batch = model_of(objective, 9), objective.apply(windows, objective.draw(4, 9, seeded(2)))
    assert batch.lengths is not None and len(set(batch.lengths.tolist())) > 1
    losses = []
    for row, n in enumerate(batch.lengths.tolist()):
        logits = model(windows.inputs[row : row + 1], lengths=torch.tensor([n]))[0]
        targets = windows.targets[row]
        losses += [F.cross_entropy(logits[t], targets[t]) for t in range(9) if t + 1 >= n]
    loss, logged = model.training_loss(*batch.tensors)
    torch.testing.assert_close(loss, torch.stack(losses).mean())
    torch.testing.assert_close(logged["train_loss"], loss.detach())


def test_no_predicted_token_is_seen() -> None:
    """Changing a predicted token changes no loss before it, but that of itself."""
    objective, windows = objective_of("prefix", {}, 9), windows_of(1, 9)
    model = model_of(objective, 9)
    for n in range(1, 9):
        lengths = torch.tensor([n])
        for t in range(n - 1, 8):
            changed = windows.inputs.clone()
            changed[0, t + 1] = (changed[0, t + 1] + 1) % N
            before, after = (model(x, lengths=lengths)[0, t] for x in (windows.inputs, changed))
            torch.testing.assert_close(before, after)


def test_evaluations_have_half_of_each_window_as_prefix() -> None:
    objective, device = objective_of("prefix", {}), torch.device("cpu")
    for whole in (1, 2, 9, 40):
        for length in range(1, whole + 1):
            draws = objective.draws_of_evaluation(3, length, whole, device)
            n = max(1, whole // 2)
            assert draws["lengths"].tolist() == [n] * 3
            chosen = draws["weights"] > 0
            assert chosen.tolist() == [[t + 1 >= n for t in range(length)]] * 3


# --- masked


@masked_cases
def test_masked_windows_equal_a_loop(options: dict[str, Any]) -> None:
    objective = objective_of("masked", options)
    for length in LENGTHS:
        n_noise = max(1, min(length - 1, round(options["fraction"] * length)))
        windows, draws = windows_of(7, length), objective.draw(7, length, seeded(length))
        batch = objective.apply(windows, draws)
        assert torch.equal(batch.targets, windows.inputs) and batch.weights is not None
        for row in range(7):
            weights = batch.weights[row].tolist()
            chosen = [w > 0 for w in weights]
            assert sum(chosen) == n_noise
            expected = [length / n_noise * one for one in chosen]
            assert weights == pytest.approx(expected)
            for one, read, token in zip(
                chosen, batch.inputs[row].tolist(), windows.inputs[row].tolist(), strict=True
            ):
                assert read == token if not one else read <= N
            if options["span"] > 1:
                runs = [one for one, _ in itertools.groupby(chosen)]
                kept = length - n_noise
                assert runs.count(True) == max(1, min(round(n_noise / options["span"]), kept))


@masked_cases
def test_masked_and_random_tokens_are_binomial(options: dict[str, Any]) -> None:
    """Of the chosen tokens `masked` get the mask, `random` any token, within 5 standard errors."""
    objective, windows = objective_of("masked", options), windows_of(3000, 20)
    batch = objective.apply(windows, objective.draw(3000, 20, seeded()))
    assert batch.weights is not None
    chosen = batch.weights > 0
    read, token = batch.inputs[chosen], windows.inputs[chosen]
    n = len(read)

    def assert_share(count: Tensor, of: int, p: float) -> None:
        bound = 5 * math.sqrt(p * (1 - p) / of)
        assert abs(count.sum().item() / of - p) <= bound

    assert_share(read == N, n, options["masked"])
    changed = (read != N) & (read != token)
    assert_share(changed, n, options["random"] * (N - 1) / N)
    if options["random"] > 0:  # uniform over all tokens, whatever was there
        counts = read[changed].bincount(minlength=N)
        assert len(counts) == N
        for count in counts:
            assert_share(count, int(changed.sum()), 1 / N)
    if options["span"] == 1:  # each position as often
        for of_position in chosen.sum(0):
            assert_share(of_position, 3000, n / 3000 / 20)


# --- spans


def test_span_counts_equal_a_search() -> None:
    """Counts of every length fit into it, and never fall with the length."""
    for fraction, span in itertools.product((0.01, 0.15, 0.5, 0.9, 0.99), (1.0, 1.5, 3.0, 10.0)):
        before = (0, 0)
        for length in range(1, 300):
            n_noise, n_spans = span_counts(length, fraction, span)
            assert 1 <= n_spans <= n_noise <= max(1, length - 1)
            assert length == 1 or n_noise + n_spans <= length
            assert n_noise in (1, length - 1) or abs(n_noise - fraction * length) <= 0.5
            assert n_spans in (1, length - n_noise) or abs(n_spans - n_noise / span) <= 0.5
            assert n_noise >= before[0] and n_spans >= before[1]
            before = n_noise, n_spans


def test_random_spans_are_uniform() -> None:
    """4 tokens that stay in two parts, and 3 of noise: 3 x 2 ways, each as likely."""
    spans = random_spans(6000, 7, 3, 2, seeded())
    ways: dict[tuple[int, ...], int] = {}
    for row in spans.tolist():
        assert row == sorted(row) and {*row} == {0, 1, 2, 3}
        assert sum(number % 2 for number in row) == 3
        ways[tuple(row)] = ways.get(tuple(row), 0) + 1
    assert len(ways) == 6
    assert max(abs(count - 1000) for count in ways.values()) < 150  # 5 standard deviations


# --- denoise


def reconstructed(source: list[int], written: list[int]) -> list[int]:
    """Return the window that a source and what the decoder writes describe.

    `written` begins with the first sentinel, and ends with one that is not in the source.
    """
    spans: dict[int, list[int]] = {}
    for token in written:
        if token >= N:
            assert token == N + len(spans), "sentinels are in order"
            spans[token] = []
        else:
            spans[max(spans)].append(token)
    last = max(spans)
    assert spans.pop(last) == [], "nothing after the last sentinel"
    assert [token for token in source if token >= N] == [*spans], "one for each span, in order"
    assert all(spans.values()), "no span is empty"
    window: list[int] = []
    for token in source:
        window += spans[token] if token >= N else [token]
    return window


@denoise_cases
def test_source_and_targets_reconstruct_the_window(options: dict[str, Any]) -> None:
    objective = objective_of("denoise", options)
    n_special = objective.n_special(objective.config, 40)
    for length in LENGTHS:
        windows, draws = windows_of(9, length), objective.draw(9, length, seeded(length))
        batch = objective.apply(windows, draws)
        assert batch.source is not None and batch.weights is None and batch.lengths is None
        n_noise, n_spans = span_counts(length, options["fraction"], options["span"])
        assert batch.inputs.shape == batch.targets.shape == (9, n_noise + n_spans)
        assert batch.source.shape == (9, length - n_noise + n_spans)
        assert length == 1 or max(batch.inputs.shape[1], batch.source.shape[1]) <= length
        assert max(x.max() for x in (batch.source, batch.targets)) < N + n_special
        assert (batch.inputs[:, 0] == N).all() and (batch.targets[:, -1] == N + n_spans).all()
        assert torch.equal(batch.inputs[:, 1:], batch.targets[:, :-1])
        for row in range(9):
            source, targets = batch.source[row].tolist(), batch.targets[row].tolist()
            assert reconstructed(source, [N, *targets]) == windows.inputs[row].tolist()
            both = itertools.pairwise(source)
            assert not any(one >= N and other >= N for one, other in both), "spans are apart"


def test_denoise_special_tokens() -> None:
    """One sentinel per span and one more; the logits have a column for each."""
    for block_size, options, n in (
        (40, {"fraction": 0.15, "span": 3.0}, 3),
        (512, {"fraction": 0.15, "span": 3.0}, 27),
        (1, {"fraction": 0.15, "span": 3.0}, 2),
    ):
        objective = objective_of("denoise", options, block_size)
        assert objective.n_special(objective.config, block_size) == n
        assert model_of(objective, block_size, n_layer=1).n_vocab == N + n
        assert objective.token_bytes[N:].tolist() == [0.0] * n
        expected = [len(TOKENIZER.token_bytes(token)) for token in range(N)]
        assert objective.token_bytes[:N].tolist() == expected


def test_denoise_loss_equals_a_loop() -> None:
    objective, windows = (
        objective_of("denoise", {"fraction": 0.4, "span": 2.0}, 9),
        windows_of(3, 9),
    )
    model, batch = model_of(objective, 9), objective.apply(windows, objective.draw(3, 9, seeded()))
    assert batch.source is not None
    losses = []
    for source, inputs, targets in zip(batch.source, batch.inputs, batch.targets, strict=True):
        logits = model(inputs[None], memory=model.encode(source[None]))[0]
        losses += [F.cross_entropy(x, target) for x, target in zip(logits, targets, strict=True)]
    torch.testing.assert_close(model.training_loss(*batch.tensors)[0], torch.stack(losses).mean())
    torch.testing.assert_close(model.loss(*batch.tensors), torch.stack(losses).mean())


# --- options


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("masked", {"fraction": 0.0}, r"objective\.fraction=0\.0: must be above 0 and below 1"),
        ("masked", {"fraction": 1.0}, r"objective\.fraction=1\.0: must be above 0 and below 1"),
        ("masked", {"span": 0.5}, r"objective\.span=0\.5: must be 1 or more"),
        ("masked", {"masked": 1.5}, r"objective\.masked=1\.5: must be from 0 to 1"),
        ("masked", {"random": -0.1}, r"objective\.random=-0\.1: must be from 0 to 1"),
        (
            "masked",
            {"random": 0.3},
            r"objective\.random=0\.3: is with objective\.masked=0\.8 above",
        ),
        ("denoise", {"fraction": 1.0}, r"objective\.fraction=1\.0: must be above 0 and below 1"),
        ("denoise", {"span": 0.0}, r"objective\.span=0\.0: must be 1 or more"),
    ],
    ids=str,
)
def test_invalid_options_are_rejected(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        objective_of(name, OPTIONS[name][0] | changes)


def test_chunks_of_logits_have_the_weights_of_their_tokens() -> None:
    objective, windows = objective_of("masked", OPTIONS["masked"][0], 9), windows_of(3, 9)
    model, batch = model_of(objective, 9), objective.apply(windows, objective.draw(3, 9, seeded()))
    at_once = model.training_loss(*batch.tensors)[0]
    expected = gradients(at_once, model)
    model.max_logits = 5 * model.n_vocab
    in_chunks = model.training_loss(*batch.tensors)[0]
    torch.testing.assert_close(in_chunks, at_once)
    torch.testing.assert_close(gradients(in_chunks, model), expected)
