"""What must hold of every positional scheme on every backend, as checks of a design.

A check raises AssertionError. The tests call them on the designs as they are, and on broken ones.
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
# Every scheme as configured, and with the other options.
VARIANTS = [(name, options) for name in SCHEMES for options in ({}, *OPTIONS.get(name, []))]
VARIANT_IDS = ["-".join(map(str, (name, *options.values()))) for name, options in VARIANTS]
# Every attention, with the options of the tests.
ATTENTIONS = [
    (name, options) for name in ATTENTION.names() for options in ATTENTION_OPTIONS.get(name, [{}])
]
ATTENTION_IDS = ["-".join(map(str, (name, *options.values()))) for name, options in ATTENTIONS]
TRAINABLE = ["eager", "sdpa"]  # on a CPU

Results = tuple[Tensor, dict[str, Tensor]]
"""Logits, and the gradient of every parameter."""
_expected: dict[str, Results] = {}


def assert_equal(actual: Any, expected: Any) -> None:
    """Equal but for the order of float64 sums. Tensors, or tensors by name."""
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


# Lengths of the documents of some rows.
PACKED = ((3, 1, 6, 1, 2), (1, 12), (13,), (12, 1), (1,) * 13)


def loss_of(logits: Tensor) -> Tensor:
    """A loss in the logits' own precision; GPT.loss has that of fp32."""
    targets = random_tokens(*logits.shape[:2], seed=1).to(logits.device)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def model_on(config: ModelConfig, backend: str) -> GPT:
    """A random model that computes attention with a backend."""
    return random_model(replace(config, backend=BackendConfig(backend)))


def variant_config(scheme: str, options: Mapping[str, Any], **changes: Any) -> ModelConfig:
    """A design whose heads of eight channels fit every variant."""
    return tiny_config(scheme, options=options, **{"n_embd": 24, **changes})


def expected_results(config: ModelConfig, model: GPT, tokens: Tensor, positions: Tensor) -> Results:
    """Those of the reference, computed once a design and length."""
    config = replace(config, backend=BackendConfig("auto"))
    key = repr((config, tokens.tolist(), positions.tolist()))
    if key not in _expected:
        weights = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        logits = reference_logits(config, weights, N_VOCAB, tokens, positions)
        loss = reference_loss(logits, random_tokens(*tokens.shape, seed=1))
        _expected[key] = logits.detach(), gradients(loss, model)
    return _expected[key]


def equals_reference(config: ModelConfig, backend: str, length: int, per_row: bool) -> None:
    """Logits and, where the backend has any, gradients are those of the loops in reference.py."""
    with default_dtype(torch.float64):
        model, tokens = model_on(config, backend), random_tokens(2, length)
        arange = torch.arange(length)
        positions = torch.stack((2 * arange, arange + 5)) if per_row else arange.expand(2, -1)
        expected, wanted = expected_results(config, model, tokens, positions)
        with torch.set_grad_enabled(backend in TRAINABLE):
            logits = model(tokens, positions if per_row else None)
        assert_equal(logits.detach(), expected)
        if logits.requires_grad:
            assert_equal(gradients(loss_of(logits), model), wanted)


def later_tokens_change_nothing(config: ModelConfig, backend: str) -> None:
    """Tokens from the sixth on change what the model says after them alone."""
    model, tokens = model_on(config, backend), random_tokens(1, 9)
    changed = tokens.clone()
    changed[:, 5:] = (changed[:, 5:] + 3) % N_VOCAB
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    torch.testing.assert_close(after[:, :5], before[:, :5])
    assert not torch.allclose(after[:, 5:], before[:, 5:])


@torch.no_grad()
def shift_changes_nothing(config: ModelConfig, backend: str) -> None:
    """The model sees no absolute position."""
    with default_dtype(torch.float64):
        model, tokens = model_on(replace(config, block_size=1024), backend), random_tokens(2, 9)
        for shift in (1, 1000):
            assert_equal(model(tokens, torch.arange(9)[None] + shift), model(tokens))


@torch.no_grad()
def shift_changes_something(config: ModelConfig, backend: str) -> None:
    """The model sees absolute positions."""
    model, tokens = model_on(config, backend), random_tokens(2, 9)
    shifted = model(tokens, torch.arange(9)[None] + 3)
    assert not torch.allclose(shifted, model(tokens), atol=1e-3)


@torch.no_grad()
def sees_gaps(config: ModelConfig, backend: str) -> bool:
    """Whether the last token's distance from the others shows, their order being the same."""
    with default_dtype(torch.float64):
        model, tokens = model_on(config, backend), random_tokens(1, 9)
        apart = model(tokens, torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 12]]))
        difference = (apart - model(tokens))[:, -1].abs().max()
        assert not 1e-10 < difference < 1e-3, "neither rounding nor a change"
        return difference.item() > 1e-3


@torch.no_grad()
def no_positions_mean_arange(config: ModelConfig, backend: str) -> None:
    """A backend's causal path and its path for given positions agree."""
    with default_dtype(torch.float64):
        model, tokens = model_on(config, backend), random_tokens(2, 9)
        for positions in (torch.arange(9)[None], torch.arange(9).expand(2, -1)):
            assert_equal(model(tokens, positions), model(tokens))


