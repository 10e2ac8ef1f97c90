"""Pseudo-perplexity: each token of a text predicted from all others."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from minigpt.console import Advance, ignore_progress
from minigpt.data.tokens import Split
from minigpt.evaluate.loss import N_TARGETS, Evaluation, windows_at_once
from minigpt.model import GPT
from minigpt.objective.base import Objective
from minigpt.objective.masked import Masked
from minigpt.runtime import Runtime

PSEUDO = "pseudo"  # in the keys of eval.json


def evaluate_pseudo(
    model: GPT,
    split: Split,
    objective: Objective,
    runtime: Runtime,
    progress: Advance = ignore_progress,
) -> tuple[Evaluation, int]:
    """Return the mean loss of tokens that are masked one at a time, and the number of tokens.

    Salazar et al. 2020, in windows of block_size, spread evenly over the split, with about
    N_TARGETS tokens in all. Each token takes a pass over its window. The sum over a text is no
    log-likelihood, so it cannot be compared with causal models. `by_position`: by the position in
    the window. `progress`: called with the number of tokens of each batch.
    """
    assert isinstance(objective, Masked)
    length = min(model.config.block_size, len(split.tokens) - 1)
    last = len(split.tokens) - 1 - length
    n_windows = min(max(1, N_TARGETS // length), max(1, last // length + 1))
    starts = torch.linspace(0, last, n_windows, dtype=torch.float64).round().long()
    windows = split.windows_at(starts[:, None].to(split.tokens.device), length)
    nats = torch.zeros(length, dtype=torch.float64)
    at_once = windows_at_once(model, runtime, length)
    positions = torch.arange(length, device=windows.inputs.device)
    with model.evaluating(), runtime.autocast():
        for row, tokens in enumerate(windows.inputs):
            ids = windows.document_ids
            for own in positions.split(at_once):
                inputs = tokens.expand(len(own), -1).clone()
                inputs[torch.arange(len(own)), own] = objective.mask
                documents = None if ids is None else ids[row].expand(len(own), -1)
                hidden = model.hidden(inputs, document_ids=documents)
                hidden = hidden[torch.arange(len(own)), own]
                losses = F.cross_entropy(
                    model.logits(hidden).float(), tokens[own], reduction="none"
                )
                nats[own.cpu()] += losses.double().cpu()
                progress(len(own))
    total, n_bytes = float(nats.sum()), float(objective.token_bytes[windows.inputs.cpu()].sum())
    result = Evaluation(
        loss=total / windows.inputs.numel(),
        bits_per_byte=total / math.log(2) / n_bytes,
        by_position=(nats / n_windows).tolist(),
        loss_of="each token, masked alone",
    )
    return result, windows.inputs.numel()
