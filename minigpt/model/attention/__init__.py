"""Attention patterns and mechanisms. One file each; `base.py` is the interface."""

from minigpt.model.attention.base import (
    ATTENTION,
    AlternatingAttentionConfig,
    Attention,
    AttentionConfig,
    QueryBlocks,
)

__all__ = ["ATTENTION", "AlternatingAttentionConfig", "Attention", "AttentionConfig", "QueryBlocks"]
