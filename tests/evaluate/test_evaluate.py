"""Windows and batches of a split, evaluation, sampling and generation."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import fmean

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from minigpt.config.compose import composed_config
from minigpt.data.corpus import TextCorpus
from minigpt.data.tokens import Split, TokenData
from minigpt.errors import UserError
from minigpt.evaluate import loss as evaluate_module
from minigpt.evaluate.loss import Evaluation, evaluate, evaluate_at_context, perplexity
from minigpt.inference.generate import (
    Sampling,
    apply_repetition_penalty,
    generate,
    stop_at,
    stream_text,
)
from minigpt.model import GPT, ModelConfig
from minigpt.runtime import Runtime
from minigpt.tokenizer import TOKENIZERS, Tokenizer

CPU = Runtime("cpu", "", "fp32", "")
N_VOCAB = 13
TEXT = "naïve €5 👩‍👩‍👧 ok"  # one to four bytes per character, several characters per emoji


@cache
def tiny_config(name: str) -> ModelConfig:
    """Return a small config of a model preset."""
    model = composed_config([f"model={name}"]).model
    small = {"n_layer": min(2, model.n_layer), "n_head": 2, "n_embd": 8, "block_size": 8}
    return replace(model, **small)


def tiny_model(name: str = "rope", n_vocab: int = N_VOCAB, dropout: float = 0.0) -> GPT:
    """Return a small model with random parameters."""
    model = GPT(replace(tiny_config(name), dropout=dropout), n_vocab)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=1.0, generator=generator)
    return model


def tiny_split(n_tokens: int, n_vocab: int = N_VOCAB) -> Split:
    """Return a validation split of random tokens."""
    generator = torch.Generator().manual_seed(n_tokens)
    tokens = torch.randint(n_vocab, (n_tokens,), dtype=torch.int32, generator=generator)
    return Split("val", tokens, target_bytes=2 * (n_tokens - 1))


def seeded(seed: int = 0) -> torch.Generator:
    """Return a seeded generator."""
    return torch.Generator().manual_seed(seed)


def counting_split(n_tokens: int) -> Split:
    """Return a split whose token i is i, so that a window shows its offset."""
    return Split("train", torch.arange(n_tokens, dtype=torch.int32), n_tokens - 1)


# --- windows and random batches


@given(
    n_blocks=st.integers(0, 5),
    beyond=st.integers(-1, 2),
    block_size=st.integers(1, 9),
    batch_size=st.integers(1, 4),
)
def test_windows_contain_each_target_once_in_order(
    n_blocks: int, beyond: int, block_size: int, batch_size: int
) -> None:
    n_tokens = max(2, n_blocks * block_size + beyond)
    split = counting_split(n_tokens)
    batches = [*split.windows(block_size, batch_size)]
    for batch in batches:
        assert batch.inputs.dtype == batch.targets.dtype == torch.int64
        assert batch.inputs.shape[0] <= batch_size and 1 <= batch.inputs.shape[1] <= block_size
        assert batch.document_ids is None
    assert all(batch.inputs.shape[1] == block_size for batch in batches[:-1])
    inputs = torch.cat([batch.inputs.flatten() for batch in batches])
    targets = torch.cat([batch.targets.flatten() for batch in batches])
    assert targets.tolist() == [*range(1, n_tokens)]
    assert inputs.tolist() == [*range(n_tokens - 1)]


@given(block_size=st.integers(1, 9), extra=st.integers(1, 6), seed=st.integers(0, 2**32))
def test_random_batches_reach_every_window(block_size: int, extra: int, seed: int) -> None:
    split = counting_split(block_size + extra)
    batch = split.draw(500, block_size, seeded(seed))
    assert batch.inputs.shape == (500, block_size) and batch.inputs.dtype == torch.int64
    assert torch.equal(batch.inputs, batch.inputs[:, :1] + torch.arange(block_size))
    assert torch.equal(batch.targets, batch.inputs + 1)
    assert {*batch.inputs[:, 0].tolist()} == {*range(extra)}
    assert batch.targets.max() == len(split.tokens) - 1


@pytest.mark.parametrize(("n_context", "n_targets"), [(1, 10), (3, 10), (10, 10), (3, 4)])
def test_loss_at_an_exact_context(
    monkeypatch: pytest.MonkeyPatch, n_context: int, n_targets: int
) -> None:
    monkeypatch.setattr(evaluate_module, "N_TARGETS", n_targets)
    model, split, tokenizer = tiny_model("alibi"), tiny_split(20), gpt2_tokenizer()
    last = len(split.tokens) - 1
    targets = [round(10 + i * (last - 10) / (n_targets - 1)) for i in range(n_targets)]
    losses = []
    for target in targets:
        context = split.tokens[target - n_context : target].long()[None]
        losses.append(-model(context)[0, -1].log_softmax(-1)[split.tokens[target].long()].item())
    result = evaluate_at_context(model, split, tokenizer, CPU, n_context)
    assert result.loss == pytest.approx(fmean(losses), rel=1e-5)
    n_bytes = sum(len(tokenizer.token_bytes(int(split.tokens[target]))) for target in targets)
    assert result.bits_per_byte == pytest.approx(sum(losses) / math.log(2) / n_bytes, rel=1e-5)
    assert len(result.by_position) == 1


def test_random_batches_depend_only_on_the_generator() -> None:
    split = tiny_split(100)
    first = split.draw(4, 8, seeded(1)).inputs
    torch.randn(3)  # the global generator has no effect
    assert torch.equal(split.draw(4, 8, seeded(1)).inputs, first)
    assert not torch.equal(split.draw(4, 8, seeded(2)).inputs, first)


def test_head_of_a_split() -> None:
    split = Split("val", torch.arange(10), target_bytes=30)
    head = split.head(4)
    assert head.tokens.tolist() == [0, 1, 2, 3] and head.target_bytes == 12
    assert split.head(99).tokens.tolist() == [*range(10)] and split.head(99).target_bytes == 30
    assert head.document_ids is None and split.document_lengths.tolist() == [10]


def test_require_block() -> None:
    data = TokenData(counting_split(20), tiny_split(9))
    data.require_block(8)
    with pytest.raises(UserError, match=r"^model\.block_size=9: the val split has only 9 tokens"):
        data.require_block(9)


# --- evaluation


def summed_nats(model: GPT, tokens: Tensor, block_size: int) -> float:
    """Return the summed cross-entropy, computed one window and one token at a time."""
    nats = 0.0
    for first in range(0, len(tokens) - 1, block_size):
        window = tokens[first : first + block_size + 1].long()
        logits = model(window[None, :-1])[0].double()
        for row, target in zip(logits, window[1:], strict=True):
            nats += (row.logsumexp(0) - row[target]).item()
    return nats


@pytest.mark.parametrize("n_tokens", [2, 8, 9, 10, 100])
@pytest.mark.parametrize("name", ["rope", "learned"])
def test_evaluation_equals_a_loop(name: str, n_tokens: int) -> None:
    model, split = tiny_model(name).eval(), tiny_split(n_tokens)
    with torch.no_grad():
        nats = summed_nats(model, split.tokens, block_size=8)
    result = evaluate(model, split, CPU)
    assert result.loss == pytest.approx(nats / (n_tokens - 1), rel=1e-5)
    assert result.bits_per_byte == pytest.approx(nats / math.log(2) / split.target_bytes, rel=1e-5)
    assert result.perplexity == pytest.approx(math.exp(nats / (n_tokens - 1)), rel=1e-4)


@pytest.mark.parametrize("length", [1, 3, 8, 20, 99, 100])
def test_loss_by_position_equals_a_loop(length: int) -> None:
    model, split = tiny_model("alibi").eval(), tiny_split(100)
    losses: list[list[float]] = [[] for _ in range(min(length, 99))]
    with torch.no_grad():
        for first in range(0, 99, length):
            window = split.tokens[first : first + length + 1].long()
            rows = model(window[None, :-1])[0].log_softmax(-1)
            for place, (row, target) in enumerate(zip(rows, window[1:], strict=True)):
                losses[place].append(-row[target].item())
    result = evaluate(model, split, CPU, length)
    assert result.by_position == pytest.approx([sum(at) / len(at) for at in losses], rel=1e-5)
    assert result.loss == pytest.approx(sum(map(sum, losses)) / 99, rel=1e-5)


@pytest.mark.parametrize("length", [1, 5, 8, 99])
@pytest.mark.parametrize("name", ["fire", "cope"])
def test_documents_are_evaluated_separately(name: str, length: int) -> None:
    """Each document of each window is one forward pass; positions restart in each document."""
    model = tiny_model(name).eval()
    documents = tiny_split(100, n_vocab=2).tokens.cumsum(0, dtype=torch.int32)  # of 1 to 7 tokens
    split = replace(tiny_split(100), document_ids=documents)
    losses: list[list[float]] = [[] for _ in range(length)]
    with torch.no_grad():
        for first in range(0, 99, length):
            window = split.tokens[first : first + length + 1].long()
            of_inputs = documents[first : first + length][: len(window) - 1].tolist()
            for document in {*of_inputs}:
                begin = of_inputs.index(document)
                end = begin + of_inputs.count(document)
                rows = model(window[None, begin:end])[0].log_softmax(-1)
                for place, row in enumerate(rows):
                    losses[place].append(-row[window[begin + place + 1]].item())
    nonempty = [at for at in losses if at]
    result = evaluate(model, split, CPU, length)
    assert result.by_position == pytest.approx([sum(at) / len(at) for at in nonempty], rel=1e-5)
    assert result.loss == pytest.approx(sum(map(sum, nonempty)) / 99, rel=1e-5)
    assert evaluate(model, split, CPU, length) == result
    if length > 1:
        assert result.loss != evaluate(model, tiny_split(100), CPU, length).loss


def test_evaluation_beyond_the_last_position_raises() -> None:
    model = tiny_model("learned").train()
    with pytest.raises(UserError, match=r"^model\.positional\.name=learned: has 8 positions"):
        evaluate(model, tiny_split(100), CPU, 9)
    assert model.training


def test_evaluation_does_not_depend_on_the_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    model, split = tiny_model(), tiny_split(1000)
    at_once = evaluate(model, split, CPU)
    for n_logits in (1, 3 * 8 * N_VOCAB):
        monkeypatch.setattr(evaluate_module, "NUMBERS_AT_ONCE", n_logits)
        assert evaluate(model, split, CPU).loss == pytest.approx(at_once.loss, rel=1e-6)


def test_evaluation_does_not_depend_on_the_number_of_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bit by bit; an error leaves the number as it was."""
    monkeypatch.setattr(evaluate_module, "TOKENS_IN_CACHE", 16)
    model, split, before = tiny_model(), tiny_split(1000), torch.get_num_threads()

    def fail(amount: float) -> None:
        raise RuntimeError(amount)

    try:
        results, progress = [], list[list[float]]()
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            progress.append([])
            results.append(evaluate(model, split, CPU, progress=progress[-1].append))
            with pytest.raises(RuntimeError, match="16"):
                evaluate(model, split, CPU, progress=fail)
            assert torch.get_num_threads() == threads
        assert results[0] == results[1] == results[2]
        assert progress[0] == progress[1] == progress[2] and sum(progress[0]) == 999
    finally:
        torch.set_num_threads(before)


