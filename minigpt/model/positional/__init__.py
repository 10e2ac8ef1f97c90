"""Positional schemes. One file a scheme; `base.py` says what a scheme may do."""

from minigpt.model.positional.base import (
    POSITIONAL,
    PositionalConfig,
    PositionalScheme,
    ScoreTerm,
)

__all__ = ["POSITIONAL", "PositionalConfig", "PositionalScheme", "ScoreTerm"]
