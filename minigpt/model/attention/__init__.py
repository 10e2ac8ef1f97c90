"""Attention patterns and mechanisms. One file each; `base.py` is the interface."""

from minigpt.model.attention.base import (
    ATTENTION,
    Attention,
    AttentionConfig,
    LayersConfig,
    QueryBlocks,
)

__all__ = ["ATTENTION", "Attention", "AttentionConfig", "LayersConfig", "QueryBlocks"]
