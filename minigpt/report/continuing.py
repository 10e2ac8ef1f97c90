"""Continuing text: what causal and prefix models both predict, so that it can be compared."""

from __future__ import annotations

from collections.abc import Iterator

from minigpt.loss_of import NOT_COMPARED
from minigpt.report.comparison import Comparison, comparable_runs
from minigpt.report.designs import Design
from minigpt.report.results import PERCENT, YES
from minigpt.report.runs import CONTINUATION
from minigpt.report.statistics import ALPHA, Difference, corrected, paired
from minigpt.report.tables import Cell, Column, Table


def continuing(comparison: Comparison) -> Table:
    """Return designs of all objectives by bits/byte of continuing text, with paired tests.

    Without rows unless designs of two objectives have it, of the same tokens.
    """
    columns = [
        *map(Column, ("design", "objective")),
        Column(CONTINUATION, "bits/byte"),
        Column("difference", sign="+"),
        Column("seeds"),
        Column("p", is_p=True),
        Column("p_holm", "p (Holm)", is_p=True),
        Column("significant"),
    ]
    known = [*_known(comparison)] if why_not_continuing(comparison) is None else []
    if len({objective for objective, _ in known}) < 2:
        return Table("continuing", "", columns, [])
    first, base = next((one for one in known if one[1] is comparison.baseline), known[0])
    pairs = [paired(design.seeds(CONTINUATION), base.seeds(CONTINUATION)) for _, design in known]
    found = {n: d for n, d in enumerate(pairs) if d is not None and known[n][1] is not base}
    differences = corrected(found)
    rows = [_row(*one, differences.get(number)) for number, one in enumerate(known)]
    order = sorted(range(len(known)), key=lambda n: _mean(known[n][1]))
    note = (
        f"Validation loss (bits/byte) of the second half of each window, of the same tokens for "
        f"each design: a causal model reads what is before a token, a prefix model reads the first "
        f"half of the window in both directions. ±: half-width of the {PERCENT} confidence "
        f"interval of the mean over seeds. Difference: minus {base.label} ({first}) with the same "
        f"seed; below 0 is better. p: two-sided paired t-test; p (Holm): corrected over all rows; "
        f"significant: p (Holm) below {ALPHA:.2f}."
    )
    return Table("continuing", "Continuing text", columns, [rows[n] for n in order], note)


def why_not_continuing(comparison: Comparison) -> str | None:
    """Return why designs with this loss cannot be compared by it, None if they can."""
    runs = [run for _, design in _known(comparison) for run in design.runs]
    if len({objective for objective, _ in _known(comparison)}) < 2 or comparable_runs(runs):
        return None
    return "Continuing text is not compared: text, tokenizer or model.block_size differ."


def shared_lines(comparison: Comparison) -> list[str]:
    """Return lines about all objectives together; none if there is only one."""
    lines = [NOT_COMPARED] if comparison.others else []
    why = why_not_continuing(comparison)
    return lines if why is None else [*lines, why]


def _known(comparison: Comparison) -> Iterator[tuple[str, Design]]:
    """Yield objectives with their designs that have this loss."""
    for group in comparison.groups:
        yield from ((group.objective, d) for d in group.designs if d.seeds(CONTINUATION))


def _mean(design: Design) -> float:
    interval = design.interval(CONTINUATION)
    assert interval is not None, "of a design that has this loss"
    return interval.mean


def _row(objective: str, design: Design, difference: Difference | None) -> list[Cell]:
    row: list[Cell] = [design.label, objective, design.interval(CONTINUATION)]
    if difference is None:
        return [*row, None, None, None, None, None]
    test = (difference.p, difference.p_holm, YES[difference.significant])
    return [*row, difference.interval, difference.interval.n, *test]
