"""The results table of the repository's README, from the committed runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minigpt.report.tables import Cell, Column
from studies.claims.claims import BIGRAM, POSITIONAL
from studies.claims.evidence import POSTS, Evidence
from studies.written import table_of

README = Path(__file__).parent.parent.parent / "README.md"
START, END = "<!-- written by python -m studies.claims.run -->", "<!-- end of results -->"
# The overrides of each row, and the design that they make.
ROWS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "bigram": ("model=bigram model.n_layer=0", BIGRAM),
    "learned positions": ("positional=learned", {POSITIONAL: "learned"}),
    "rotary positions": ("positional=rope", {POSITIONAL: "rope"}),
    "T5's relative bias": ("positional=t5", {POSITIONAL: "t5"}),
    "ALiBi": ("positional=alibi", {POSITIONAL: "alibi"}),
}
COLUMNS = [
    Column("model"),
    Column("parameters"),
    Column("loss", "validation loss, nats/character"),
    Column("seconds", "seconds on one core", digits=0),
    Column("command", "options of minigpt train experiment=claims/posts"),
]


def results_table(results: Path) -> str:
    """Return the table in Markdown. Raises NotTrained if the runs are missing."""
    evidence = Evidence(results, POSTS, ["posts/positional", "posts/bigram"])
    rows: list[list[Cell]] = []
    for name, (overrides, changes) in ROWS.items():
        design = evidence.design(changes)
        loss, parameters = design.interval("val_loss"), evidence.number(changes, "parameters.total")
        seconds = design.spread("seconds")
        rows.append([name, parameters, loss, seconds and seconds.median, overrides])
    return table_of(COLUMNS, rows)
