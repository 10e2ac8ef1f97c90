"""Training losses and gradients in code that torch.compile makes, compared with eager ones.

Each design is captured as one graph with its gradient and run without generating code; a few are
compiled to the end.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch._dynamo.exc import TorchDynamoException
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from minigpt.model import ModelConfig
from minigpt.model.ffn import FFN
from minigpt.model.norm import PLACEMENTS
from tests.model.contract import ATTENTION_IDS, ATTENTIONS, VARIANT_IDS, VARIANTS, variant_config
from tests.model.tiny import gradients, random_model, random_tokens, tiny_config

CAPTURED = "aot_eager_decomp_partition"
pytestmark = pytest.mark.usefixtures("float64")
OTHER: dict[str, dict[str, Any]] = {
    "layernorm": {"kind": "layernorm"},
    "tied": {"embedding": "tied"},
    "grouped queries": {"n_embd": 16, "n_head": 4, "n_kv_head": 2},
    "soft cap": {"logit_softcap": 5.0},
    "sdpa": {"backend": "sdpa"},
    "skips": {"n_layer": 4, "unet_skips": True, "value_residual": True},
    "gates and x0": {"head_gates": True, "value_residual": "x0"},
    "parallel": {"block": "parallel_shared", "bias": "qkv", "final_softcap": 2.0},
    "heads": {"head_size": 6, "qk_norm": "all_channels", "score_scale": 0.3, "placement": "output"},
}


def assert_equals_eager(
    config: ModelConfig, compiler: str = CAPTURED, documents: bool = False, length: int = 13
) -> None:
    """Assert that losses, metrics and gradients are equal up to the order of sums."""
    model = random_model(config).train()
    batch = [random_tokens(2, length), random_tokens(2, length, seed=1)]
    if documents:
        batch.append(random_tokens(2, length, 3, seed=2).sort(dim=1).values)
    torch.compiler.reset()
    compiled = torch.compile(model.training_loss, backend=compiler, fullgraph=True, dynamic=False)

    def results(loss: Any) -> tuple[Any, ...]:
        value, metrics = loss(*batch)
        return value.detach(), metrics, gradients(value, model)

    # The loss is computed in fp32 even if the weights are float64.
    torch.testing.assert_close(
        results(compiled), results(model.training_loss), rtol=1e-6, atol=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "options"), VARIANTS, ids=VARIANT_IDS)
def test_positional_schemes(scheme: str, options: Mapping[str, Any]) -> None:
    assert_equals_eager(variant_config(scheme, options))


@pytest.mark.slow
@pytest.mark.parametrize(("attention", "options"), ATTENTIONS, ids=ATTENTION_IDS)
def test_attentions(attention: str, options: Mapping[str, Any]) -> None:
    config = tiny_config(attention=attention, attention_options=options)
    assert_equals_eager(config, length=16)


@pytest.mark.slow
@pytest.mark.parametrize("ffn", sorted({*FFN.names()} - {"moe"}))
def test_feed_forward_layers(ffn: str) -> None:
    assert_equals_eager(tiny_config(ffn=ffn))


@pytest.mark.slow
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_norm_placements(placement: str) -> None:
    assert_equals_eager(tiny_config(placement=placement))


@pytest.mark.medium
@pytest.mark.parametrize("changes", OTHER.values(), ids=OTHER)
def test_other_options(changes: dict[str, Any]) -> None:
    assert_equals_eager(tiny_config(**changes))


@pytest.mark.medium
@pytest.mark.parametrize("scheme", ["rope", "t5", "cope"])
def test_packed_documents(scheme: str) -> None:
    assert_equals_eager(tiny_config(scheme), documents=True)


def test_expert_routing_cannot_be_captured() -> None:
    """Its shapes depend on data; `trainer.compile=auto` then trains eagerly."""
    with pytest.raises((TorchDynamoException, GuardOnDataDependentSymNode)):
        assert_equals_eager(tiny_config(ffn="moe"))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
@pytest.mark.parametrize("scheme", ["rope", pytest.param("relative", marks=pytest.mark.exhaustive)])
def test_generated_code(scheme: str) -> None:
    assert_equals_eager(tiny_config(scheme), "inductor")


def test_a_stored_table_has_the_gradient_of_the_table() -> None:
    x = torch.randn(3, requires_grad=True)
    torch.library.opcheck(torch.ops.minigpt.stored.default, (x,))
    batched = torch.func.vmap(torch.ops.minigpt.stored)(torch.arange(6.0).view(3, 2))
    assert batched.tolist() == torch.arange(6.0).view(3, 2).tolist()
