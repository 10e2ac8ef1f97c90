"""Evaluation of trained models: loss, context lengths, and inspection of one prompt."""
