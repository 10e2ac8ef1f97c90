"""Tables of the choices that can be combined, for `minigpt doctor`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from minigpt.config.compose import composed_config
from minigpt.model import ModelConfig
from minigpt.model.attention import ATTENTION
from minigpt.model.backends import BACKENDS
from minigpt.model.compatibility import USES, backend_limit, problems
from minigpt.model.ffn import FFN
from minigpt.model.norm import PLACEMENTS
from minigpt.model.positional import POSITIONAL

BY_DEVICE = [(backend, device) for backend in BACKENDS for device in ("cpu", "cuda", "mps")]


@dataclass(frozen=True)
class Capabilities:
    """A table: title, headings and rows of cells."""

    title: str
    head: list[str]
    rows: list[list[str]]


class Footnotes:
    """Distinct reasons, numbered from 1 in the order of their first use."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def number(self, reason: str) -> str:
        """Return the number of a reason, adding it if it is new."""
        if reason not in self.reasons:
            self.reasons.append(reason)
        return str(self.reasons.index(reason) + 1)

    def lines(self) -> list[str]:
        """Return the numbered reasons."""
        return [f"{number} {reason}" for number, reason in enumerate(self.reasons, 1)]


def backend_tables(footnotes: Footnotes) -> list[Capabilities]:
    """Return which backend trains and decodes which positional scheme and attention, by device.

    For the default design: a soft-cap, dropout or small heads can exclude more.
    """
    head = [f"{backend} {device}" for backend, device in BY_DEVICE]
    schemes = {name: composed_config([f"positional={name}"]).model for name in POSITIONAL.names()}
    return [
        Capabilities(
            "attention backends: t trains, d decodes, a number is the reason why not",
            ["positional", *head],
            _by_backend(schemes, footnotes),
        ),
        Capabilities(
            "the same by attention", ["attention", *head], _by_backend(_attentions(), footnotes)
        ),
    ]


def attention_table(footnotes: Footnotes) -> Capabilities:
    """Return which positional scheme, feed-forward and norm can be combined with each attention."""
    attentions = _attentions()
    groups = {"positional": POSITIONAL.names(), "ffn": FFN.names(), "norm": [*PLACEMENTS]}
    rows = []
    for choice in (f"{group}={name}" for group, names in groups.items() for name in names):
        design = composed_config([choice]).model
        designs = [replace(design, attention=of.attention) for of in attentions.values()]
        rows.append([choice, *(_compatible(config, footnotes) for config in designs)])
    with_documents = (
        _compatible(config, footnotes, documents=True) for config in attentions.values()
    )
    rows.append(["data.document_separator", *with_documents])
    return Capabilities("choices that can be combined with each attention", _head(attentions), rows)


def _attentions() -> dict[str, ModelConfig]:
    return {name: composed_config([f"attention={name}"]).model for name in ATTENTION.names()}


def _head(names: Iterable[str]) -> list[str]:
    return ["choice", *(name.replace("_", "_\n") for name in names)]


def _by_backend(configs: dict[str, ModelConfig], footnotes: Footnotes) -> list[list[str]]:
    return [
        [name, *(_uses(config, *where, footnotes) for where in BY_DEVICE)]
        for name, config in configs.items()
    ]


def _uses(config: ModelConfig, backend: str, device: str, footnotes: Footnotes) -> str:
    """Return "t d" for a backend that trains and decodes, or the numbers of the reasons why not."""
    reasons = {use: backend_limit(config, backend, device, use) for use in USES}
    return " ".join(
        use[0] if reason is None else footnotes.number(reason) for use, reason in reasons.items()
    )


def _compatible(config: ModelConfig, footnotes: Footnotes, documents: bool = False) -> str:
    reasons = problems(config, documents=documents)
    return footnotes.number(str(reasons[0])) if reasons else "yes"
