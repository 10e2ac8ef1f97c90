"""Assertions that every positional scheme has to pass on every backend.

test_mutations.py also runs them on broken schemes, where they have to fail.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.model import GPT, ModelConfig
from minigpt.model.attention import ATTENTION
from minigpt.model.backends import BackendConfig
from minigpt.model.bias import AttentionBias
from minigpt.model.kv_cache import KVCache
from minigpt.model.positional import POSITIONAL
from tests.model.reference import (
    ATTENTION_OPTIONS,
    OPTIONS,
    POSITIONS,
    Positions,
    reference_logits,
    reference_loss,
)
from tests.model.tiny import (
    N_VOCAB,
    default_dtype,
    gradients,
    random_model,
    random_tokens,
    tiny_config,
)

SCHEMES = POSITIONAL.names()
RELATIVE = [name for name in SCHEMES if POSITIONS.get(name, Positions).relative]
# Every scheme with its default options and with those of OPTIONS.
VARIANTS = [(name, options) for name in SCHEMES for options in ({}, *OPTIONS.get(name, []))]
VARIANT_IDS = ["-".join(map(str, (name, *options.values()))) for name, options in VARIANTS]
# Every attention with each of its options in ATTENTION_OPTIONS.
ATTENTIONS = [
    (name, options) for name in ATTENTION.names() for options in ATTENTION_OPTIONS.get(name, [{}])
]
ATTENTION_IDS = ["-".join(map(str, (name, *options.values()))) for name, options in ATTENTIONS]
TRAINABLE = ["eager", "blockwise", "sdpa"]  # backends with a backward pass on CPUs

Results = tuple[Tensor, dict[str, Tensor]]
"""Logits, and the gradient of every parameter."""
_expected: dict[str, Results] = {}
Lengths = tuple[int, ...] | None
"""One number per row, see `Stack.hidden` and `Memory`."""
SOURCE_LENGTH = 4


def assert_equal(actual: Any, expected: Any) -> None:
    """Assert that tensors, or dicts of tensors, are equal up to the order of float64 sums."""
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


# Lengths of the documents packed into each row of a batch.
DOCUMENT_LENGTHS = ((3, 1, 6, 1, 2), (1, 12), (13,), (12, 1), (1,) * 13)


def random_target_loss(logits: Tensor) -> Tensor:
    """Return the loss of random targets in the logits' dtype; GPT.loss computes in fp32."""
    targets = random_tokens(*logits.shape[:2], seed=1).to(logits.device)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def model_with_backend(config: ModelConfig, backend: str) -> GPT:
    """Return a random model that uses an attention backend."""
    return random_model(replace(config, backend=BackendConfig(backend)))


def variant_config(scheme: str, options: Mapping[str, Any], **changes: Any) -> ModelConfig:
    """Return a config with a head size of 8, which is valid for every variant."""
    return tiny_config(scheme, options=options, **{"n_embd": 24, **changes})


def source_of(config: ModelConfig, batch: int) -> Tensor | None:
    """Return random tokens (b, s) for the encoder beside a decoder, if there is one."""
    if config.encoder is None:
        return None
    return random_tokens(batch, SOURCE_LENGTH, seed=2)


def not_padding(config: ModelConfig, tokens: Tensor, lengths: Lengths) -> Tensor:
    """Return the mask (b, t) of tokens that are not padding of an encoder."""
    if config.architecture != "encoder" or lengths is None:
        return torch.ones_like(tokens, dtype=torch.bool)
    return torch.arange(tokens.shape[1]) < torch.tensor(lengths)[:, None]


def logits_of(
    model: GPT,
    tokens: Tensor,
    positions: Tensor | None = None,
    lengths: Lengths = None,
    source: Tensor | None = None,
    **rest: Any,
) -> Tensor:
    """Return logits; `lengths` are those of the source, if there is one."""
    n = None if lengths is None else torch.tensor(lengths)
    if source is None:
        return model(tokens, positions, lengths=n, **rest)
    return model(tokens, positions, memory=model.encode(source, n), **rest)


def expected_results(
    config: ModelConfig,
    model: GPT,
    tokens: Tensor,
    positions: Tensor,
    lengths: Lengths,
    source: Tensor | None,
) -> Results:
    """Return the reference's results, cached by config and inputs."""
    config = replace(config, backend=BackendConfig("auto"))
    key = repr((config, tokens.tolist(), positions.tolist(), lengths))
    if key not in _expected:
        weights = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        parts = (weights, N_VOCAB, tokens, positions, lengths, source)
        logits = reference_logits(config, *parts)
        targets, text = random_tokens(*tokens.shape, seed=1), not_padding(config, tokens, lengths)
        loss = reference_loss(logits[text][None], targets[text][None])
        _expected[key] = logits.detach(), gradients(loss, model)
    return _expected[key]


