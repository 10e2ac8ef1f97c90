"""Linear layers equal torch's, also where another product computes few rows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minigpt.model.linear import MAX_ROWS, MIN_WEIGHTS, Linear

IN = 250
LARGE = -(-MIN_WEIGHTS // IN) + 1  # 264: an even number of output features that reaches MIN_WEIGHTS


def counted(layer: Linear, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows with each use of the product for few rows."""
    uses: list[int] = []
    product = layer._multiply_few

    def multiply(x: torch.Tensor) -> torch.Tensor:
        uses.append(x.numel())
        return product(x)

    monkeypatch.setattr(layer, "_multiply_few", multiply)
    return uses


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1,), (1, 1), (3, 1), (1, 7), (2, 4), (8, 1), (9, 1), (2, 64)])
def test_few_rows_equal_torch(
    shape: tuple[int, ...], bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    layer = Linear(IN, LARGE, bias)
    uses = counted(layer, monkeypatch)
    x = torch.randn(*shape, IN)
    with torch.no_grad():
        result = layer(x)
        torch.testing.assert_close(result, F.linear(x, layer.weight, layer.bias))
    assert len(uses) == int(torch.backends.mkl.is_available() and x.numel() <= MAX_ROWS * IN)


def test_inputs_in_any_layout() -> None:
    torch.manual_seed(1)
    layer = Linear(IN, LARGE)
    x = torch.randn(IN, 2, 3).permute(1, 2, 0)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
        assert layer(torch.empty(2, 0, IN)).shape == (2, 0, LARGE)


@pytest.mark.parametrize("outputs", [LARGE + 1, 2])  # odd; too small
def test_other_sizes_are_bit_equal(outputs: int) -> None:
    torch.manual_seed(1)
    layer = Linear(IN, outputs)
    x = torch.randn(1, IN)
    with torch.no_grad():
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


def test_training_and_other_precisions_are_bit_equal() -> None:
    torch.manual_seed(1)
    layer, x = Linear(IN, LARGE), torch.randn(1, IN)
    theirs = nn.Linear(IN, LARGE)
    theirs.load_state_dict(layer.state_dict())
    for each in (layer, theirs):
        each(x).square().sum().backward()
    assert theirs.weight.grad is not None and layer.weight.grad is not None
    assert torch.equal(layer.weight.grad, theirs.weight.grad)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(layer(x), theirs(x))
        assert torch.equal(layer.bfloat16()(x.bfloat16()), theirs.bfloat16()(x.bfloat16()))