def test_evaluation_is_deterministic_and_restores_the_mode() -> None:
    model, split = tiny_model(dropout=0.5), tiny_split(50)
    result = evaluate(model.train(), split, CPU)
    assert model.training and model.blocks.training
    assert evaluate(model.eval(), split, CPU) == result
    assert not model.training and not model.blocks.training
    assert evaluate(tiny_model(), split, CPU) == result  # without dropout


def test_bits_per_byte_of_a_uniform_model(tmp_path: Path) -> None:
    corpus = TextCorpus(text="ab€é😀bé", n_train=2)  # validation: 3 + 2 + 4 + 1 + 2 bytes
    config = TOKENIZERS.options("char")(name="char")
    tokenizer = TOKENIZERS.variant("char").create(config, corpus.text, corpus.n_train, tmp_path)
    split = corpus.tokens(tokenizer, tmp_path).val
    assert split.target_bytes == 2 + 4 + 1 + 2
    model = tiny_model("bigram", tokenizer.n_vocab)
    nn.init.zeros_(model.head.weight)  # a uniform distribution: log2(5) bits per character
    result = evaluate(model, split, CPU)
    assert result.loss == pytest.approx(math.log(5))
    assert result.bits_per_byte == pytest.approx(4 * math.log2(5) / 9)


