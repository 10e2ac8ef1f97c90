"""Tables of supported combinations of choices, for `minigpt doctor`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cache

from minigpt.config.compose import composed_config
from minigpt.model import ModelConfig
from minigpt.model.attention import ATTENTION
from minigpt.model.backends import BACKENDS
from minigpt.model.compatibility import USES, backend_limit, problems
from minigpt.model.ffn import FFN
from minigpt.model.norm import PLACEMENTS
from minigpt.model.positional import POSITIONAL
from minigpt.objective import OBJECTIVES

DEVICES = ("cpu", "cuda", "mps")
GROUPS = {
    "positional": POSITIONAL.names(),
    "attention": ATTENTION.names(),
    "ffn": FFN.names(),
    "norm": [*PLACEMENTS],
}
Footnotes = dict[str, int]  # reasons, numbered from 1 in the order of first use


def backend_table(group: str, footnotes: Footnotes) -> list[list[str]]:
    """Return which backends support each choice of a group, by device; headings first.

    Applies to the default design; a soft-cap, dropout or small heads can exclude more. Cells are
    "t i" (training, inference), or the numbers of the reasons why not. A backend has one column if
    it supports the same on all devices.
    """
    designs = _designs(group)
    columns = [[group, *designs]]
    for backend in BACKENDS:
        by_device = {
            device: [_uses(design, backend, device, footnotes) for design in designs.values()]
            for device in DEVICES
        }
        first, *others = by_device.values()
        if all(cells == first for cells in others):
            columns.append([backend, *first])
        else:
            columns += [[f"{backend} {device}", *cells] for device, cells in by_device.items()]
    return [list(row) for row in zip(*columns, strict=True)]


def _uses(design: ModelConfig, backend: str, device: str, footnotes: Footnotes) -> str:
    """Return the initial of each use that a backend supports, or the number of the reason."""
    reasons = [(use, backend_limit(design, backend, device, use)) for use in USES]
    return " ".join(_number(reason, footnotes) if reason else use[0] for use, reason in reasons)


def attention_table(footnotes: Footnotes) -> list[list[str]]:
    """Return which choices can be combined with each attention, or why not; headings first."""

    def cells(designs: Iterable[ModelConfig], documents: bool = False) -> list[str]:
        reasons = (problems(design, documents=documents) for design in designs)
        return [_number(str(why[0]), footnotes) if why else "yes" for why in reasons]

    attentions = _designs("attention")
    rows = [["choice", *(name.replace("_", "_\n") for name in attentions)]]
    for group in ("positional", "ffn", "norm"):
        for name, design in _designs(group).items():
            combined = (replace(design, attention=of.attention) for of in attentions.values())
            rows.append([f"{group}={name}", *cells(combined)])
    return [*rows, ["data.document_separator", *cells(attentions.values(), documents=True)]]


def objective_table(footnotes: Footnotes) -> list[list[str]]:
    """Return which choices of designs go with each objective, or why not; headings first."""
    configs = {name: composed_config([f"objective={name}"]) for name in OBJECTIVES.names()}
    rows = [["choice", *configs]]
    for group in ("positional", "attention", "ffn", "norm"):
        for name, design in _designs(group).items():
            row = [f"{group}={name}"]
            for objective, config in configs.items():
                kind = OBJECTIVES.variant(objective)
                decided = kind.design(config.objective, design.block_size)
                why = problems(replace(design, **decided))
                row.append(_number(str(why[0]), footnotes) if why else "yes")
            rows.append(row)
    row = ["data.document_separator"]
    for name in configs:
        why = OBJECTIVES.variant(name).needs_one_document
        row.append("yes" if why is None else _number(why, footnotes))
    return [*rows, row]


@cache
def _designs(group: str) -> dict[str, ModelConfig]:
    return {name: composed_config([f"{group}={name}"]).model for name in GROUPS[group]}


def _number(reason: str, footnotes: Footnotes) -> str:
    return str(footnotes.setdefault(reason, len(footnotes) + 1))
