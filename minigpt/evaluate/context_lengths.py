"""Validation loss by length of the context, and by position in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minigpt.data.tokens import Split
from minigpt.errors import one_line_if_out_of_memory, require
from minigpt.evaluate.loss import Evaluation, evaluate
from minigpt.run.load import TrainedRun

METRICS = ("loss", "perplexity", "bits_per_byte")
HEADINGS = ("loss (nats/token)", "perplexity", "bits/byte")

# By length of the context: its evaluation, or why it is undefined.
Curve = dict[int, Evaluation | str]


def require_lengths(lengths: Sequence[int], split: Split) -> None:
    """Raise UserError if a split is not longer than each context length."""
    longest, n_tokens = max(lengths, default=0), len(split.tokens)
    why = f"the {split.name} split has only {n_tokens} tokens; use {n_tokens - 1} or fewer"
    require(longest < n_tokens, "--lengths", longest, why)


def evaluate_at_length(trained: TrainedRun, split: Split, length: int) -> Evaluation | str:
    """Evaluate in windows of `length` tokens, or return why the loss is undefined there.

    Raises Failure if the memory does not suffice.
    """
    limit = trained.model.positional.max_length
    if limit is not None and length > limit:
        return f"undefined: {trained.config.model.positional.name} has {limit} positions"
    with one_line_if_out_of_memory(f"windows of {length} tokens are too long; use shorter ones"):
        return evaluate(trained.model, split, trained.runtime, length)


def defined(curve: Curve) -> dict[int, Evaluation]:
    """Return the lengths at which the loss is defined."""
    return {n: result for n, result in curve.items() if not isinstance(result, str)}


def metrics(result: Evaluation | str) -> dict[str, Any]:
    """Return the metrics of one length for eval.json, null if undefined."""
    if isinstance(result, str):
        return {**dict.fromkeys(METRICS), "undefined": result}
    return {name: getattr(result, name) for name in METRICS}


def cells(result: Evaluation | str) -> list[str]:
    """Return the metrics of one length as table cells."""
    if isinstance(result, str):
        return ["undefined"] * len(METRICS)
    return [f"{result.loss:.4f}", f"{result.perplexity:.3f}", f"{result.bits_per_byte:.4f}"]


def length_table(curve: Curve) -> list[list[str]]:
    """Return a table of metrics by context length, headings first."""
    rows = [[str(length), *cells(result)] for length, result in curve.items()]
    return [["context", *HEADINGS], *rows]
