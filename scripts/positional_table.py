"""The comparison of positional schemes, from the runs of scripts/train_group.sh.

    python scripts/positional_table.py runs/positional docs/positional.md

Writes the tables to the Markdown file and the curves beside it as a PNG. Intervals are 95 %
t-intervals over seeds; differences are paired by seed.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

from matplotlib.figure import Figure
from tables import (
    Runs,
    difference,
    interval,
    mean,
    read_all_seeds,
    table,
    values,
    with_interval,
)


def main(folder: str, output: str) -> None:
    """Write the tables and the figure."""
    runs = read_all_seeds(folder)
    page = Path(output)
    page.parent.mkdir(parents=True, exist_ok=True)
    figure_path = page.with_suffix(".png")
    draw(runs).savefig(figure_path, dpi=120)
    page.write_text("\n".join(markdown(runs, figure_path.name)) + "\n", encoding="utf-8")
    print(f"{len(runs)} schemes: written to {page} and {figure_path}")


def markdown(runs: Runs, figure: str) -> list[str]:
    """The page."""
    first = next(iter(runs.values()))
    manifest, n_seeds = first[0]["manifest"], len(first)
    lengths = sorted(first[0]["lengths"])
    quality = []
    for name, found in runs.items():
        loss = values(found, "val_loss")
        counts = found[0]["parameters"]
        quality.append(
            [
                f"`{name}`",
                f"{counts['total']:,}",
                f"{counts['positional']:,}",
                f"{mean(values(found, 'train_loss')):.4f}",
                with_interval(loss),
                f"{math.exp(mean(loss)):.3f}",
                f"{mean(values(found, 'val_bits_per_byte')):.4f}",
                "" if name == "rope" else with_interval(difference(runs, name, "rope"), "+"),
            ]
        )
    curve = [
        [
            f"`{name}`",
            *(_at_length([run["lengths"][length] for run in found]) for length in lengths),
        ]
        for name, found in runs.items()
    ]
    return [
        "# Positional schemes compared",
        "",
        f"Written by `scripts/positional_table.py` from {len(runs)} x {n_seeds} runs that",
        "`scripts/train_group.sh` trained: `experiment=seed_blog` (4 layers, 8 heads, width",
        f"64, block 32, batch 64), {first[0]['steps']:,} steps, characters of tiny Shakespeare,",
        f"{first[0]['precision']} on a {first[0]['device']}; {manifest['started'][:10]}, torch "
        f"{manifest['versions']['torch']}, Python {manifest['python']}.",
        "Losses are nats a character over the whole validation split. A seed gives all schemes the",
        "same initial weights outside the scheme and the same batches, so differences are paired.",
        f"± is half a 95 % t-interval over {n_seeds} seeds, of one comparison at a time.",
        "",
        "## At the training length",
        "",
        *table(
            [
                "scheme",
                "parameters",
                "of the scheme",
                "train loss",
                "val loss",
                "perplexity",
                "bits a byte",
                "val loss minus rope's",
            ],
            quality,
        ),
        "",
        "## At other lengths",
        "",
        "Mean validation loss with windows of so many tokens, trained at 32. Distances beyond were",
        "never seen in training: `t5`'s far buckets stay as they began, and `fire`, `cope` and the",
        "rest show what their formula makes of them.",
        "",
        *table(["scheme", *map(str, lengths)], curve),
        "",
        f"![validation loss against context length]({figure})",
        "",
        "## The posts' claims",
        "",
        *claims(runs, lengths),
    ]


def _at_length(losses: list[float | None]) -> str:
    known = [loss for loss in losses if loss is not None]
    return f"{mean(known):.3f} ± {interval(known):.3f}" if known else "undefined"


def claims(runs: Runs, lengths: list[int]) -> list[str]:
    """Each claim, what was found, and whether it held."""
    parameters = {name: found[0]["parameters"]["positional"] for name, found in runs.items()}
    fewest = [f"`{name}`" for name in sorted(runs) if parameters[name] == 0]
    n = len(next(iter(runs.values())))
    lines = [
        "- *ALiBi needs the fewest parameters, RoPE comes next.* "
        f"{_verdict(parameters['alibi'] == 0)} for ALiBi, but it is not alone: "
        f"{', '.join(fewest)} add none at all.",
        "- *Relative bias, ALiBi and RoPE are alike on validation.* Paired differences: "
        + "; ".join(
            f"{one} minus {other} {with_interval(difference(runs, one, other), '+')} "
            f"({_alike(difference(runs, one, other))})"
            for one, other in (
                ("relative_bias", "alibi"),
                ("relative_bias", "rope"),
                ("alibi", "rope"),
            )
        )
        + f". {n} seeds cannot show a difference smaller than its interval.",
    ]
    beyond = [length for length in lengths if length > 32]
    found = {length: difference(runs, "alibi", "rope", length) for length in beyond}
    held = all(mean(d) + interval(d) < 0 for d in found.values())
    lines.append(
        f"- *ALiBi is better than RoPE beyond the training length.* {_verdict(held)}: ALiBi minus "
        "RoPE is "
        + ", ".join(f"{with_interval(d, '+')} at {length}" for length, d in found.items())
        + "."
    )
    return lines


def _verdict(held: bool) -> str:
    return "Held" if held else "Did not hold"


def _alike(differences: list[float]) -> str:
    apart = abs(mean(differences)) > interval(differences)
    return "they differ" if apart else "not told apart"


def draw(runs: Runs) -> Figure:
    """Validation loss against context length, a line a scheme."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axis = figure.add_subplot(xlabel="tokens in the context", ylabel="validation loss, nats")
    styles = ("-", "--", ":")
    for number, (name, found) in enumerate(runs.items()):
        lengths = [n for n, loss in sorted(found[0]["lengths"].items()) if loss is not None]
        losses = [[run["lengths"][n] for run in found] for n in lengths]
        axis.errorbar(
            lengths,
            [mean(at_length) for at_length in losses],
            yerr=[interval(at_length) for at_length in losses],
            label=name,
            marker=".",
            capsize=2,
            color=f"C{number % 10}",
            linestyle=styles[number // 10],
        )
    axis.axvline(32, color="0.5", linestyle=":")
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.grid(alpha=0.3)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


if __name__ == "__main__":
    main(*sys.argv[1:])