def test_perplexity_overflows_to_infinity() -> None:
    assert perplexity(0.0) == 1.0
    assert perplexity(math.log(65)) == pytest.approx(65)
    assert perplexity(1000.0) == math.inf
    metrics = Evaluation(loss=1000.0, bits_per_byte=2.0, by_position=[1000.0]).metrics("val")
    assert metrics == {
        "val_loss": 1000.0,
        "val_perplexity": math.inf,
        "val_bits_per_byte": 2.0,
    }


# --- sampling


def truncated(probabilities: list[float], **options: float) -> list[float]:
    """Return the sampling distribution, rounded."""
    logits = torch.tensor([probabilities]).log()
    distribution = Sampling(**options).probabilities(logits)[0]  # type: ignore[arg-type]
    assert distribution.sum().item() == pytest.approx(1)
    return [round(p, 4) for p in distribution.tolist()]


def test_temperature_sharpens_and_flattens() -> None:
    assert truncated([0.8, 0.2], temperature=1.0) == [0.8, 0.2]
    assert truncated([0.8, 0.2], temperature=0.5) == [round(16 / 17, 4), round(1 / 17, 4)]
    assert truncated([0.8, 0.2], temperature=2.0) == [round(2 / 3, 4), round(1 / 3, 4)]


def test_top_k_keeps_the_most_probable_tokens() -> None:
    assert truncated([0.1, 0.4, 0.2, 0.3], top_k=2) == [0, round(4 / 7, 4), 0, round(3 / 7, 4)]
    assert truncated([0.1, 0.4, 0.2, 0.3], top_k=99) == [0.1, 0.4, 0.2, 0.3]


