"""Full attention: a query attends to every earlier key."""

from minigpt.model.attention.base import ATTENTION, Attention, AttentionConfig


@ATTENTION.register("full", AttentionConfig)
class FullAttention(Attention):
    """Every key at or before the query (Vaswani et al. 2017)."""