def assert_equals_reference(
    config: ModelConfig, backend: str, length: int, per_row: bool, lengths: Lengths = None
) -> None:
    """Assert that logits and, if the backend has them, gradients equal those of reference.py.

    `lengths`: of the prefixes, of the tokens before padding, or of the sources of both rows.
    """
    with default_dtype(torch.float64):
        model, tokens = model_with_backend(config, backend), random_tokens(2, length)
        arange = torch.arange(length)
        positions = torch.stack((2 * arange, arange + 5)) if per_row else arange.expand(2, -1)
        source = source_of(config, 2)
        parts = (tokens, positions, lengths, source)
        expected, expected_grads = expected_results(config, model, *parts)
        with torch.set_grad_enabled(backend in TRAINABLE):
            logits = logits_of(model, tokens, positions if per_row else None, lengths, source)
        text = not_padding(config, tokens, lengths)
        assert_equal(logits[text].detach(), expected[text])
        if logits.requires_grad:
            losses = F.cross_entropy(logits[text], random_tokens(2, length, seed=1)[text])
            assert_equal(gradients(losses, model), expected_grads)


def assert_causal(config: ModelConfig, backend: str) -> None:
    """Assert that changing the tokens from index 5 on changes only the logits from index 5 on."""
    model, tokens = model_with_backend(config, backend), random_tokens(1, 9)
    changed_tokens = tokens.clone()
    changed_tokens[:, 5:] = (changed_tokens[:, 5:] + 3) % N_VOCAB
    with torch.no_grad():
        before, after = model(tokens), model(changed_tokens)
    torch.testing.assert_close(after[:, :5], before[:, :5])
    assert not torch.allclose(after[:, 5:], before[:, 5:])


@torch.no_grad()
def assert_shift_invariant(config: ModelConfig, backend: str) -> None:
    """Assert that the logits do not depend on absolute positions."""
    with default_dtype(torch.float64):
        model, tokens = (
            model_with_backend(replace(config, block_size=1024), backend),
            random_tokens(2, 9),
        )
        for shift in (1, 1000):
            assert_equal(model(tokens, torch.arange(9)[None] + shift), model(tokens))


@torch.no_grad()
def assert_shift_dependent(config: ModelConfig, backend: str) -> None:
    """Assert that the logits depend on absolute positions."""
    model, tokens = model_with_backend(config, backend), random_tokens(2, 9)
    shifted = model(tokens, torch.arange(9)[None] + 3)
    assert not torch.allclose(shifted, model(tokens), atol=1e-3)


@torch.no_grad()
def depends_on_gaps(config: ModelConfig, backend: str) -> bool:
    """Return whether the logits change if the last position grows and the order stays the same."""
    with default_dtype(torch.float64):
        model, tokens = model_with_backend(config, backend), random_tokens(1, 9)
        with_gap = model(tokens, torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 12]]))
        difference = (with_gap - model(tokens))[:, -1].abs().max()
        assert not 1e-10 < difference < 1e-3, "too large for rounding, too small for a dependence"
        return difference.item() > 1e-3


@torch.no_grad()
def assert_positions_default_to_arange(config: ModelConfig, backend: str) -> None:
    """Assert that the causal path equals the path for explicit positions."""
    with default_dtype(torch.float64):
        model, tokens = model_with_backend(config, backend), random_tokens(2, 9)
        for positions in (torch.arange(9)[None], torch.arange(9).expand(2, -1)):
            assert_equal(model(tokens, positions), model(tokens))


@torch.no_grad()
def assert_positions_are_per_row(config: ModelConfig, backend: str) -> None:
    """Assert that each row of a batch uses only its own positions."""
    with default_dtype(torch.float64):
        model, tokens = model_with_backend(config, backend), random_tokens(3, 5)
        positions = torch.tensor([[0, 1, 2, 3, 4], [11, 12, 13, 14, 15], [1, 2, 4, 8, 15]])
        batched = model(tokens, positions)
        for row in range(3):
            single = model(tokens[row : row + 1], positions[row : row + 1])
            assert_equal(batched[row], single[0])


@torch.no_grad()
def assert_order_follows_positions(config: ModelConfig, backend: str) -> None:
    """Assert that permuting tokens together with their positions permutes the logits."""
    with default_dtype(torch.float64):
        model, tokens = model_with_backend(config, backend), random_tokens(2, 6)
        order = torch.tensor([3, 0, 5, 1, 4, 2])
        assert_equal(model(tokens[:, order], order[None]), model(tokens)[:, order])


@torch.no_grad()
def assert_cached_equals_full(config: ModelConfig, backend: str) -> None:
    """Assert that a prefill of four tokens and five decoding steps equal one full pass."""
    with default_dtype(torch.float64):
        model, tokens = model_with_backend(config, backend), random_tokens(2, 9)
        cache = KVCache(2, 12, torch.device("cpu"))
        parts = [model(tokens[:, :4], cache=cache)]
        for p in range(4, 9):
            parts.append(model(tokens[:, p : p + 1], torch.full((1, 1), p), cache))
        assert_equal(torch.cat(parts, dim=1), model(tokens))