@torch.no_grad()
def each_row_has_its_positions(config: ModelConfig, backend: str) -> None:
    """Rows do not see each other's positions."""
    with default_dtype(torch.float64):
        model, tokens = model_on(config, backend), random_tokens(3, 5)
        positions = torch.tensor([[0, 1, 2, 3, 4], [11, 12, 13, 14, 15], [1, 2, 4, 8, 15]])
        together = model(tokens, positions)
        for row in range(3):
            alone = model(tokens[row : row + 1], positions[row : row + 1])
            assert_equal(together[row], alone[0])


@torch.no_grad()
def order_is_that_of_positions(config: ModelConfig, backend: str) -> None:
    """Shuffled tokens with their positions are the same text."""
    with default_dtype(torch.float64):
        model, tokens = model_on(config, backend), random_tokens(2, 6)
        shuffled = torch.tensor([3, 0, 5, 1, 4, 2])
        assert_equal(model(tokens[:, shuffled], shuffled[None]), model(tokens)[:, shuffled])


@torch.no_grad()
def cached_equals_full(config: ModelConfig, backend: str) -> None:
    """Four tokens at once and five one by one, from a cache, are the text in one pass."""
    with default_dtype(torch.float64):
        model, tokens = model_on(config, backend), random_tokens(2, 9)
        cache = KVCache(2, 12, torch.device("cpu"))
        parts = [model(tokens[:, :4], cache=cache)]
        for p in range(4, 9):
            parts.append(model(tokens[:, p : p + 1], torch.full((1, 1), p), cache))
        assert_equal(torch.cat(parts, dim=1), model(tokens))


def packed_equals_alone(config: ModelConfig, backend: str, first_position: int = 0) -> None:
    """Logits and gradients of rows of documents are those of each document run by itself."""
    with default_dtype(torch.float64):
        model, plain = model_on(config, backend), model_on(config, "eager")
        tokens = random_tokens(len(PACKED), sum(PACKED[0]))
        documents = torch.stack([ids(lengths) for lengths in PACKED])
        begins = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in PACKED])
        positions = begins + first_position
        rows = []
        for row, places, lengths in zip(tokens, positions, PACKED, strict=True):
            parts = zip(row.split(lengths), places.split(lengths), strict=True)
            rows.append(torch.cat([plain(part[None], at[None])[0] for part, at in parts]))
        alone = torch.stack(rows)
        with torch.set_grad_enabled(backend in TRAINABLE):
            packed = model(tokens, positions if first_position else None, document_ids=documents)
        assert_equal(packed.detach(), alone.detach())
        if packed.requires_grad:
            assert_equal(gradients(loss_of(packed), model), gradients(loss_of(alone), plain))


def ids(lengths: tuple[int, ...]) -> Tensor:
    """The document of each token, by ids that leave some out."""
    return torch.tensor([5 + 3 * k for k, n in enumerate(lengths) for _ in range(n)])


@torch.no_grad()
def dense_is_the_formula(config: ModelConfig) -> None:
    """The dense bias is score_mod at each pair that is not masked, and score_mod only adds.

    At lengths below and above a table's, in order and not.
    """
    with default_dtype(torch.float64):
        model = random_model(config)
        for length in (1, 2, 5, config.block_size):
            arange, shape = torch.arange(length)[None], (2, config.n_head, length, length)
            generator = torch.Generator().manual_seed(length)
            q, k = torch.randn(2, *shape[:3], config.shape.head_size, generator=generator)
            both_ways = torch.cat((arange, arange.flip(-1)))
            for positions, in_order in ((arange, True), (arange, False), (both_ways, False)):
                bias = AttentionBias(
                    model.positional, config.n_head, positions, positions, in_order
                )
                hidden = positions[:, None, :, None] < positions[:, None, None]
                for layer in range(config.n_layer):
                    score_mod = bias.score_mod(q, k, layer)
                    scores = torch.randn(shape, generator=generator)
                    index = torch.meshgrid(*map(torch.arange, shape), indexing="ij")
                    changed = scores if score_mod is None else score_mod(scores, *index)
                    dense = bias.dense(q, k, layer).expand(shape)
                    assert_equal(dense, (changed - scores).masked_fill(hidden, -torch.inf))


@torch.no_grad()
def score_is_truthful(config: ModelConfig) -> None:
    """A scheme's `bias_depends_on` is what its score_mod depends on, no more and no less."""
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


def bare_scores_do_not_decay(config: ModelConfig) -> None:
    """Weight decay pulls at matrices and tables of vectors alone."""
    model = GPT(config, N_VOCAB)
    names = {id(p): name for name, p in model.named_parameters()}
    vectors = {config.n_embd, config.shape.head_size}
    wanted = {
        name
        for name, p in model.named_parameters()
        if p.ndim >= 2 and (not name.startswith("positional.") or p.shape[-1] in vectors)
    }
    assert {names[id(p)] for p in model.decayed_parameters()} == wanted
