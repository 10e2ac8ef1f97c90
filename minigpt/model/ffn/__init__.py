"""Feed-forward layers. `base.py` has the interface and the MLPs, other layers have a file each."""

from minigpt.model.ffn.base import FFN, FeedForward, FeedForwardConfig

__all__ = ["FFN", "FeedForward", "FeedForwardConfig"]