def test_top_p_keeps_the_minimal_set() -> None:
    assert truncated([0.1, 0.4, 0.2, 0.3], top_p=0.69) == [0, round(4 / 7, 4), 0, round(3 / 7, 4)]
    assert truncated([0.1, 0.4, 0.2, 0.3], top_p=0.71) == [0, round(4 / 9, 4), *(0.2222, 0.3333)]
    assert truncated([0.1, 0.4, 0.2, 0.3], top_p=0.01) == [0, 1, 0, 0]
    assert truncated([0.1, 0.4, 0.2, 0.3], top_p=1.0) == [0.1, 0.4, 0.2, 0.3]


def test_top_p_applies_after_top_k() -> None:
    # After top_k the probabilities are 4/7 and 3/7: 0.5 needs one token, 0.6 both.
    assert truncated([0.1, 0.4, 0.2, 0.3], top_k=2, top_p=0.5) == [0, 1, 0, 0]
    assert truncated([0.1, 0.4, 0.2, 0.3], top_k=2, top_p=0.6) == [0, 0.5714, 0, 0.4286]


@given(
    weights=st.lists(st.integers(1, 1000), min_size=1, max_size=20, unique=True),
    top_p=st.floats(0.01, 1),
)
def test_top_p_set_is_minimal(weights: list[int], top_p: float) -> None:
    logits = torch.tensor([weights]).float().log()
    kept = Sampling(top_p=top_p).probabilities(logits)[0] > 0
    sorted_probabilities = sorted((weight / sum(weights) for weight in weights), reverse=True)
    n_kept = int(kept.sum())
    assert kept[logits[0].topk(n_kept).indices].all()
    assert sum(sorted_probabilities[:n_kept]) >= top_p - 1e-5
    assert sum(sorted_probabilities[: n_kept - 1]) <= top_p + 1e-5


def test_min_p_is_relative_to_the_largest_probability() -> None:
    assert truncated([0.1, 0.4, 0.2, 0.3], min_p=0.6) == [0, round(4 / 7, 4), 0, round(3 / 7, 4)]
    assert truncated([0.1, 0.4, 0.2, 0.3], min_p=1.0) == [0, 1, 0, 0]
    assert truncated([0.1, 0.4, 0.2, 0.3], min_p=0.01) == [0.1, 0.4, 0.2, 0.3]
    # With this temperature the ratios are 1 : 16 : 4 : 9.
    assert truncated([0.1, 0.4, 0.2, 0.3], min_p=0.5, temperature=0.5) == [0, 0.64, 0, 0.36]


