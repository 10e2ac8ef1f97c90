"""`sweep.match`: change each design so that all get the same number of steps, tokens, bytes of
text, FLOPs or parameters."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from minigpt.config.schema import Config
from minigpt.data.prepare import Prepared
from minigpt.errors import UserError, require_one_of
from minigpt.model import GPT
from minigpt.run.load import prepare_new

MAX_ERROR = 0.1  # maximum relative error of the number of parameters
MATCHES = ("steps", "tokens", "bytes", "parameters", "flops")


@dataclass
class SweepConfig:
    """How a sweep runs.

    `fail_fast`: stop the sweep at the first failure. `match`: the quantity that is made equal to
    the first job's in all designs; None changes nothing. `dry_run`: list the jobs and stop.
    """

    name: str | None = None
    fail_fast: bool = False
    match: str | None = None
    dry_run: bool = False

    def __post_init__(self) -> None:
        if self.match is not None:
            require_one_of("sweep.match", self.match, MATCHES)


class Matcher:
    """Changes configs so that one quantity equals that of the reference, up to rounding.

    `steps`, `tokens`, `bytes` (of text) and `flops` (of training) set trainer.max_steps,
    `parameters` (the total) sets model.n_embd. Raises UserError if no value is close enough.
    """

    def __init__(self, quantity: str | None, reference: Config, overrides: list[str]) -> None:
        self.quantity, self.reference, self.overrides = quantity, reference, overrides
        self._prepared: dict[str, Prepared] = {}
        self._widths: dict[str, int] = {}

    def match(self, config: Config) -> tuple[Config, dict[str, Any] | None]:
        """Return the matched config, and the `match` entry of its manifest."""
        if self.quantity is None:
            return config, None
        if self.quantity == "parameters":
            design = repr((config.model, config.tokenizer, config.data))
            if design not in self._widths:
                self._widths[design] = self._width(config)
            key, before, after = "model.n_embd", config.model.n_embd, self._widths[design]
            matched = replace(config, model=replace(config.model, n_embd=after))
        else:
            after = max(1, round(self._reference_amount / self._amount_per_step(config)))
            key, before = "trainer.max_steps", config.trainer.max_steps
            matched = replace(config, trainer=replace(config.trainer, max_steps=after))
        return matched, {
            "what": self.quantity,
            "reference": self.overrides,
            "changed": {key: [before, after]} if before != after else {},
            "amount": [self._reference_amount, self._amount(matched)],
        }

    @cached_property
    def _reference_amount(self) -> int:
        return self._amount(self.reference)

    def _amount(self, config: Config) -> int:
        """Return the quantity for a config."""
        if self.quantity == "parameters":
            return self._design(config).parameter_counts()["total"]
        return config.trainer.max_steps * self._amount_per_step(config)

    def _amount_per_step(self, config: Config) -> int:
        if self.quantity == "steps":
            return 1
        tokens = config.trainer.batch_size * config.model.block_size
        if self.quantity == "tokens":
            return tokens
        if self.quantity == "bytes":
            split = self._data(config).tokens.train
            return round(tokens * split.target_bytes / (len(split.tokens) - 1))
        return tokens * self._design(config).flops_per_token(config.trainer.micro_batch_size)

    def _width(self, config: Config) -> int:
        """Return the n_embd whose number of parameters is closest to the reference."""
        target = self._reference_amount
        if self._amount(config) == target:
            return config.model.n_embd
        heads = config.model.n_head if config.model.head_size is None else 1
        stride = 2 * heads  # an even head size, since RoPE pairs channels

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
        error = abs(parameters(nearest * stride) - target) / target
        if error > MAX_ERROR:
            raise UserError(
                f"sweep.match=parameters: the nearest width of model={config.model.name}, "
                f"model.n_embd={nearest * stride}, is {error:.0%} off {target:,} parameters; use "
                "fewer heads or larger designs"
            )
        return nearest * stride

    def _data(self, config: Config) -> Prepared:
        key = repr((config.data, config.tokenizer, config.init))
        if key not in self._prepared:
            self._prepared[key] = prepare_new(config)
        return self._prepared[key]

    def _design(self, config: Config) -> GPT:
        with torch.device("meta"):
            return GPT(config.model, self._data(config).tokenizer.n_vocab)
