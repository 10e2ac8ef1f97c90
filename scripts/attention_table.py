"""The comparison of attentions: quality from runs, cost measured now, planted keys.

    scripts/train_group.sh attention           # leaves runs/attention
    python scripts/planted_key.py runs/planted_key
    python scripts/attention_table.py runs/attention runs/planted_key docs/attention.md

Writes the tables to the Markdown file and the curves beside it as a PNG. Intervals are 95 %
t-intervals over seeds; differences are paired by seed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from bench_group import Costs, about, measure, rows
from matplotlib.figure import Figure
from planted_key import page as planted_page
from tables import Runs, difference, interval, mean, read_all_seeds, table, values, with_interval

from minigpt.config.compose import load_config
from minigpt.console import settings
from minigpt.model import GPT
from minigpt.model.attention import AttentionConfig

# So that each sees 64 keys or has 64 features, but for full and landmark.
SPANS = {
    "sliding_window": ["model.attention.window=64"],
    "chunked": ["model.attention.chunk=64"],
    "bigbird": ["model.attention.block=16"],
    "performer": ["model.attention.features=64"],
    "landmark": ["model.attention.block=32", "model.attention.retrieved=7"],
}
BACKENDS = ("eager", "sdpa")


def main() -> None:
    """Write the tables and the figure."""
    parser = argparse.ArgumentParser(description="Comparison of attentions.")
    parser.add_argument("runs", help="of scripts/train_group.sh attention")
    parser.add_argument("planted", type=Path, help="of scripts/planted_key.py")
    parser.add_argument("out", type=Path)
    parser.add_argument("--lengths", default="256,512,1024,2048,4096,8192", help="to measure at")
    parser.add_argument("--tokens", type=int, default=8192, help="in all windows together")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    runs = read_all_seeds(options.runs)
    lengths = [int(length) for length in options.lengths.split(",")]
    costs = {
        backend: measure("attention", backend, lengths, options.tokens, options.repeats, SPANS)
        for backend in BACKENDS
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    picture = options.out.with_suffix(".png")
    draw(runs, costs["eager"]).savefig(picture, dpi=120)
    lines = [
        *quality(runs),
        "",
        f"![loss and time against length]({picture.name})",
        "",
        "## Time and memory",
        "",
        *about("scripts/attention_table.py", options.tokens, options.repeats),
        "The number of tokens is the same at every length: time and memory that stay the same grow",
        "linearly with the length of a text, and those that double with it as its square.",
        f"Options: {', '.join(option for options in SPANS.values() for option in options)}.",
        *(line for backend in BACKENDS for line in cost(backend, costs[backend])),
        "",
        *("#" + line if line.startswith("#") else line for line in planted(options.planted)),
    ]
    options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(runs)} attentions: written to {options.out} and {picture}")


def cost(backend: str, costs: Costs) -> list[str]:
    return ["", f"### backend={backend}", "", *rows("attention", costs)]


def planted(folder: Path) -> list[str]:
    """The table of planted keys, from what was answered."""
    answers = sorted(folder.glob("*/seed_*/answers.json"))
    if not answers:
        raise SystemExit(f"{folder}: no answers.json; run scripts/planted_key.py {folder}")
    lengths = [int(length) for length in json.loads(answers[0].read_text())]
    attentions = sorted({file.parent.parent.name for file in answers})
    return planted_page(folder, attentions, lengths)


def quality(runs: Runs) -> list[str]:
    """Loss and parameters, and loss at other lengths."""
    first = next(iter(runs.values()))
    manifest, config = first[0]["manifest"], first[0]["config"]["model"]
    lengths = sorted(first[0]["lengths"])
    losses, beyond = [], []
    for name, found in runs.items():
        counts = found[0]["parameters"]
        losses.append(
            [
                f"`{name}`",
                settings(options_of(found[0])),
                f"{counts['total']:,}",
                f"{counts['active']:,}",
                f"{found[0]['flops_per_token']:,}",
                f"{mean(values(found, 'tokens_per_second')):,.0f}",
                f"{mean(values(found, 'train_loss')):.4f}",
                with_interval(values(found, "val_loss")),
                "" if name == "full" else with_interval(difference(runs, name, "full"), "+"),
            ]
        )
        at = [[run["lengths"][length] for run in found] for length in lengths]
        beyond.append([f"`{name}`", *(f"{mean(x):.3f} ± {interval(x):.3f}" for x in at)])
    return [
        "# Attentions compared",
        "",
        f"Written by `scripts/attention_table.py` from {len(runs)} x {len(first)} runs that",
        f"`scripts/train_group.sh attention` trained: RoPE, {config['n_layer']} layers, "
        f"{config['n_head']} heads, width {config['n_embd']},",
        f"block {config['block_size']}, {first[0]['steps']:,} steps of "
        f"{first[0]['config']['trainer']['batch_size']} windows, characters of tiny Shakespeare, "
        f"{first[0]['precision']} on a {first[0]['device']},",
        f"{first[0]['config']['trainer']['threads']} thread a run; {manifest['started'][:10]}, "
        f"torch {manifest['versions']['torch']}, Python {manifest['python']}. Losses are nats",
        "a character over the whole validation split. ± is half a 95 % t-interval over "
        f"{len(first)} seeds, of one",
        "comparison at a time.",
        "",
        "## At the training length",
        "",
        *table(
            [
                *(
                    "attention",
                    "options",
                    "parameters",
                    "active",
                    "training FLOPs a token",
                    "tokens/s",
                ),
                *("train loss", "val loss", "val loss minus full's"),
            ],
            losses,
        ),
        "",
        "## At other lengths",
        "",
        "Mean validation loss with windows of so many tokens.",
        "",
        *table(["attention", *map(str, lengths)], beyond),
    ]


def options_of(run: dict[str, Any]) -> AttentionConfig:
    """The options of a run's attention, with the spans that were used."""
    model = load_config(run["path"] / "config.yaml").model
    with torch.device("meta"):
        return GPT(model, n_vocab=1).attention.resolved(model.attention)


def draw(runs: Runs, costs: Costs) -> Figure:
    """Loss against the length of the context, and time against that of the text."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    loss = figure.add_subplot(1, 2, 1, xlabel="tokens in the context", ylabel="val loss, nats")
    time = figure.add_subplot(1, 2, 2, xlabel="tokens of a text", ylabel="ms, eager")
    for name in sorted(costs):
        if name in runs:
            lengths = sorted(runs[name][0]["lengths"])
            at = [[run["lengths"][n] for run in runs[name]] for n in lengths]
            spread = [interval(x) for x in at]
            loss.errorbar(lengths, [mean(x) for x in at], spread, label=name, marker=".", capsize=2)
        found = costs[name]
        time.plot([*found], [1000 * c.seconds for c in found.values()], marker=".", label=name)
    for axis in (loss, time):
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.grid(alpha=0.3)
    time.set_yscale("log")
    time.legend()
    return figure


if __name__ == "__main__":
    main()
