"""Denoising: an encoder reads a text with gaps, and a decoder writes what was there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.data.tokens import Batch
from minigpt.errors import require
from minigpt.objective.base import OBJECTIVES, Beginning, Draws, Objective, ObjectiveConfig
from minigpt.objective.masked import require_fraction
from minigpt.objective.spans import random_spans, span_counts
from minigpt.tokenizer import Tokenizer


@dataclass
class DenoiseConfig(ObjectiveConfig):
    """`fraction` of the tokens are left out, in spans of mean length `span`."""

    fraction: float
    span: float

    def __post_init__(self) -> None:
        require_fraction("objective.fraction", self.fraction)
        require(self.span >= 1, "objective.span", self.span, "must be 1 or more")


@OBJECTIVES.register("denoise", DenoiseConfig)
class Denoise(Objective):
    """Span corruption (Raffel et al. 2020, section 3.1.4).

    The source is the window with each span replaced by a sentinel. The decoder writes sentinel and
    tokens of each span in turn, and one more sentinel at the end. Its first input is the first
    sentinel, which is always the same, and so is not predicted. Sentinels are the tokens after
    those of the tokenizer. All windows of a length have the same number of tokens and spans.
    """

    architecture, loss_of = "encoder_decoder", "the tokens of spans and the sentinels after them"
    needs_one_document = "its spans may reach from one document into the next"

    def __init__(self, config: DenoiseConfig, tokenizer: Tokenizer, block_size: int) -> None:
        super().__init__(config, tokenizer, block_size)
        self.first_sentinel = tokenizer.n_vocab
        self.n_sentinels = self.n_special(config, block_size)

    @classmethod
    def n_special(cls, config: DenoiseConfig, block_size: int) -> int:
        return 1 + span_counts(block_size, config.fraction, config.span)[1]

    def gap(self, number: int) -> int:
        return self.first_sentinel + number

    @property
    def special_names(self) -> list[str]:
        return [f"<{number}>" for number in range(self.n_sentinels)]

    @classmethod
    def design(cls, config: DenoiseConfig, block_size: int) -> dict[str, Any]:
        why = "a window has a gap and tokens beside it; use 2 or more"
        require(block_size >= 2, "model.block_size", block_size, f"with objective=denoise {why}")
        n_noise, n_spans = span_counts(block_size, config.fraction, config.span)
        lengths = (block_size - n_noise + n_spans, n_noise + n_spans)
        names = ("source_length", "target_length")
        return super().design(config, block_size) | dict(zip(names, lengths, strict=True))

    def beginning(self, prompt: list[int]) -> Beginning:
        """Continue a prompt as the text of a gap at its end; the encoder reads what fits."""
        gap = [self.first_sentinel]
        return Beginning(gap, prompt[-max(1, self.block_size - 1) :] + gap)

    @property
    def max_length(self) -> int:
        return self.block_size  # which needs all of its sentinels

    def draw(self, n: int, length: int, generator: torch.Generator) -> Draws:
        counts = span_counts(length, self.config.fraction, self.config.span)
        return {"spans": random_spans(n, length, *counts, generator)}

    def apply(self, windows: Batch, draws: Draws) -> Batch:
        tokens, spans = windows.inputs, draws["spans"]
        length = tokens.shape[1]
        n_noise, n_spans = span_counts(length, self.config.fraction, self.config.span)
        noise = spans % 2 == 1
        starts = noise & F.pad(spans.diff(dim=1) != 0, (1, 0), value=True)
        sentinels = self.first_sentinel + spans // 2
        source = selected(sentinels, starts, tokens, ~noise, n_spans + length - n_noise)
        written = selected(sentinels, starts, tokens, noise, n_spans + n_noise)
        written = F.pad(written, (0, 1), value=self.first_sentinel + n_spans)
        return Batch(written[:, :-1], written[:, 1:], None, source=source)


def selected(
    first: Tensor, has_first: Tensor, second: Tensor, has_second: Tensor, n: int
) -> Tensor:
    """Return for each row the n values that are present, in order: (b, n).

    Position after position of (b, t): `first` where there is one, then `second`. No host waits.
    """
    values = torch.stack((first, second), 2).flatten(1)
    present = torch.stack((has_first, has_second), 2).flatten(1)
    order = (~present).byte().argsort(dim=1, stable=True)[:, :n]
    return values.gather(1, order)
