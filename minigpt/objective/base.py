"""The interface of objectives, and the causal one.

An objective is two functions. `draw` returns random numbers about each window, without its tokens;
`apply` returns what the model gets of windows and those numbers. So processes that share a batch
draw the same numbers, and each reads its own windows alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from minigpt.data.tokens import Batch
from minigpt.errors import require
from minigpt.loss_of import CAUSAL, EVERY_TOKEN
from minigpt.registry import Registry
from minigpt.tokenizer import Tokenizer

Draws = dict[str, Tensor]
"""Random numbers by name. Their first axis is the window."""

EVALUATION_SEED = 0xE7A1  # of the fixed masks of an evaluation


@dataclass
class ObjectiveConfig:
    """Options of every objective."""

    name: str


OBJECTIVES: Registry[Objective] = Registry("objective", "objective", "minigpt.objective")


@dataclass(frozen=True)
class Beginning:
    """The tokens that a decoder continues, and what the encoder reads, if there is one."""

    tokens: list[int]
    source: list[int] | None = None


class Objective(ABC):
    """What a model is trained to predict, from windows of tokens.

    `architecture`: which keys a query of the model sees, see `ModelConfig`. `loss_of`: the tokens
    whose loss is reported. `predicts_all`: whether those are all of a split but the first.
    `can_continue`: whether it has a `beginning`. `predicts_continuation`: whether the second half
    of a window is predicted from what is before each token.
    `needs_one_document`: why windows must not hold several documents; None if they may.
    """

    architecture: ClassVar[str]
    loss_of: ClassVar[str]
    predicts_all: ClassVar[bool] = False
    can_continue: ClassVar[bool] = True
    predicts_continuation: ClassVar[bool] = False
    needs_one_document: ClassVar[str | None] = None

    def __init__(self, config: Any, tokenizer: Tokenizer, block_size: int) -> None:
        self.tokenizer, self.n_ordinary = tokenizer, tokenizer.n_vocab
        self.config, self.block_size = config, block_size

    @cached_property
    def token_bytes(self) -> Tensor:
        """The UTF-8 bytes of each token; special tokens have none."""
        n_bytes = [len(self.tokenizer.token_bytes(token)) for token in range(self.n_ordinary)]
        special = self.n_special(self.config, self.block_size)
        return torch.tensor([*n_bytes, *[0] * special], dtype=torch.float64)

    @classmethod
    def n_special(cls, config: Any, block_size: int) -> int:
        """Return the number of tokens that the model has beside those of the tokenizer.

        Their ids follow the ordinary ones. They are no text, and are never sampled as such.
        """
        return 0

    def gap(self, number: int) -> int | None:
        """Return the token of a text's gap, counted from 0; None if texts cannot have gaps."""
        return None

    @property
    def special_names(self) -> list[str]:
        """How the special tokens are shown, in the order of their ids."""
        return []

    @classmethod
    def design(cls, config: Any, block_size: int) -> dict[str, Any]:
        """Return the values of a `ModelConfig` that the objective decides."""
        n_special = cls.n_special(config, block_size)
        lengths = {"source_length": None, "target_length": None}
        return {"architecture": cls.architecture, "n_special_tokens": n_special, **lengths}

    @property
    def max_length(self) -> int | None:
        """The longest window that can be evaluated; None: any that the model can read."""
        return None

    def require_length(self, key: str, length: int) -> None:
        """Raise UserError if windows of `length` cannot be evaluated; `key` is its option."""
        limit, why = self.max_length, f"objective={self.config.name} has sentinels for windows"
        require(limit is None or length <= limit, key, length, f"{why} of up to {limit} tokens")

    @abstractmethod
    def draw(self, n: int, length: int, generator: torch.Generator) -> Draws:
        """Draw the random numbers of n windows of `length` tokens, on the generator's device."""

    @abstractmethod
    def apply(self, windows: Batch, draws: Draws) -> Batch:
        """Return inputs, targets and weights of windows, a pure function of both arguments."""

    def beginning(self, prompt: list[int]) -> Beginning:
        """Return what generation begins with, to continue a prompt. Raises UserError."""
        return Beginning(prompt)

    def draws_of_evaluation(self, n: int, length: int, whole: int, device: torch.device) -> Draws:
        """Return fixed numbers for n windows of an evaluation in windows of `whole` tokens.

        `length`: of these, below `whole` for the last one of a split.
        """
        return self.draw(n, length, torch.Generator(device).manual_seed(EVALUATION_SEED))


def first_continued(whole: int) -> int:
    """Return the index of the first target after the first half of a window of `whole` tokens."""
    return max(1, whole // 2) - 1  # the last token of a prefix predicts the next


def parts(draws: Draws, n: int) -> list[Draws]:
    """Split the draws of the windows of a batch into those of n micro-batches."""
    chunks = {name: x.chunk(n) for name, x in draws.items()}
    return [{name: of_name[index] for name, of_name in chunks.items()} for index in range(n)]


@dataclass
class CausalConfig(ObjectiveConfig):
    """`teacher`: see `Distillation`, as `temperature` and `weight`."""

    name: str = CAUSAL
    teacher: str | None = None
    temperature: float = 2.0
    weight: float = 0.5

    def __post_init__(self) -> None:
        value = self.temperature
        require(value > 0, "objective.temperature", value, "must be above 0")
        require(0 <= self.weight <= 1, "objective.weight", self.weight, "must be from 0 to 1")


@OBJECTIVES.register(CAUSAL, CausalConfig)
class Causal(Objective):
    """The next token is predicted from all before it (Radford et al. 2018, equation 1)."""

    architecture, loss_of = "decoder", EVERY_TOKEN
    predicts_all, predicts_continuation = True, True

    def draw(self, n: int, length: int, generator: torch.Generator) -> Draws:
        return {}

    def apply(self, windows: Batch, draws: Draws) -> Batch:
        return windows


CAUSAL_DESIGN = Causal.design(CausalConfig(), 0)
"""What the causal objective decides of a design."""
