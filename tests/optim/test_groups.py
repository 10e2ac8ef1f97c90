"""Which parameters an optimizer decays, and which Muon orthogonalizes."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from minigpt.config.compose import composed_config
from minigpt.model import GPT
from minigpt.model.attention import ATTENTION
from minigpt.model.ffn import FFN
from minigpt.optim.optimizer import OPTIMIZERS, OptimizerConfig
from tests.model.tiny import composed_model

aten = torch.ops.aten
PRODUCTS = {aten.mm, aten.addmm, aten.bmm, aten.baddbmm}


class Used(TorchDispatchMode):
    """Records the storages of the tensors in matrix products, and in lookups of embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.in_products: set[int] = set()
        self.looked_up: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in PRODUCTS:  # the factors come last, after what is added
            self.in_products |= {x.untyped_storage().data_ptr() for x in args[-2:]}
        if func.overloadpacket is aten.embedding:
            self.looked_up.add(args[0].untyped_storage().data_ptr())
        return func(*args, **(kwargs or {}))


@cache
def optimizer_config(name: str) -> OptimizerConfig:
    """Return the default options of an optimizer, with weight decay."""
    return composed_config([f"optimizer={name}", "optimizer.weight_decay=0.5"]).optimizer


DESIGNS = [
    *([f"ffn={name}"] for name in FFN.names()),
    *([f"attention={name}"] for name in ATTENTION.names()),
    ["model=gpt2"],
    ["model=llama", "model.norm.kind=rmsnorm"],
    ["model.qk_norm=gain"],
    *([f"model={name}"] for name in ("gpt_neox", "falcon", "gemma", "olmo2")),
    ["model.value_residual=x0", "model.head_gates=true"],
    ["model.bias=true", "norm=peri", "model.value_residual=true", "model.unet_skips=true"],
]


@pytest.mark.parametrize("overrides", DESIGNS, ids=" ".join)
def test_only_matrices_of_products_are_decayed_and_orthogonalized(overrides: list[str]) -> None:
    """What a forward pass does with a parameter decides, not its shape or name."""
    sizes = ["model.n_layer=2", "model.n_embd=32", "model.n_head=2", "model.block_size=16"]
    model = GPT(composed_model(*overrides, *sizes), 65).train()
    tokens = torch.arange(32).view(2, 16)
    with Used() as used:
        model.loss(tokens, tokens)
    in_blocks = set(model.blocks.parameters())
    for name in OPTIMIZERS.names():
        optimizer = OPTIMIZERS.build(optimizer_config(name), model)
        groups = [(group, p) for group in optimizer.param_groups for p in group["params"]]
        assert len(groups) == len(list(model.parameters()))
        for group, parameter in groups:
            storage = parameter.untyped_storage().data_ptr()
            is_matrix = storage in used.in_products
            decayed = is_matrix or storage in used.looked_up
            assert group["weight_decay"] == (0.5 if decayed else 0.0), parameter.shape
            of_muon = name == "muon" and is_matrix and parameter in in_blocks
            assert ("ns_steps" in group) == of_muon, parameter.shape
