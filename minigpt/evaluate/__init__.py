"""Measuring a trained model: loss over a text, and what its layers do with a prompt."""
