"""What logits in chunks save: peak memory and time of training steps, chunks against one piece.

    python scripts/bench_vocabulary.py --vocabulary 50257 --tokens 2048

Each variant trains in a process of its own, in turns. Memory is the most that the steps held beyond
what was held before the first one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

import torch
from tables import table

import minigpt.model.gpt
from minigpt.bench.measure import Times, device_here, machine
from minigpt.config.compose import composed_config
from minigpt.model import GPT
from minigpt.optim.optimizer import OPTIMIZERS
from minigpt.runtime import choose_runtime, peak_memory_bytes, reset_peak_memory

VARIANTS = {"one piece": 2**62, "chunks": minigpt.model.gpt.MAX_LOGITS}
STEPS = 4


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description="Logits in chunks against one piece.")
    parser.add_argument("--vocabulary", type=int, default=50257)
    parser.add_argument("--tokens", type=int, default=2048, help="of a step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--most", type=int, help="measure with so many logits at once, as JSON")
    options = parser.parse_args()
    if options.most is not None:
        print(json.dumps(measure(options.vocabulary, options.tokens, options.most)))
        return
    found: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    sizes = ["--vocabulary", str(options.vocabulary), "--tokens", str(options.tokens)]
    for _ in range(options.rounds):
        for name, most in VARIANTS.items():
            command = [sys.executable, __file__, *sizes, "--most", str(most)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[name].append(json.loads(done.stdout))
    memory = {name: max(one["bytes"] for one in each) / 1e6 for name, each in found.items()}
    lines = [
        [
            name,
            f"{memory[name]:,.0f}",
            f"{memory['one piece'] / memory[name]:.1f}",
            Times([one["seconds"] for one in each]).describe(),
            f"{each[0]['loss']:.5f}",
        ]
        for name, each in found.items()
    ]
    head = ["logits", "peak MB of the steps", "times less", "ms a step (quartiles)", "loss"]
    print("\n".join(table(head, lines)))
    print(", ".join(f"{key} {value}" for key, value in machine(device_here()).items()))


def measure(n_vocab: int, n_tokens: int, most: int) -> dict[str, float]:
    """Bytes and seconds of the steps of a small model, and its loss after them."""
    minigpt.model.gpt.MAX_LOGITS = most
    config = composed_config(["experiment=seed_blog"])
    length = config.model.block_size
    runtime = choose_runtime(device_here(), "auto")
    torch.manual_seed(1)
    model = GPT(config.model, n_vocab).to(runtime.device)
    model.use_backend(runtime.device, runtime.precision == "bf16", "train")
    optimizer = OPTIMIZERS.build(config.optimizer, model)
    tokens = torch.randint(n_vocab, (max(1, n_tokens // length), length + 1)).to(runtime.device)

    def step(inputs: torch.Tensor, targets: torch.Tensor) -> float:
        with runtime.autocast():
            loss, _ = model.training_loss(inputs, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    step(tokens[:1, :2], tokens[:1, 1:3])  # the optimizer's state and libraries' own memory
    reset_peak_memory(runtime.device)
    before = peak_memory_bytes(runtime.device) or 0
    started = time.perf_counter()
    losses = [step(tokens[:, :-1], tokens[:, 1:]) for _ in range(STEPS)]
    seconds = (time.perf_counter() - started) / STEPS
    return {
        "bytes": (peak_memory_bytes(runtime.device) or 0) - before,
        "seconds": seconds,
        "loss": losses[-1],
    }


if __name__ == "__main__":
    main()
