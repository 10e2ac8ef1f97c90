"""What is predicted: how windows of text become inputs, targets and the weights of the loss."""

from minigpt.objective.base import OBJECTIVES, Objective, ObjectiveConfig

__all__ = ["OBJECTIVES", "Objective", "ObjectiveConfig"]
