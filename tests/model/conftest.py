"""Fixtures of the model tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.model.tiny import default_dtype


@pytest.fixture
def float64() -> Iterator[None]:
    """Set torch's default dtype to float64."""
    with default_dtype(torch.float64):
        yield