def test_repetition_penalty_lowers_repeated_tokens() -> None:
    logits = torch.tensor([[2.0, -2.0, 1.0, 0.5]])
    penalized = apply_repetition_penalty(logits, [[0, 1, 0]], 4.0)
    assert penalized.tolist() == [[0.5, -8.0, 1.0, 0.5]]
    assert logits.tolist() == [[2.0, -2.0, 1.0, 0.5]]
    greedy = Sampling(temperature=0, repetition_penalty=4.0)
    assert greedy.sample(logits, seeded(), [0]).item() == 2
    assert greedy.sample(logits, seeded(), []).item() == 0


def test_greedy_with_a_penalty_equals_a_loop() -> None:
    model = tiny_model("alibi").eval()
    text, penalty = [3, 1], 5.0
    with torch.no_grad():
        for _ in range(8):
            row = model(torch.tensor([text]))[0, -1].clone()
            for token in {*text}:
                row[token] = row[token] / penalty if row[token] > 0 else row[token] * penalty
            text.append(int(row.argmax()))
    assert continued(model, [3, 1], 8, Sampling(0.0, repetition_penalty=penalty)) == text[2:]


@example(["ab", "c"], ["abc", "b"])
@example(["abc"], ["abc", "b"])
@given(st.lists(st.text("abc", max_size=4)), st.lists(st.text("abc", min_size=1), max_size=3))
def test_stop_texts_match_across_pieces(pieces: list[str], stops: list[str]) -> None:
    text = "".join(pieces)
    ends = [(text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text]
    end = min(ends)[1] if ends else len(text)
    assert "".join(stop_at(pieces, stops)) == text[:end]


def test_text_before_a_possible_stop_is_streamed() -> None:
    streamed = stop_at(iter(["one\n", "two\n", "\n", "three"]), ["\n\n"])
    assert [*streamed] == ["one", "\ntwo", ""]


def test_rows_are_truncated_independently() -> None:
    logits = torch.tensor([[0.9, 0.1], [0.5, 0.5]]).log()
    distributions = Sampling(top_p=0.8).probabilities(logits)
    torch.testing.assert_close(distributions, torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
    assert Sampling().sample(logits, seeded()).shape == (2, 1)
    assert Sampling(temperature=0).sample(logits, seeded()).shape == (2, 1)


def test_samples_follow_the_distribution() -> None:
    logits = torch.tensor([0.1, 0.6, 0.3]).log().expand(20000, -1)
    frequencies = Sampling().sample(logits, seeded()).flatten().bincount() / 20000
    torch.testing.assert_close(frequencies, torch.tensor([0.1, 0.6, 0.3]), rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "--temperature=-1.0: "),
        ({"top_k": 0}, "--top-k=0: "),
        ({"top_p": 0.0}, "--top-p=0.0: "),
        ({"top_p": 1.1}, "--top-p=1.1: "),
        ({"min_p": 0.0}, "--min-p=0.0: "),
        ({"repetition_penalty": 0.0}, "--repetition-penalty=0.0: "),
    ],
)
def test_sampling_rejects_invalid_options(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        Sampling(**options)  # type: ignore[arg-type]


# --- generation


def continued(
    model: GPT,
    prompt: list[int],
    n: int,
    sampling: Sampling,
    seed: int = 0,
    context: int | None = None,
) -> list[int]:
    """Return the new tokens after a prompt."""
    steps = generate(
        model, [prompt], n, sampling, seed=seed, context="all" if context is None else context
    )
    return [token for [token] in steps]


@pytest.mark.parametrize("context", [None, 8, 5])
@pytest.mark.parametrize("name", ["rope", "learned", "sinusoidal", "nope", "alibi", "bigram"])
def test_greedy_equals_repeated_argmax(name: str, context: int | None) -> None:
    model = tiny_model(name).eval()
    tokens = [3, 1, 4]
    visible = context or model.positional.max_length or 99
    with torch.no_grad():
        for _ in range(12):  # exceeds block_size
            logits = model(torch.tensor([tokens[-visible:]]))
            tokens.append(int(logits[0, -1].argmax()))
    greedy = Sampling(temperature=0)
    assert continued(model, [3, 1, 4], 12, greedy, context=context) == tokens[3:]
    assert continued(model, [3, 1, 4], 12, greedy, 1, context) == tokens[3:]
    assert continued(model, [3, 1, 4], 12, Sampling(top_k=1), context=context) == tokens[3:]
    assert continued(model, [3, 1, 4], 12, Sampling(top_p=1e-6), context=context) == tokens[3:]


def test_generation_depends_only_on_the_seed() -> None:
    model = tiny_model()
    text = continued(model, [0], 30, Sampling(), seed=1)
    torch.randn(3)  # the global generator has no effect
    assert continued(model, [0], 30, Sampling(), seed=1) == text
    assert continued(model, [0], 30, Sampling(), seed=2) != text
    assert len(text) == 30 and all(0 <= token < N_VOCAB for token in text)


@pytest.mark.parametrize("name", ["rope", "learned"])
def test_long_prompts_are_truncated_to_the_context(name: str) -> None:
    model = tiny_model(name)
    prompt = [i % N_VOCAB for i in range(20)]
    text = continued(model, prompt, 12, Sampling(), context=8)
    assert text == continued(model, prompt[-8:], 12, Sampling(), context=8)
    assert text != continued(model, prompt[:8], 12, Sampling(), context=8)
    unlimited = continued(model, prompt, 12, Sampling())
    assert (unlimited == text) == (model.positional.max_length == 8)


def test_batched_prompts_equal_separate_prompts() -> None:
    model, greedy = tiny_model(), Sampling(temperature=0)
    prompts = [[3, 1, 4], [1], [5, 9, 2, 6]]
    steps = [*generate(model, prompts, 12, greedy, context="all")]
    assert [len(step) for step in steps] == [3] * 12
    for row, prompt in enumerate(prompts):
        assert [step[row] for step in steps] == continued(model, prompt, 12, greedy)


def test_generation_disables_dropout_and_restores_the_mode() -> None:
    expected = continued(tiny_model(), [0], 9, Sampling(temperature=0))
    model = tiny_model(dropout=0.5).train()
    tokens = generate(model, [[0]], 9, Sampling(temperature=0), context="all")
    assert next(tokens) == [expected[0]]
    assert model.training and model.blocks.training  # also between tokens
    assert [*tokens] == [[token] for token in expected[1:]]
    assert model.training
    assert continued(model.eval(), [0], 9, Sampling(temperature=0)) == expected
    assert not model.training


def test_generation_on_a_cpu_uses_fp32() -> None:
    model, dtypes = tiny_model(), set[torch.dtype]()
    model.head.register_forward_hook(lambda _module, _inputs, logits: dtypes.add(logits.dtype))
    bf16 = replace(CPU, precision="bf16")
    assert len([*generate(model, [[0]], 9, runtime=bf16)]) == 9
    assert dtypes == {torch.float32}


@cache
def gpt2_tokenizer() -> Tokenizer:
    """Return the GPT-2 tokenizer."""
    config = TOKENIZERS.options("gpt2")(name="gpt2")
    return TOKENIZERS.variant("gpt2").create(config, "", 0, Path("unused"))


def test_stream_joins_the_bytes_of_a_character() -> None:
    tokenizer = gpt2_tokenizer()
    tokens = tokenizer.encode(TEXT)
    pieces = [*stream_text(tokenizer, tokens)]
    assert "".join(pieces) == TEXT
    assert "�" not in "".join(pieces)
    assert "" in pieces[:-1]  # nothing is printed before the last byte of an emoji
    assert [*stream_text(tokenizer, [])] == [""]


def test_stream_prints_an_incomplete_last_character() -> None:
    tokenizer = gpt2_tokenizer()
    tokens = tokenizer.encode("ok 😀")[:-1]
    pieces = [*stream_text(tokenizer, tokens)]
    assert "".join(pieces) == tokenizer.decode(tokens)
    assert pieces[-1] == "�"


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_stream_equals_the_decoded_text(text: str) -> None:
    tokenizer = gpt2_tokenizer()
    assert "".join(stream_text(tokenizer, tokenizer.encode(text))) == text
