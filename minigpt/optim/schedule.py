"""Learning-rate schedules: the factor of the peak learning rate at each step."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from minigpt.errors import require, require_at_least
from minigpt.registry import Registry

WARMUP_FRACTION = 0.05


@dataclass
class ScheduleConfig:
    """`warmup_steps`: steps of linear increase from 0 to the peak; None: a fraction of all steps.

    `warmup_fraction`: that fraction; None: WARMUP_FRACTION. Only one of them may be set.
    """

    name: str
    warmup_steps: int | None
    warmup_fraction: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        require_at_least(0, "schedule", self, "warmup_steps", or_null=True)
        fraction, key = self.warmup_fraction, "schedule.warmup_fraction"
        require(fraction is None or 0 <= fraction <= 1, key, fraction, "must be from 0 to 1")
        is_one = fraction is None or self.warmup_steps is None
        why = f"schedule.warmup_steps={self.warmup_steps} sets the same; set one of them to null"
        require(is_one, key, fraction, why)

    def warmup(self, max_steps: int) -> int:
        """Return the steps of the warm-up of a run of `max_steps`."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        fraction = WARMUP_FRACTION if self.warmup_fraction is None else self.warmup_fraction
        return round(fraction * max_steps)


@dataclass
class DecayConfig(ScheduleConfig):
    """`final_fraction`: final learning rate / peak learning rate."""

    final_fraction: float

    def __post_init__(self) -> None:
        super().__post_init__()
        final = self.final_fraction
        require(0 <= final <= 1, "schedule.final_fraction", final, "must be from 0 to 1")


class Schedule(ABC):
    """Scales the learning rate: linear warm-up, then `after_warmup`."""

    def __init__(self, config: ScheduleConfig, max_steps: int) -> None:
        self.config, self.max_steps = config, max_steps
        self.warmup = config.warmup(max_steps)

    def factor(self, step: int) -> float:
        """Return the factor for a step from 0 to max_steps - 1."""
        warmup = self.warmup
        if step < warmup:
            return (step + 1) / (warmup + 1)  # not 0 at the first step
        return self.after_warmup((step - warmup) / max(1, self.max_steps - warmup))

    @abstractmethod
    def after_warmup(self, progress: float) -> float:
        """Return the factor after a fraction `progress` in [0, 1) of the steps after warm-up."""


SCHEDULES: Registry[Schedule] = Registry("schedule", "schedule", "minigpt.optim.schedule")


@SCHEDULES.register("constant", ScheduleConfig)
class Constant(Schedule):
    """Constant at the peak."""

    def after_warmup(self, progress: float) -> float:
        return 1.0


@SCHEDULES.register("linear", DecayConfig)
class Linear(Schedule):
    """Linear decay to `final_fraction`."""

    config: DecayConfig

    def after_warmup(self, progress: float) -> float:
        return 1 + progress * (self.config.final_fraction - 1)


@SCHEDULES.register("cosine", DecayConfig)
class Cosine(Schedule):
    """Cosine decay to `final_fraction` (Loshchilov & Hutter 2017)."""

    config: DecayConfig

    def after_warmup(self, progress: float) -> float:
        final = self.config.final_fraction
        return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2


@dataclass
class WSDConfig(DecayConfig):
    """`decay_fraction`: fraction of the steps after warm-up that are in the final decay."""

    decay_fraction: float

    def __post_init__(self) -> None:
        super().__post_init__()
        decay = self.decay_fraction
        require(0 <= decay <= 1, "schedule.decay_fraction", decay, "must be from 0 to 1")


@SCHEDULES.register("wsd", WSDConfig)
class WarmupStableDecay(Schedule):
    """Constant, then linear decay over `decay_fraction` (Hu et al. 2024, MiniCPM)."""

    config: WSDConfig

    def after_warmup(self, progress: float) -> float:
        final, duration = self.config.final_fraction, self.config.decay_fraction
        start = 1 - duration
        return 1.0 if progress <= start else 1 + (progress - start) / duration * (final - 1)
