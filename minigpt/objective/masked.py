"""Masked language modelling: hidden tokens are predicted from those on both sides."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from minigpt.data.tokens import Batch
from minigpt.errors import UserError, require
from minigpt.objective.base import OBJECTIVES, Beginning, Draws, Objective, ObjectiveConfig
from minigpt.objective.spans import random_spans, span_counts
from minigpt.tokenizer import Tokenizer

MARK = "[MASK]"  # stands for a gap in a text


@dataclass
class MaskedConfig(ObjectiveConfig):
    """`fraction` of the tokens are predicted, in spans of mean length `span`; 1: single tokens.

    Of these, `masked` are replaced with the mask and `random` with a random token; the others stay.
    """

    fraction: float
    span: float
    masked: float
    random: float

    def __post_init__(self) -> None:
        require_fraction("objective.fraction", self.fraction)
        require(self.span >= 1, "objective.span", self.span, "must be 1 or more")
        for key in ("masked", "random"):
            value = getattr(self, key)
            require(0 <= value <= 1, f"objective.{key}", value, "must be from 0 to 1")
        total, why = self.masked + self.random, f"with objective.masked={self.masked} above 1"
        require(total <= 1 + 1e-9, "objective.random", self.random, f"is {why}; use less")


def require_fraction(key: str, fraction: float) -> None:
    """Raise UserError unless a fraction of the tokens leaves some on both sides."""
    require(0 < fraction < 1, key, fraction, "must be above 0 and below 1")


@OBJECTIVES.register("masked", MaskedConfig)
class Masked(Objective):
    """Tokens behind a mask are predicted from all others (Devlin et al. 2019, section 3.1).

    Each window has the same number of them, so all have the same weight. The mask is the token
    after those of the tokenizer.
    """

    architecture, loss_of = "encoder", "masked tokens"
    can_continue = False

    def __init__(self, config: MaskedConfig, tokenizer: Tokenizer, block_size: int) -> None:
        super().__init__(config, tokenizer, block_size)
        self.mask = tokenizer.n_vocab

    @classmethod
    def n_special(cls, config: MaskedConfig, block_size: int) -> int:
        return 1

    def gap(self, number: int) -> int:
        return self.mask

    @property
    def special_names(self) -> list[str]:
        return [MARK]

    def beginning(self, prompt: list[int]) -> Beginning:
        why = "predicts tokens from both sides, and cannot continue a text; use minigpt fill"
        raise UserError(f"objective=masked: {why}")

    def draw(self, n: int, length: int, generator: torch.Generator) -> Draws:
        device, span = generator.device, self.config.span
        n_noise, n_spans = span_counts(length, self.config.fraction, span)
        if span == 1:
            order = torch.rand(n, length, generator=generator, device=device).argsort(1)
            chosen = torch.zeros(n, length, device=device, dtype=torch.bool)
            chosen.scatter_(1, order[:, :n_noise], True)
        else:
            chosen = random_spans(n, length, n_noise, n_spans, generator) % 2 == 1
        kind = torch.rand(n, length, generator=generator, device=device)
        shape = (n, length)
        others = torch.randint(self.n_ordinary, shape, generator=generator, device=device)
        return {"chosen": chosen, "kind": kind, "others": others}

    def apply(self, windows: Batch, draws: Draws) -> Batch:
        tokens, chosen, kind = windows.inputs, draws["chosen"], draws["kind"]
        masked = self.config.masked
        inputs = tokens.masked_fill(chosen & (kind < masked), self.mask)
        random = chosen & (kind >= masked) & (kind < masked + self.config.random)
        inputs = torch.where(random, draws["others"], inputs)
        weights = chosen.float() * (chosen.shape[1] / chosen[0].sum())
        return Batch(inputs, tokens, windows.document_ids, weights=weights)
