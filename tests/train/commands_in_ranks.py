"""Run minigpt commands one after the other in every process that torchrun starts, in float64.

python -m tests.train.commands_in_ranks FILE: a JSON list of argument lists.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from minigpt.cli import main

if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")  # once, since torch cannot join a group again
    for arguments in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        if code := main(arguments):
            sys.exit(code)
