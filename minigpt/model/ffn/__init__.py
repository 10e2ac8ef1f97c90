"""Feed-forward layers. `base.py` has the interface and the MLPs; others have their own file."""

from minigpt.model.ffn.base import FFN, FeedForward, FeedForwardConfig

__all__ = ["FFN", "FeedForward", "FeedForwardConfig"]
