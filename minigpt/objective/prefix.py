"""Prefix language modelling: a prefix of the window is read in both directions."""

from __future__ import annotations

import torch
from torch import Tensor

from minigpt.data.tokens import Batch
from minigpt.objective.base import OBJECTIVES, Draws, Objective, ObjectiveConfig, first_continued


@OBJECTIVES.register("prefix", ObjectiveConfig)
class PrefixLM(Objective):
    """The next token after a prefix, whose tokens see each other in both directions.

    Raffel et al. 2020, section 3.2.1. Its length is uniform from 1 to one less than the window;
    the loss is the mean over the tokens after it, of all windows of a batch together. Evaluations
    have the first half of each window as prefix.
    """

    architecture, loss_of = "prefix_decoder", "the second half of each window, given the first"
    predicts_continuation = True
    needs_one_document = "a prefix is counted from the start of the window"

    def draw(self, n: int, length: int, generator: torch.Generator) -> Draws:
        uniform = torch.rand(n, generator=generator, device=generator.device)
        lengths = 1 + (uniform * (length - 1)).long()
        return {"lengths": lengths, "weights": weights_after(lengths, length)}

    def draws_of_evaluation(self, n: int, length: int, whole: int, device: torch.device) -> Draws:
        lengths = torch.full((n,), first_continued(whole) + 1, device=device)
        return {"lengths": lengths, "weights": weights_after(lengths, length)}

    def apply(self, windows: Batch, draws: Draws) -> Batch:
        return Batch(
            windows.inputs,
            windows.targets,
            windows.document_ids,
            weights=draws["weights"],
            lengths=draws["lengths"],
        )


def weights_after(lengths: Tensor, length: int) -> Tensor:
    """Return the weights (n, length) of targets after prefixes of n windows, with mean 1."""
    index = torch.arange(length, device=lengths.device)
    after = (index >= lengths[:, None] - 1).float()  # the last token of a prefix predicts the next
    return after / after.mean().clamp(min=1 / after.numel())
