"""When do more parameters stop helping on tiny Shakespeare? Train, keep results, write a page.

    python -m studies.scaling.scaling              # write the page from results/, without training
    python -m studies.scaling.scaling --train all  # 86 minutes of training on one core first

Training can be stopped; the same command continues. More arguments are overrides for all runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minigpt.config.pairs import parse_override
from minigpt.console import duration
from minigpt.errors import UserError
from minigpt.report.comparison import compare
from minigpt.report.power_law import Point
from minigpt.report.runs import RunCollection
from minigpt.report.scaling import Scaling, fit_scaling
from minigpt.report.scaling_page import compute_optimal, laws, notes
from minigpt.report.statistics import CONFIDENCE, Interval, interval, paired
from minigpt.report.tables import Cell, Column, Table, to_markdown
from studies.kept import keep, minigpt, refuse, study_options

HERE = Path(__file__).parent
RUNS, PLOT = Path("runs/scaling"), "sizes.png"
TOLERANCE = 0.02  # nats/token: a smaller difference is no reason for more parameters
# Each is the preset sweep=scaling with other values of some options.
SWEEPS = {
    "sizes": ["data.fraction=1.0"],
    "text": ["trainer.max_steps=1000", "data.fraction=0.125,0.25,0.5", "model.n_layer=2"],
    "long": [
        *("trainer.max_steps=2000", "data.fraction=0.125,1.0", "seed=1,2"),
        *("model.n_layer=2", "model.n_embd=16,32,64,128,256"),
    ],
}


def main() -> None:
    """Train what is missing, keep its results and write the page."""
    options = study_options("When more parameters stop helping.", [*SWEEPS], RUNS, HERE)
    results, out = options.results, options.out / "results.md"
    try:
        for name in options.train:
            train(name, options.runs, options.overrides)
            keep(options.runs / name, results / name)
        if not results.is_dir():
            raise UserError(f"{results}: not trained; use --train all")
        text = page(results)
    except UserError as error:
        refuse(error)
    out.write_text(text, encoding="utf-8")
    print(text)
    print(f"written to {out}")


def train(name: str, folder: Path, overrides: Sequence[str]) -> None:
    """Train the runs of a sweep that are missing; exit if the command is wrong."""
    options = {parse_override(text).key: text for text in (*SWEEPS[name], *overrides)}
    command = ["train", "-m", "sweep=scaling", "experiment=seed_blog", "logger=none"]
    if minigpt(*command, f"hydra.sweep.dir={folder / name}", *options.values(), allowed=1):
        print(f"{name}: some runs failed", file=sys.stderr)


# ---- the page ----


def page(results: Path) -> str:
    """Return the page in Markdown, and write its plot beside it."""
    comparison = compare([str(results)])
    lines = [
        "# When do more parameters stop helping?",
        "",
        f"Written by `python -m studies.scaling.scaling`. {trained(comparison.collection)}",
        "",
    ]
    try:
        scaling = fit_scaling(comparison)
    except UserError as error:
        return "\n".join([*lines, f"{error}.", ""])
    plot(scaling, results.with_name(PLOT))
    lines += [*answer(scaling), "", f"![loss by parameters]({PLOT})", ""]
    tables = [enough(scaling), laws(scaling), compute_optimal(scaling)]
    lines += [to_markdown(table) for table in tables if table is not None]
    lines += [f"- {line}" for line in notes(scaling)]
    return "\n".join(lines) + "\n"


def trained(collection: RunCollection) -> str:
    """Return the number of runs, their time of training, device, torch and commit."""
    finished = [run for run in collection.runs if run.finished]
    seconds = sum(run.number("seconds") or 0 for run in finished)

    def known(key: str, of: Any = None) -> str:
        facts = [(run.manifest if of is None else run.manifest[of]).get(key) for run in finished]
        return ", ".join(sorted({str(fact) for fact in facts}))

    commits = {str(run.manifest.get("commit"))[:8] for run in finished}
    return (
        f"{len(finished)} runs, {duration(seconds)} of training in all; {known('device')}; torch "
        f"{known('torch', 'versions')}, commit {', '.join(sorted(commits))}."
    )


def groups(scaling: Scaling) -> dict[tuple[float, float], list[Point]]:
    """Return the points of each D and U with several sizes, in ascending order of N."""
    found: dict[tuple[float, float], list[Point]] = {}
    for point in sorted(scaling.points, key=lambda p: (p.x["U"], p.x["D"], p.x["N"])):
        found.setdefault((point.x["D"], point.x["U"]), []).append(point)
    return {at: points for at, points in found.items() if len(points) > 1}


def best_of(points: Sequence[Point]) -> Point:
    """Return the size with the lowest mean loss."""
    return min(points, key=lambda point: point.mean)


def smallest_enough(points: Sequence[Point]) -> Point:
    """Return the smallest size whose mean loss is within TOLERANCE of the lowest."""
    limit = best_of(points).mean + TOLERANCE
    return next(point for point in points if point.mean <= limit)


def rise(points: Sequence[Point]) -> Interval | None:
    """Return the loss of the largest size minus that of the best; None if they are the same."""
    best, largest = best_of(points), points[-1]
    difference = None if best is largest else paired(largest.losses, best.losses)
    return None if difference is None else difference.interval


def enough(scaling: Scaling) -> Table:
    """Return, for each length and text, the best size and the smallest that is about as good."""
    columns = [
        *(Column("u", "U, unique tokens"), Column("d", "D, tokens"), Column("passes", "D / U", 1)),
        *(Column("largest", "largest N"), Column("best", "best N"), Column("loss")),
        Column("enough", f"smallest N within {TOLERANCE:g}"),
        Column("rise", "largest minus best", sign="+"),
    ]
    rows: list[list[Cell]] = []
    for (d, u), points in groups(scaling).items():
        row: list[Cell] = [int(u), int(d), d / u, _n(points[-1]), _n(best_of(points))]
        row += [_loss(best_of(points)), _n(smallest_enough(points)), rise(points)]
        rows.append(row)
    note = (
        f"Losses in {scaling.measure.unit}, with 95 % t-intervals over seeds; N without "
        f"embeddings. Where the best N is the largest, the last column is empty: more parameters "
        f"may help."
    )
    return Table("enough", "How many parameters are enough", columns, rows, note)


def _n(point: Point) -> int:
    return int(point.x["N"])


def _loss(point: Point) -> Interval:
    return interval([*point.losses.values()])


def answer(scaling: Scaling) -> list[str]:
    """Return a sentence for each text at the most tokens it was trained for."""
    longest: dict[float, float] = {}
    for d, u in groups(scaling):
        longest[u] = max(d, longest.get(u, 0))
    lines = []
    for u, d in sorted(longest.items()):
        points = groups(scaling)[d, u]
        best, small, worse = best_of(points), smallest_enough(points), rise(points)
        where = f"{u:,.0f} unique tokens, {d:,.0f} tokens ({d / u:.1f} passes)"
        if worse is None:
            verdict = largest_is_best(points)
        else:
            half = "" if worse.half is None else f" ± {worse.half:.3f}"
            verdict = (
                f"the loss is lowest with {_n(best):,} parameters; with {_n(points[-1]):,} it is "
                f"{worse.mean:.3f}{half} higher"
            )
        if small is not best:
            verdict += f"; {_n(small):,} are enough for within {TOLERANCE:g} of the lowest"
        lines.append(f"- {where}: {verdict}.")
    return lines


def largest_is_best(points: Sequence[Point]) -> str:
    """Return whether the largest size, which has the lowest loss, gains on the next smaller one."""
    smaller, largest = points[-2:]
    difference = paired(largest.losses, smaller.losses)
    assert difference is not None
    gain = difference.interval
    half = "" if gain.half is None else f" ± {gain.half:.3f}"
    by = f"{gain.mean:+.3f}{half} from {_n(smaller):,} to {_n(largest):,}"
    if difference.p is not None and difference.p < 1 - CONFIDENCE:
        return f"more parameters help up to the largest size ({by})"
    return f"the loss is lowest with the most parameters, but not significantly ({by})"


def plot(scaling: Scaling, file: Path) -> None:
    """Draw the loss by parameters: a line for each length and text."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    found = groups(scaling)
    lengths = sorted({d for d, _ in found})
    shades = plt.colormaps["viridis"](np.linspace(0, 0.9, len(lengths)))
    texts = sorted({u for _, u in found}, reverse=True)
    for (d, u), points in found.items():
        style = ("-", "--", "-.", ":")[texts.index(u) % 4]
        means = [_loss(point) for point in points]
        axes.errorbar(
            [point.x["N"] for point in points],
            [mean.mean for mean in means],
            [mean.half or 0.0 for mean in means],
            linestyle=style,
            color=shades[lengths.index(d)],
            marker=".",
            capsize=2,
            label=f"{d:,.0f} tokens, {u:,.0f} unique",
        )
    axes.set_xscale("log")
    axes.set_xlabel("parameters without embeddings")
    axes.set_ylabel(f"{scaling.measure.name}, {scaling.measure.unit}")
    axes.legend(fontsize="x-small", ncols=2)
    figure.savefig(file, dpi=110, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
