"""A run's validation loss by nanoGPT's protocol and by ours.

    python scripts/random_batch_loss.py RUN

nanoGPT averages 20 batches of 12 random windows (its recipe for a laptop). That estimate is drawn
here many times over, to show how far one draw may lie from the full pass.
"""

from __future__ import annotations

import statistics
import sys

import torch

from minigpt.api import load_run
from minigpt.data.prepare import prepare
from minigpt.evaluate.loss import evaluate

N_BATCHES, BATCH_SIZE, N_ESTIMATES = 20, 12, 50


@torch.inference_mode()
def main(run: str) -> None:
    """Print the full-pass loss, and mean and spread of estimates from random batches."""
    trained = load_run(run, "last", "cpu")
    config, directory = trained.config, trained.run
    prepared = prepare(config.data, config.tokenizer, directory.tokenizer, directory.data_sha256)
    val, generator = prepared.tokens.val, torch.Generator().manual_seed(0)

    def estimate() -> float:
        losses = []
        for _ in range(N_BATCHES):
            batch = val.draw(BATCH_SIZE, trained.config.model.block_size, generator)
            with trained.runtime.autocast():
                loss = trained.model.loss(batch.inputs, batch.targets, batch.document_ids)
                losses.append(loss.item())
        return statistics.fmean(losses)

    estimates = [estimate() for _ in range(N_ESTIMATES)]
    print(f"full pass: {evaluate(trained.model, val, trained.runtime).loss:.4f}")
    print(
        f"{N_BATCHES} random batches of {BATCH_SIZE}: mean {statistics.fmean(estimates):.4f}, "
        f"standard deviation {statistics.stdev(estimates):.4f}, from {min(estimates):.4f} to "
        f"{max(estimates):.4f} in {N_ESTIMATES} estimates"
    )


if __name__ == "__main__":
    main(sys.argv[1])
