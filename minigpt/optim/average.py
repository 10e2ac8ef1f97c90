"""An exponential moving average of the weights, evaluated beside the weights themselves."""

from __future__ import annotations

from copy import deepcopy
from functools import cached_property

from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from minigpt.model import GPT

RAW, EMA = "raw", "ema"  # the weights of training, and their average


class WeightAverage:
    """An exponential moving average (EMA) of a model's parameters over the steps of training.

    `model`: a copy with the averages as its parameters; tied ones stay tied. After step t = 0, 1,
    ... average += (1 - d) (weights - average) with d = min(decay, (1 + t) / (10 + t)), so that the
    initial weights are soon forgotten. Memory: one more copy of the parameters. It does not wait
    for the device, and changes neither the weights nor random numbers.
    """

    def __init__(self, model: GPT, decay: float) -> None:
        self.model, self.decay = deepcopy(model).requires_grad_(False), decay
        self._trained = model

    def update(self, step: int) -> None:
        """Add the weights after a step, which is counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        get_ema_multi_avg_fn(decay)(*self._pairs, None)

    @cached_property
    def _pairs(self) -> tuple[list[Tensor], list[Tensor]]:
        """The averages and the weights. Splitting the models over processes replaces both."""
        return list(self.model.parameters()), list(self._trained.parameters())
