"""Positional schemes. One file a scheme; `base.py` says what a scheme may do."""

from minigpt.model.positional.base import (
    POSITIONAL,
    BiasScheme,
    DenseTerm,
    DistanceTerm,
    PositionalConfig,
    PositionalScheme,
    ScoreTerm,
)

__all__ = [
    "POSITIONAL",
    "BiasScheme",
    "DenseTerm",
    "DistanceTerm",
    "PositionalConfig",
    "PositionalScheme",
    "ScoreTerm",
]
