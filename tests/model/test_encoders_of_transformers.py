"""Comparison of encoders with Hugging Face models: BERT, and T5 with cross-attention.

Equal weights give equal hidden states, logits and gradients, also with padding. See
`test_transformers.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertModel, T5Config, T5ForConditionalGeneration

from minigpt.model import GPT, ModelConfig
from minigpt.model.backends import BACKENDS
from minigpt.model.kv_cache import KVCache
from tests.model.test_transformers import (
    HEADS,
    T5_NAMES,
    float64,
    hugging_face,
    table_of_biases,
    translated,
    unchanged,
)
from tests.model.tiny import N_VOCAB, composed_model, gradients, random_tokens

TOLERANCE: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}
WITH_LENGTHS = [name for name in BACKENDS if name != "flex"]  # whose heads have 16 channels
BERT_NAMES = {
    "bert.embeddings.word_embeddings.": "token_embedding.",
    "bert.embeddings.position_embeddings.": "positional.table.",
    "bert.embeddings.LayerNorm.": "embedding_norm.",
    "bert.encoder.layer.": "blocks.",
    ".attention.self.query.": ".self_attention.qkv.",
    ".attention.self.key.": ".self_attention.qkv.",
    ".attention.self.value.": ".self_attention.qkv.",
    ".attention.output.dense.": ".self_attention.out.",
    ".attention.output.LayerNorm.": ".attention_norm.",
    ".intermediate.dense.": ".ffn.up.",
    ".output.dense.": ".ffn.out.",
    ".output.LayerNorm.": ".ffn_norm.",
}
T5_DECODER_NAMES = (
    T5_NAMES
    | HEADS
    | {
        ".layer.1.layer_norm.": ".cross_attention_norm.",
        ".layer.1.EncDecAttention.q.": ".cross_attention.q.",
        ".layer.1.EncDecAttention.k.": ".cross_attention.kv.",
        ".layer.1.EncDecAttention.v.": ".cross_attention.kv.",
        ".layer.1.EncDecAttention.o.": ".cross_attention.out.",
        ".layer.2.layer_norm.": ".ffn_norm.",
        ".layer.2.DenseReluDense.wi.": ".ffn.up.",
        ".layer.2.DenseReluDense.wo.": ".ffn.out.",
    }
)


class NoTokenTypes(nn.Module):
    """BERT's table of token types, all zero."""

    def forward(self, token_types: Tensor) -> Tensor:
        return torch.zeros(())


class Bert(nn.Module):
    """BERT without token types and pooler, and a tied head without the transform before it."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config, self.bert = config, BertModel(config, add_pooling_layer=False)
        self.bert.embeddings.register_module("token_type_embeddings", NoTokenTypes())

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return hidden states and logits."""
        hidden = self.bert(tokens, attention_mask=mask).last_hidden_state
        return hidden, hidden @ self.bert.embeddings.word_embeddings.weight.T


def mask_of(lengths: Tensor | None, tokens: Tensor) -> Tensor:
    """Return Hugging Face's mask (b, t) of rows with `lengths`."""
    if lengths is None:
        return torch.ones_like(tokens)
    return (torch.arange(tokens.shape[1]) < lengths[:, None]).long()


@pytest.mark.parametrize("backend", WITH_LENGTHS)
@pytest.mark.parametrize("lengths", [None, torch.tensor([16, 5, 1])], ids=["whole", "padded"])
@pytest.mark.parametrize("n_head", [3, 4])
def test_bert(n_head: int, lengths: Tensor | None, backend: str) -> None:
    config = composed_model("model=bert")
    config = replace(config, n_layer=2, n_head=n_head, n_embd=8 * n_head, block_size=16)
    config = replace(config, n_special_tokens=0)  # N_VOCAB includes the mask
    with float64():
        theirs = hugging_face(
            Bert,
            BertConfig,
            hidden_size=config.n_embd,
            intermediate_size=config.ffn.hidden_width(config.n_embd),
            num_hidden_layers=config.n_layer,
            num_attention_heads=config.n_head,
            max_position_embeddings=config.block_size,
            hidden_act="gelu",
            layer_norm_eps=1e-12,
        )
        assert config.norm.eps == BertConfig().layer_norm_eps == 1e-12
        model = GPT(config, N_VOCAB).eval()
        weights = translated(theirs.state_dict(), BERT_NAMES, unchanged)
        model.load_state_dict(weights | {"head.weight": weights["token_embedding.weight"]})
        model.set_backend(BACKENDS[backend])
        tokens, targets = random_tokens(3, 16), random_tokens(3, 16, seed=1)
        real = mask_of(lengths, tokens).bool()  # outputs at padding differ, and mean nothing
        expected_hidden, expected = theirs(tokens, mask_of(lengths, tokens))
        hidden, logits = model.hidden(tokens, lengths=lengths), model(tokens, lengths=lengths)
        torch.testing.assert_close(hidden[real], expected_hidden[real], **TOLERANCE)
        torch.testing.assert_close(logits[real], expected[real], **TOLERANCE)
        grads = gradients(F.cross_entropy(logits[real], targets[real]), model)
        F.cross_entropy(expected[real], targets[real]).backward()
        their_grads = {name: parameter.grad for name, parameter in theirs.named_parameters()}
        expected_grads = translated(their_grads, BERT_NAMES, unchanged)
        torch.testing.assert_close(grads, expected_grads, **TOLERANCE)


