"""Fixtures of the model tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from minigpt.model import backends
from tests.model.tiny import default_dtype


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `blockwise` split short sequences, most of them into blocks of unequal size."""
    monkeypatch.setattr(backends, "BLOCK_QUERIES", 3)


@pytest.fixture
def float64() -> Iterator[None]:
    """Set torch's default dtype to float64."""
    with default_dtype(torch.float64):
        yield
