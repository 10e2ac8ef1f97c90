"""FLOPs per token against torch's count of the products of a real training step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from minigpt.model import GPT, ModelConfig
from minigpt.model.attention import ATTENTION
from minigpt.model.attention.performer import CHUNK
from minigpt.model.ffn import FFN
from tests.model.contract import VARIANT_IDS, VARIANTS
from tests.model.reference import ATTENTION_OPTIONS
from tests.model.tiny import N_VOCAB, random_tokens, tiny_config

BATCH = 3
SIZES: dict[str, Any] = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 64}


def counted(config: ModelConfig, batch: int = BATCH) -> float:
    """Return the FLOPs per token of the products in a step, forward and backward."""
    torch.manual_seed(0)
    model, tokens = GPT(config, N_VOCAB).train(), random_tokens(batch, config.block_size + 1)
    with FlopCounterMode(display=False) as counter:
        model.training_loss(tokens[:, :-1], tokens[:, 1:])[0].backward()
    return counter.get_total_flops() / (batch * config.block_size)


def said(config: ModelConfig, batch: int = BATCH) -> int:
    """Return what the model says of itself."""
    return GPT(config, N_VOCAB).flops_per_token(batch)


@pytest.mark.parametrize(("scheme", "options"), VARIANTS, ids=VARIANT_IDS)
@pytest.mark.parametrize("batch", [1, BATCH])
def test_flops_of_schemes(scheme: str, options: dict[str, Any], batch: int) -> None:
    config = tiny_config(scheme, options=options, **SIZES)
    assert said(config, batch) == round(counted(config, batch))


@pytest.mark.parametrize(
    ("attention", "options"),
    [(name, options) for name in ATTENTION.names() for options in ATTENTION_OPTIONS[name]],
)
def test_flops_of_attentions(attention: str, options: dict[str, Any]) -> None:
    """The counter includes the masked keys of patterns, which eager attention computes."""
    length = 3 * CHUNK if attention == "performer" else 64
    sizes: dict[str, Any] = SIZES | {"block_size": length}
    config = tiny_config(attention=attention, attention_options=options, **sizes)
    model, masked = GPT(config, N_VOCAB), 0.0
    for each in model.attention_by_layer:
        if each.uses_backend:
            masked += 12 * config.n_embd * (length - each.keys_per_query(length))
    assert said(config) + masked == pytest.approx(counted(config), rel=1e-3)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("ffn", FFN.names())
def test_flops_of_feed_forward_layers(ffn: str, bias: bool) -> None:
    config = tiny_config("learned", ffn, bias=bias, **SIZES)
    # In one window no expert gets more tokens than ROWS, beyond which it pads them.
    assert said(config, 1) == round(counted(config, 1))


@pytest.mark.parametrize(
    "changes",
    [
        {"n_kv_head": 2, "qk_norm": False},
        {"value_residual": True, "unet_skips": True, "logit_softcap": 5.0},
        {"value_residual": "x0", "head_gates": True, "n_kv_head": 2},
        {"embedding": "tied", "vocab_multiple": 64},
        {"placement": "peri", "kind": "layernorm", "residual_init": "scaled"},
        {"head_size": 12, "n_kv_head": 2, "qk_norm": "all_channels", "score_scale": 1.0},
        {"block": "parallel_shared", "placement": "peri", "bias": "qkv", "final_softcap": 5.0},
        {"n_layer": 0},
    ],
    ids=str,
)
def test_flops_of_other_options(changes: dict[str, Any]) -> None:
    both: dict[str, Any] = {**SIZES, **changes}
    config = tiny_config("learned", "gelu", **both)
    assert said(config) == round(counted(config))


@pytest.mark.parametrize("scheme", ["cope", "integrated", "relative"])
def test_flops_of_schemes_with_larger_heads(scheme: str) -> None:
    config = tiny_config(scheme, head_size=12, **SIZES)
    assert said(config) == round(counted(config))


@pytest.mark.parametrize("attention", ["landmark", "performer"])
def test_flops_of_attentions_with_larger_heads(attention: str) -> None:
    options = ATTENTION_OPTIONS[attention][0]
    sizes: dict[str, Any] = SIZES | {"block_size": 3 * CHUNK}
    config = tiny_config(attention=attention, attention_options=options, head_size=12, **sizes)
    assert said(config) == pytest.approx(counted(config), rel=1e-3)
