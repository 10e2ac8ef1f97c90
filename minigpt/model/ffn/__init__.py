"""Feed-forward layers: what a block does to each token, by itself or with its neighbours.

`base.py` holds the registry and the layers that are one pair of maps; others have a file each.
"""

from minigpt.model.ffn.base import FFN, FeedForwardConfig

__all__ = ["FFN", "FeedForwardConfig"]
