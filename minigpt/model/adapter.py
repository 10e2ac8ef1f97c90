"""Adapters: few new parameters that are trained in place of a model's weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minigpt.errors import UserError, require, require_at_least
from minigpt.model.gpt import GPT
from minigpt.model.linear import Linear
from minigpt.registry import Registry


@dataclass
class AdapterConfig:
    """Options of every adapter."""

    name: str


class Adapter(ABC):
    """A way to train a model by new parameters, which are in modules of class `LoRALinear`."""

    @abstractmethod
    def attach(self, model: GPT) -> None:
        """Add the new parameters to a model in place, and freeze all others. Raises UserError."""


ADAPTERS: Registry[Adapter] = Registry("adapter", "adapter", "minigpt.model.adapter")


@ADAPTERS.register("none", AdapterConfig)
class NoAdapter(Adapter):
    """All weights are trained."""

    def __init__(self, config: AdapterConfig) -> None:
        pass

    def attach(self, model: GPT) -> None:
        pass


@dataclass
class LoRAConfig(AdapterConfig):
    """`rank`: of the update of each matrix. `alpha`: the update is multiplied by alpha / rank.

    `dropout`: of the adapter's input. `targets`: names of linear layers, such as qkv, or
    self_attention.out if several have the last part of a name.
    """

    rank: int
    alpha: float
    dropout: float
    targets: list[str]

    def __post_init__(self) -> None:
        require_at_least(1, "adapter", self, "rank")
        require(self.alpha > 0, "adapter.alpha", self.alpha, "must be above 0")
        require(0 <= self.dropout < 1, "adapter.dropout", self.dropout, "must be in [0, 1)")
        require(bool(self.targets), "adapter.targets", "[]", "name at least one linear layer")


@ADAPTERS.register("lora", LoRAConfig)
class LoRA(Adapter):
    """Low-rank adapters (Hu et al. 2021): W x + (alpha / rank) B A dropout(x), with W frozen.

    A (rank, in) starts as torch initialises linear layers, B (out, rank) at zero, so that training
    starts from the model as it is.
    """

    def __init__(self, config: LoRAConfig) -> None:
        self.config = config

    def attach(self, model: GPT) -> None:
        targets = self.targets_of(model)
        model.requires_grad_(False)
        for name in targets:
            parent, _, child = name.rpartition(".")
            linear = model.get_submodule(name)
            assert isinstance(linear, Linear)
            rank, width = self.config.rank, min(linear.in_features, linear.out_features)
            why = f"above the width {width} of {name}; use at most that, or other adapter.targets"
            require(rank <= width, "adapter.rank", rank, why)
            setattr(model.get_submodule(parent), child, LoRALinear(linear, self.config))

    def targets_of(self, model: GPT) -> list[str]:
        """Return the full names of the target layers. Raises UserError if a target names none."""
        names = [name for name, part in model.named_modules() if isinstance(part, Linear)]
        if model.head.weight is model.token_embedding.weight:
            names.remove("head")  # its matrix is also the token table
        found: list[str] = []
        for target in self.config.targets:
            matching = [name for name in names if f".{name}".endswith(f".{target}")]
            if not matching:
                known = dict.fromkeys(".".join(name.split(".")[-2:]) for name in names)
                why = f"no linear layer of this model; use some of {', '.join(known)}"
                raise UserError(f"adapter.targets={target}: {why}")
            found += [name for name in matching if name not in found]
        return found


class LoRALinear(Linear):
    """A linear layer with an adapter. It takes the weights of `linear`, which are not copied."""

    def __init__(self, linear: Linear, config: LoRAConfig) -> None:
        with torch.device("meta"):
            super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        self.weight, self.bias = linear.weight, linear.bias
        self.scale = config.alpha / config.rank
        self.dropout = nn.Dropout(config.dropout)
        device = linear.weight.device
        self.lora_a = nn.Linear(linear.in_features, config.rank, bias=False, device=device)
        self.lora_b = nn.Linear(config.rank, linear.out_features, bias=False, device=device)
        nn.init.zeros_(self.lora_b.weight)

    def forward(self, input: Tensor) -> Tensor:
        update = self.lora_b(self.lora_a(self.dropout(input)))
        return super().forward(input) + self.scale * update

    def merged(self) -> Linear:
        """Return one linear layer with the same outputs, without dropout."""
        device = self.weight.device
        linear = Linear(self.in_features, self.out_features, self.bias is not None).to(device)
        with torch.no_grad():
            linear.weight.copy_(self.weight + self.scale * self.lora_b.weight @ self.lora_a.weight)
            if self.bias is not None:
                linear.bias.copy_(self.bias)
        return linear.requires_grad_(False)


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """Yield the layers with an adapter, with their full names."""
    for name, part in model.named_modules():
        if isinstance(part, LoRALinear):
            yield name, part


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of the adapters by full name, {} if there are none."""
    parts = ((name, part) for name, part in adapted_layers(model))
    return {
        f"{name}.{key}": parameter
        for name, part in parts
        for key, parameter in part.named_parameters()
        if key.startswith("lora_")
    }


def merge_adapters(model: nn.Module) -> None:
    """Replace each layer with an adapter by one linear layer with the same outputs, in place."""
    for name, part in list(adapted_layers(model)):
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, part.merged())
