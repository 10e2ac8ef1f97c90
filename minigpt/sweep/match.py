"""Equal work: what is changed of each design so that all get the same steps, tokens or FLOPs, or
have the same number of parameters."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from minigpt.config.schema import Config
from minigpt.data.prepare import prepare
from minigpt.errors import UserError, require_one_of
from minigpt.model import GPT

MATCHES = ("steps", "tokens", "parameters", "flops")


@dataclass
class SweepConfig:
    """How a sweep is run.

    `fail_fast`: the first failure ends it. `match`: what all designs get as much of as the first
    job; None changes nothing.
    """

    name: str | None = None
    fail_fast: bool = False
    match: str | None = None

    def __post_init__(self) -> None:
        if self.match is not None:
            require_one_of("sweep.match", self.match, MATCHES)


class Matcher:
    """Changes configs so that each gets as much of one quantity as the reference.

    `steps`, `tokens` and `flops` (of training) set trainer.max_steps, `parameters` (the total)
    sets model.n_embd. Raises UserError where that cannot be.
    """

    def __init__(self, quantity: str | None, reference: Config, overrides: list[str]) -> None:
        self.quantity, self.reference, self.overrides = quantity, reference, overrides
        self._n_vocab: dict[str, int] = {}
        self._widths: dict[str, int] = {}

    def match(self, config: Config) -> tuple[Config, dict[str, Any] | None]:
        """The config with as much work as the reference, and what was changed for the manifest."""
        if self.quantity is None:
            return config, None
        if self.quantity == "parameters":
            key, before, after = "model.n_embd", config.model.n_embd, self._width(config)
            matched = replace(config, model=replace(config.model, n_embd=after))
        else:
            key, before, after = "trainer.max_steps", config.trainer.max_steps, self._steps(config)
            matched = replace(config, trainer=replace(config.trainer, max_steps=after))
        return matched, {
            "what": self.quantity,
            "reference": self.overrides,
            "changed": {key: [before, after]} if before != after else {},
            "amount": [self._amount_of_reference, self._amount(matched)],
        }

    @cached_property
    def _amount_of_reference(self) -> int:
        return self._amount(self.reference)

    def _amount(self, config: Config) -> int:
        """How much of the quantity a config means."""
        if self.quantity == "parameters":
            return self._design(config).parameter_counts()["total"]
        return config.trainer.max_steps * self._of_a_step(config)

    def _of_a_step(self, config: Config) -> int:
        if self.quantity == "steps":
            return 1
        tokens = config.trainer.batch_size * config.model.block_size
        return tokens * (self._design(config).flops_per_token() if self.quantity == "flops" else 1)

    def _steps(self, config: Config) -> int:
        return max(1, round(self._amount_of_reference / self._of_a_step(config)))

    def _width(self, config: Config) -> int:
        """The n_embd with which a design has about as many parameters as the reference."""
        key = repr((config.model, config.tokenizer, config.data))
        if key not in self._widths:
            self._widths[key] = self._solved_width(config)
        return self._widths[key]

    def _solved_width(self, config: Config) -> int:
        target = self._amount_of_reference
        if self._amount(config) == target:
            return config.model.n_embd
        stride = 2 * config.model.n_head  # heads of equal, even size: rope pairs channels

        def parameters(width: int) -> int:
            model = replace(config.model, n_embd=width)
            return self._amount(replace(config, model=model))

        low, high = 1, 2
        while parameters(high * stride) < target:
            low, high = high, 2 * high
        while high - low > 1:  # parameters(low) < target <= parameters(high), widths in strides
            middle = (low + high) // 2
            low, high = (middle, high) if parameters(middle * stride) < target else (low, middle)
        nearest = min((low, high), key=lambda n: abs(parameters(n * stride) - target))
        off = abs(parameters(nearest * stride) - target) / target
        if off > 0.1:
            raise UserError(
                f"sweep.match=parameters: the nearest width of model={config.model.name}, "
                f"model.n_embd={nearest * stride}, is {off:.0%} off {target:,} parameters; use "
                "fewer heads or larger designs"
            )
        return nearest * stride

    def _design(self, config: Config) -> GPT:
        with torch.device("meta"):
            return GPT(config.model, self._vocabulary(config))

    def _vocabulary(self, config: Config) -> int:
        key = repr((config.data, config.tokenizer))
        if key not in self._n_vocab:
            self._n_vocab[key] = prepare(config.data, config.tokenizer).tokenizer.n_vocab
        return self._n_vocab[key]
