"""Positional schemes. One file each; `base.py` is the interface."""

from minigpt.model.positional.base import (
    POSITIONAL,
    DenseScoreMod,
    DistanceScoreMod,
    LearnedBiasScheme,
    PositionalConfig,
    PositionalScheme,
    ScoreMod,
)

__all__ = [
    "POSITIONAL",
    "DenseScoreMod",
    "DistanceScoreMod",
    "LearnedBiasScheme",
    "PositionalConfig",
    "PositionalScheme",
    "ScoreMod",
]
