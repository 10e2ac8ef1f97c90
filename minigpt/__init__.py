"""Small GPTs on small text: train, compare and trust the answer."""

__version__ = "0.1.0"
