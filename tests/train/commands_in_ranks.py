"""Run minigpt commands one after the other in every process that torchrun starts, in float64.

python -m tests.train.commands_in_ranks FILE: a JSON list of argument lists. With a second argument
--nan-in-rank=N, the loss of that process is not finite at step 13.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from minigpt.cli import main
from minigpt.data import Batch
from minigpt.train import distributed
from minigpt.train.graph import EagerStep


def spoil_step(number: int) -> None:
    """Make the loss of a step NaN in this process, and with it the gradients."""
    scaled, steps = EagerStep.scaled, iter(range(10**6))

    def spoiled(self: EagerStep, loss: torch.Tensor, micro_batch: Batch) -> torch.Tensor:
        return scaled(self, loss * (float("nan") if next(steps) == number else 1), micro_batch)

    EagerStep.scaled = spoiled


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    distributed.TIMED_STEPS = range(0)  # to save the time of torch's profiler
    if "RANK" in os.environ:
        dist.init_process_group("gloo")  # once, since torch cannot join a group again
        if sys.argv[2:] == [f"--nan-in-rank={os.environ['RANK']}"]:
            spoil_step(13)
    for arguments in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        if code := main(arguments):
            sys.exit(code)
