"""The model: one readable GPT whose every design choice is a named variant."""

from minigpt.model.config import ModelConfig
from minigpt.model.gpt import GPT

__all__ = ["GPT", "ModelConfig"]
