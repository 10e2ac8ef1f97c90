"""Measure one layer with eager attention and with SDPA, by length and precision."""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

import torch

from minigpt.bench.attention import one_layer, random_windows, time_layers
from minigpt.bench.measure import device_here, kept_bytes, machine
from minigpt.files import write_json
from minigpt.run.provenance import provenance
from studies.claims.evidence import MEASURED

DESIGN = ["experiment=claims/posts"]
BACKENDS = ("eager", "sdpa")
LENGTHS = (64, 256, 1024, 2048)
PRECISIONS = ("fp32", "bf16")
TOKENS, REPEATS = 4096, 7


def measure(folder: Path) -> None:
    """Write seconds of each repeat, interleaved, and the bytes saved for the backward pass."""
    rows, device = [], device_here()
    for precision, length in product(PRECISIONS, LENGTHS):
        made = {name: one_layer(DESIGN, length, name, device) for name in BACKENDS}
        layers = {name: layer for name, layer in made.items() if layer is not None}
        assert len(layers) == len(BACKENDS), "both backends support this design"
        tokens = random_windows(TOKENS, length, device)
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            times = time_layers(layers, tokens, REPEATS, device)
            saved = {name: kept_bytes(layers[name], tokens) for name in BACKENDS}
        seconds = {name: times[name].seconds for name in BACKENDS}
        row = {"precision": precision, "length": length, "seconds": seconds, "saved_bytes": saved}
        rows.append(row)
        print(f"backends: {precision}, {length} tokens: measured")
    facts = {**provenance(sys.argv), **machine(device)}
    sizes = {"tokens": TOKENS, "repeats": REPEATS}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / MEASURED, {**facts, **sizes, "rows": rows})
