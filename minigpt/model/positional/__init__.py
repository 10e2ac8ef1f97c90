"""Positional schemes. One file each; `base.py` is the interface."""

from minigpt.model.positional.base import (
    POSITIONAL,
    BiasScheme,
    DenseScoreMod,
    DistanceScoreMod,
    PositionalConfig,
    PositionalScheme,
    ScoreMod,
)

__all__ = [
    "POSITIONAL",
    "BiasScheme",
    "DenseScoreMod",
    "DistanceScoreMod",
    "PositionalConfig",
    "PositionalScheme",
    "ScoreMod",
]
