"""The pictures of the journey."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minigpt.report.runs import Run
from studies.journey.steps import Step, steps

LOSS, BITS = "val_loss", "val_bits_per_byte"
UNITS = {LOSS: "validation loss, nats/token", BITS: "validation loss, bits/byte"}
COLOURS = ("#9a9a9a", "#2f7fd6")  # the step before, this one


def draw_step(step: Step, runs: Mapping[str, Run], path: Path) -> None:
    """Draw the validation losses of a step and of the one before, in training."""
    shown = trained(step, runs)
    tokenizers = {steps()[name].config["tokenizer.name"] for name in shown}
    key = LOSS if len(tokenizers) == 1 else BITS
    with svg(path, (5.5, 3)) as ax:
        for name, colour in zip(shown, COLOURS[-len(shown) :], strict=True):
            curve = runs[name].logged(key)
            ax.plot([*curve], [*curve.values()], "o-", color=colour, markersize=3, label=name)
        ax.set(xlabel="steps", ylabel=UNITS[key])
        ax.legend(frameon=False)


def trained(step: Step, runs: Mapping[str, Run]) -> list[str]:
    """Return the names of the step before and of this one, if they are trained."""
    return [name for name in (step.before, step.name) if name is not None and name in runs]


def draw_journey(runs: Mapping[str, Run], path: Path) -> None:
    """Draw the bits per byte of each step, joined to the step that it changes."""
    bits = {name: runs[name].number(BITS) for name in steps() if name in runs}
    places = {name: place for place, name in enumerate(bits)}
    with svg(path, (9, 4)) as ax:
        for name, place in places.items():
            before = steps()[name].before
            if before in places:
                ends = [places[before], place], [bits[before], bits[name]]
                ax.plot(*ends, color=COLOURS[0], linewidth=1)
        ax.plot([*places.values()], [*bits.values()], "o", color=COLOURS[1])
        ax.set_xticks([*places.values()], [*places], rotation=60, ha="right", fontsize=8)
        ax.set(ylabel=UNITS[BITS])


@contextmanager
def svg(path: Path, size: tuple[float, float]) -> Iterator[Any]:
    """Give the axes of a figure of `size` in inches, and save it, the same bytes each time."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": path.stem, "svg.fonttype": "none"}):
        figure = Figure(figsize=size, layout="constrained")
        ax = figure.subplots()
        ax.grid(alpha=0.3)
        yield ax
        figure.savefig(path, metadata={"Date": None, "Creator": None})
