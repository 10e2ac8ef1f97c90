"""Measure what claims say about time and memory. Measured designs take turns in each repeat."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch

from minigpt.bench.attention import one_layer, random_windows, time_layers
from minigpt.bench.decode import N_VOCAB, decode
from minigpt.bench.measure import device_here, kept_bytes, machine
from minigpt.config.compose import composed_config
from minigpt.files import write_json
from minigpt.model import GPT, ModelConfig
from minigpt.run.provenance import provenance
from studies.claims.evidence import MEASURED
from studies.claims.trainings import BACKENDS, CACHE, EXPANSIONS, key_value_heads

DESIGN = ["experiment=claims/posts"]
NAMES = ("eager", "sdpa")
LENGTHS = (64, 256, 1024, 2048)
PRECISIONS = ("fp32", "bf16")
TOKENS, REPEATS = 4096, 7

# A model whose cache is larger than its weights.
LARGE = [*DESIGN, "positional=rope", "model.n_layer=8", "model.n_embd=512", "model.block_size=2048"]
CONTEXTS, BATCH, DECODED = (256, 1536), 8, 17


def measure(name: str, folder: Path) -> None:
    """Write measured.json into a folder: the rows of a measurement, machine and versions."""
    device = device_here()
    facts = {**provenance([]), **machine(device), "repeats": REPEATS}
    del facts["command"]  # has paths of this machine
    content = facts | MEASUREMENTS[name](device)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / MEASURED, content)


def backends(device: str) -> dict[str, Any]:
    """Return seconds, and bytes saved for the backward pass, of one layer with each backend."""
    rows = []
    for precision, length in product(PRECISIONS, LENGTHS):
        made = {name: one_layer(DESIGN, length, name, device) for name in NAMES}
        layers = {name: layer for name, layer in made.items() if layer is not None}
        assert len(layers) == len(NAMES), "both backends support this design"
        tokens = random_windows(TOKENS, length, device)
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            times = time_layers(layers, tokens, REPEATS, device)
            saved = {name: kept_bytes(layers[name], tokens) for name in NAMES}
        seconds = {name: times[name].seconds for name in NAMES}
        row = {"precision": precision, "length": length, "seconds": seconds, "saved_bytes": saved}
        rows.append(row)
        print(f"backends: {precision}, {length} tokens: measured")
    return {"tokens": TOKENS, "rows": rows}


def cache(device: str) -> dict[str, Any]:
    """Return seconds per decoded token and bytes of the cache, by key-value heads."""
    configs = {f"{n}": composed_config([*LARGE, *key_value_heads(n)]) for n in EXPANSIONS}
    rows = []
    for context in CONTEXTS:
        seconds: dict[str, list[float]] = {n: [] for n in configs}
        for turn, (n, config) in product(range(REPEATS + 1), configs.items()):
            _, rest = decode(config, BATCH, DECODED, context)
            if turn:  # the first one is not timed
                seconds[n].append(rest / (DECODED - 1))
        size = {n: cache_bytes(config.model, context) for n, config in configs.items()}
        rows.append({"context": context, "seconds": seconds, "cache_bytes": size})
        print(f"cache: {context} tokens: measured")
    parameters = GPT(configs["8"].model, N_VOCAB).parameter_counts()["total"]
    return {"batch": BATCH, "parameters": parameters, "rows": rows}


def cache_bytes(model: ModelConfig, context: int) -> int:
    """Return the bytes of keys and values of all layers for BATCH texts, in fp32."""
    n_kv_head = model.n_kv_head or model.n_head
    return 2 * model.n_layer * BATCH * context * n_kv_head * model.shape.head_size * 4


MEASUREMENTS: dict[str, Callable[[str], dict[str, Any]]] = {BACKENDS: backends, CACHE: cache}
