"""Fixtures of the inference tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.model.tiny import default_dtype


@pytest.fixture
def float64_inference() -> Iterator[None]:
    """Set torch's default dtype to float64 and disable gradients."""
    with default_dtype(torch.float64), torch.inference_mode():
        yield
