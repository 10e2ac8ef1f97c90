"""Which tokens a loss is of, in words. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

Item = TypeVar("Item")
Task = Mapping[str, Any]

CAUSAL, EVERY_TOKEN = "causal", "every next token"
NOT_COMPARED = "Losses of different objectives are of different tokens, and are not compared."


def tokens_note(loss_of: str) -> str:
    """Return a note beside a loss on its tokens; '' for those of the causal objective."""
    return "" if loss_of == EVERY_TOKEN else f" ({loss_of})"


def heading(name: str, loss_of: str | None) -> str:
    """Return a heading for runs with the objective `name`, which says what their losses are of."""
    return f"objective={name}" + ("" if loss_of is None else f": losses of {loss_of}")


def grouped(items: Sequence[Item], task: Callable[[Item], Task | None]) -> dict[str, list[Item]]:
    """Group items by task, see `ObjectiveConfig`, in the order of their first item.

    The key is the name of the objective, with its options where they differ between the groups. An
    item whose task is not known (None) is in the first group.
    """
    tasks = [task(item) for item in items]
    known: list[Task] = []
    for one in tasks:
        if one is not None and one not in known:
            known.append(one)
    names = [_name(one, known) for one in known] or [CAUSAL]
    groups: dict[str, list[Item]] = {name: [] for name in names}
    for item, one in zip(items, tasks, strict=True):
        groups[names[0 if one is None else known.index(one)]].append(item)
    return groups


def _name(task: Task, tasks: Sequence[Task]) -> str:
    same = [other for other in tasks if other["name"] == task["name"]]
    differing = (key for key in task if any(other.get(key) != task[key] for other in same))
    return " ".join([task["name"], *(f"{key}={task[key]}" for key in differing)])
