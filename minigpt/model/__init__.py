"""The model: one readable GPT whose every design choice is a named variant."""

from minigpt.model.gpt import GPT, ModelConfig

__all__ = ["GPT", "ModelConfig"]
