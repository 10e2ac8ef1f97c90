"""What the program writes on the pages of docs/journey."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from minigpt.config.pairs import as_typed
from minigpt.export.architecture import group_of
from minigpt.files import write_text
from minigpt.report.runs import Run
from minigpt.report.tables import Cell, Column
from studies.journey.pictures import BITS, LOSS, draw_journey, draw_step, trained
from studies.journey.steps import Step, changed_keys, steps
from studies.written import table_of, with_part

PAGES = Path(__file__).parent.parent.parent / "docs/journey"
START, END = "<!-- written by python -m studies.journey.journey -->", "<!-- end of results -->"
NUMBERS = [
    Column("parameters", "parameters", 0),
    Column(LOSS, "loss, nats/token"),
    Column(BITS, "bits/byte"),
    Column("seconds", "seconds", 0),
]


def write_pages(target: Path, runs: Mapping[str, Run], printed: Path) -> None:
    """Write the pages with what is known, and their pictures, into a folder.

    `printed`: the folder with the output of commands, by page.
    """
    (target / "plots").mkdir(parents=True, exist_ok=True)
    for page in sorted(PAGES.glob("*.md")):
        text, part = page.read_text(encoding="utf-8"), part_of(page.stem, runs, printed)
        write_text(target / page.name, text if part is None else with_part(text, START, END, part))
    for step in steps().values():
        if step.name in runs:
            draw_step(step, runs, target / f"plots/{step.name}.svg")
    if runs:
        draw_journey(runs, target / "plots/index.svg")


def part_of(page: str, runs: Mapping[str, Run], printed: Path) -> str | None:
    """Return what the program writes on a page, '' without results; None if it writes nothing."""
    if page == "index":
        return index(runs)
    if page in steps():
        return part_of_step(steps()[page], runs)
    if START not in (PAGES / f"{page}.md").read_text(encoding="utf-8"):
        return None
    file = printed / f"{page}.txt"
    return f"```\n{file.read_text(encoding='utf-8').strip()}\n```" if file.is_file() else ""


def part_of_step(step: Step, runs: Mapping[str, Run]) -> str:
    """Return what a step changes and, if it is trained, its loss and its picture."""
    parts = [] if step.before is None else [changes(step)]
    if step.name in runs:
        names = trained(step, runs)
        rows: list[list[Cell]] = [[name, *numbers(runs[name])] for name in names]
        parts.append(table_of([Column("step"), *NUMBERS], rows))
        parts.append(f"![Validation loss of {' and '.join(names)}](plots/{step.name}.svg)")
    return "\n\n".join(parts)


def changes(step: Step) -> str:
    """Return the table of the options that a step changes, as on the command line."""
    assert step.before is not None
    before = steps()[step.before]
    rows: list[list[Cell]] = [
        [group_of(key), as_typed(before.config.get(key)), as_typed(step.config.get(key))]
        for key in changed_keys(step)
    ]
    return table_of([Column("option"), Column(before.name), Column(step.name)], rows)


def numbers(run: Run) -> list[Cell]:
    """Return the cells of a run in the columns NUMBERS."""
    return [run.number("parameters.total"), *map(run.number, (LOSS, BITS, "seconds"))]


def step_number(name: str | None) -> str:
    """Return the number of a step, as in the heading of its page; '' for none."""
    return "" if name is None else name.partition("_")[0].lstrip("0")


def index(runs: Mapping[str, Run]) -> str:
    """Return the table of all trained steps and its picture, '' if there are none."""
    rows: list[list[Cell]] = []
    for step in steps().values():
        if step.name in runs:
            known = [runs[name].number(BITS) for name in trained(step, runs)]
            values = [value for value in known if value is not None]
            difference = values[1] - values[0] if len(values) == 2 else None
            rows.append(
                [step.name, *numbers(runs[step.name]), difference, step_number(step.before)]
            )
    if not rows:
        return ""
    difference = Column("difference", "difference, bits/byte", sign="+")
    table = table_of([Column("step"), *NUMBERS, difference, Column("to step")], rows)
    return f"{table}\n\n![Bits per byte of all steps](plots/index.svg)"
