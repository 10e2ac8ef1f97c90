"""Attentions. One file an attention; `base.py` says what one may do."""

from minigpt.model.attention.base import (
    ATTENTION,
    Attention,
    AttentionConfig,
    Fold,
    LayersConfig,
    Pass,
)

__all__ = ["ATTENTION", "Attention", "AttentionConfig", "Fold", "LayersConfig", "Pass"]