def assert_packed_equals_separate(
    config: ModelConfig, backend: str, first_position: int = 0, lengths: Lengths = None
) -> None:
    """Assert that packed documents give the logits and gradients of separate forward passes.

    `lengths`: of the prefix of each document of a row.
    """
    with default_dtype(torch.float64):
        model, eager = model_with_backend(config, backend), model_with_backend(config, "eager")
        tokens = random_tokens(len(DOCUMENT_LENGTHS), sum(DOCUMENT_LENGTHS[0]))
        row_ids = torch.stack([document_ids(lengths) for lengths in DOCUMENT_LENGTHS])
        offsets = [torch.cat([torch.arange(n) for n in lengths]) for lengths in DOCUMENT_LENGTHS]
        positions = torch.stack(offsets) + first_position
        rows = []
        for index, sizes in enumerate(DOCUMENT_LENGTHS):
            row, row_positions = tokens[index].split(sizes), positions[index].split(sizes)
            own = None if lengths is None else lengths[index : index + 1]
            documents = zip(row, row_positions, strict=True)
            parts = [logits_of(eager, part[None], at[None], own)[0] for part, at in documents]
            rows.append(torch.cat(parts))
        separate = torch.stack(rows)
        with torch.set_grad_enabled(backend in TRAINABLE):
            places = positions if first_position else None
            packed = logits_of(model, tokens, places, lengths, document_ids=row_ids)
        assert_equal(packed.detach(), separate.detach())
        if packed.requires_grad:
            expected_grads = gradients(random_target_loss(separate), eager)
            assert_equal(gradients(random_target_loss(packed), model), expected_grads)


def document_ids(lengths: tuple[int, ...]) -> Tensor:
    """Return the document id of each token; the ids are not consecutive."""
    return torch.tensor([5 + 3 * k for k, n in enumerate(lengths) for _ in range(n)])


@torch.no_grad()
def assert_dense_equals_score_mod(config: ModelConfig) -> None:
    """Assert that the dense bias equals score_mod at every unmasked pair, and that it is additive.

    Lengths are shorter than and equal to the block size, positions ascending and not.
    """
    with default_dtype(torch.float64):
        model = random_model(config)
        for length in (1, 2, 5, config.block_size):
            arange, shape = torch.arange(length)[None], (2, config.n_head, length, length)
            generator = torch.Generator().manual_seed(length)
            q, k = torch.randn(2, *shape[:3], config.shape.head_size, generator=generator)
            both_orders = torch.cat((arange, arange.flip(-1)))
            for positions, in_order in ((arange, True), (arange, False), (both_orders, False)):
                bias = AttentionBias(
                    model.positional, config.n_head, positions, positions, in_order
                )
                masked = positions[:, None, :, None] < positions[:, None, None]
                for layer in range(config.n_layer):
                    score_mod = bias.score_mod(q, k, layer)
                    scores = torch.randn(shape, generator=generator)
                    index = torch.meshgrid(*map(torch.arange, shape), indexing="ij")
                    modified = scores if score_mod is None else score_mod(scores, *index)
                    dense = bias.dense(q, k, layer).expand(shape)
                    assert_equal(dense, (modified - scores).masked_fill(masked, -torch.inf))


@torch.no_grad()
def assert_bias_depends_on_is_correct(config: ModelConfig) -> None:
    """Assert that `bias_depends_on` states exactly what score_mod depends on."""
    model, positions = random_model(config), torch.arange(6)[None]
    scheme = model.positional

    def dense_bias(seed: int, layer: int) -> Tensor | None:
        generator = torch.Generator().manual_seed(seed)
        q, k = torch.randn(2, 2, config.n_head, 6, config.shape.head_size, generator=generator)
        if scheme.score_mod(q, k, positions, positions, layer) is None:
            return None
        return AttentionBias(scheme, config.n_head, positions, positions, True).dense(q, k, layer)

    first, other_content, other_layer = dense_bias(0, 0), dense_bias(1, 0), dense_bias(0, 1)
    if first is None or other_content is None or other_layer is None:
        actual = "nothing"
    elif not torch.equal(first, other_content):
        actual = "content"
    else:
        actual = "positions" if torch.equal(first, other_layer) else "layer"
    assert scheme.bias_depends_on == actual
    assert scheme.overrides("score_mod") == (actual != "nothing")


def assert_only_vectors_decay(config: ModelConfig) -> None:
    """Assert that weight decay applies to matrices and tables of vectors, not to scalar biases."""
    model = GPT(config, N_VOCAB)
    names = {id(p): name for name, p in model.named_parameters()}
    vectors = {config.n_embd, config.shape.head_size}
    expected = {
        name
        for name, p in model.named_parameters()
        if p.ndim >= 2 and (not name.startswith("positional.") or p.shape[-1] in vectors)
    }
    assert {names[id(p)] for p in model.decayed_parameters()} == expected
