"""Positional schemes. One file a scheme; `base.py` says what a scheme may do."""

from minigpt.model.positional.base import POSITIONAL, PositionalConfig, PositionalScheme

__all__ = ["POSITIONAL", "PositionalConfig", "PositionalScheme"]