def t5_tensors(
    tensors: Mapping[str, Tensor], config: ModelConfig, table_scale: float
) -> dict[str, Tensor]:
    """Return T5's tensors by minigpt's names, those of the token table times `table_scale`."""
    biases = table_of_biases(config)

    def convert(name: str, tensor: Tensor) -> Tensor:
        is_table = "embed_tokens" in name or "lm_head" in name
        return tensor * table_scale if is_table else biases(name, tensor)

    of_stack: dict[str, dict[str, Tensor]] = {"encoder": {}, "decoder": {}}
    for name, tensor in tensors.items():
        stack, _, rest = name.replace("shared.", "decoder.embed_tokens.").partition(".")
        if stack in of_stack:
            of_stack[stack][f"stack.{rest}"] = tensor
        else:
            of_stack["decoder"][name] = tensor
    ours = translated(of_stack["encoder"], T5_NAMES, convert)
    decoder = translated(of_stack["decoder"], T5_DECODER_NAMES, convert)
    return decoder | {f"encoder.{name}": tensor for name, tensor in ours.items()}


def t5_models(config: ModelConfig) -> tuple[GPT, Any]:
    """Return minigpt's model and Hugging Face's with the same function. Call within float64()."""
    assert config.encoder is not None
    positional = vars(config.positional)
    theirs = hugging_face(
        T5ForConditionalGeneration,
        T5Config,
        d_model=config.n_embd,
        d_kv=config.shape.head_size,
        d_ff=config.ffn.hidden_width(config.n_embd),
        num_layers=config.encoder.n_layer,
        num_decoder_layers=config.n_layer,
        num_heads=config.n_head,
        layer_norm_epsilon=config.norm.eps,
        relative_attention_num_buckets=positional["buckets"],
        relative_attention_max_distance=positional["max_distance"],
    )
    assert theirs.config.scale_decoder_outputs and config.embedding.scale
    model = GPT(config, N_VOCAB).eval()
    table_scale = 1 / math.sqrt(config.n_embd)
    model.load_state_dict(t5_tensors(theirs.state_dict(), config, table_scale))
    return model, theirs


def t5_config(*overrides: str, **changes: Any) -> ModelConfig:
    """Return the preset at a small size, with heads that do not add up to its width."""
    sizes = {"n_layer": 2, "n_head": 3, "n_embd": 24, "head_size": 10, "block_size": 64}
    config = composed_model("model=t5_encoder_decoder", *overrides)
    return replace(config, **{**sizes, "n_special_tokens": 0, **changes})


SMALL_BUCKETS = ("model.positional.buckets=8", "model.positional.max_distance=12")
T5_CASES = {
    "one encoder layer": (SMALL_BUCKETS, {"n_encoder_layer": 1}, (16, 11)),
    "three encoder layers": (SMALL_BUCKETS, {"n_encoder_layer": 3}, (7, 16)),
    # more tokens than the largest distance with a bucket of its own, and than block_size
    "default buckets": ((), {"block_size": 140}, (150, 145)),
}


@pytest.mark.parametrize("backend", WITH_LENGTHS)
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("case", T5_CASES)
def test_t5(case: str, padded: bool, backend: str) -> None:
    overrides, changes, (n_source, n_tokens) = T5_CASES[case]
    config = t5_config(*overrides, **changes)
    lengths = torch.tensor([n_source, 5, 1]) if padded else None
    source, tokens = random_tokens(3, n_source), random_tokens(3, n_tokens, seed=1)
    targets = random_tokens(3, n_tokens, seed=2)
    with float64():
        model, theirs = t5_models(config)
        model.set_backend(BACKENDS[backend])
        result = theirs(
            input_ids=source,
            attention_mask=mask_of(lengths, source),
            decoder_input_ids=tokens,
            labels=targets,
        )
        memory = model.encode(source, lengths)
        logits = model(tokens, memory=memory)
        real = mask_of(lengths, source).bool()  # outputs at padding differ, and mean nothing
        expected_hidden = result.encoder_last_hidden_state[real]
        torch.testing.assert_close(memory.hidden[real], expected_hidden, **TOLERANCE)
        torch.testing.assert_close(logits, result.logits, **TOLERANCE)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        if not padded:
            loss = model.loss(tokens, targets, source=source)
        torch.testing.assert_close(loss, result.loss, **TOLERANCE)
        grads = gradients(loss, model)
        result.loss.backward()
        their_grads = {name: parameter.grad for name, parameter in theirs.named_parameters()}
        expected = t5_tensors(their_grads, config, math.sqrt(config.n_embd))
        torch.testing.assert_close(grads, expected, **TOLERANCE)


@torch.no_grad()
def test_cached_steps_of_t5() -> None:
    """A prefill and steps give the logits of Hugging Face's cache."""
    lengths, source = torch.tensor([16, 5]), random_tokens(2, 16)
    tokens, end, past = random_tokens(2, 16, seed=1), 0, None
    with float64():
        model, theirs = t5_models(t5_config(*SMALL_BUCKETS))
        memory, cache = model.encode(source, lengths), KVCache(2, 16, torch.device("cpu"))
        for size in (6, 1, 1, 3):
            positions, end = torch.arange(end, end + size)[None], end + size
            part = tokens[:, positions[0]]
            options = {"attention_mask": mask_of(lengths, source), "past_key_values": past}
            expected = theirs(source, decoder_input_ids=part, use_cache=True, **options)
            past = expected.past_key_values
            logits = model(part, positions, cache, memory=memory)
            torch.testing.assert_close(logits, expected.logits, **TOLERANCE)
