"""Linear layers, with a faster product for the few rows of decoding on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Where a batch of two products is faster than one: docs/performance.md has the measurements.
MAX_ROWS = 8
MIN_WEIGHTS = 2**16


class Linear(nn.Linear):
    """torch.nn.Linear. In fp32 on a CPU without gradients, few rows take another product.

    MKL multiplies a large matrix with one to eight columns faster in `torch.bmm`, as two halves.
    The result is equal up to rounding.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        pays = in_features * out_features >= MIN_WEIGHTS and torch.backends.mkl.is_available()
        self._max_values = MAX_ROWS * in_features if pays and out_features % 2 == 0 else 0

    def forward(self, input: Tensor) -> Tensor:
        few_rows = 0 < input.numel() <= self._max_values
        if few_rows and not torch.is_grad_enabled() and self._in_fp32_on_cpu(input):
            return self._multiply_few(input)
        return super().forward(input)

    def _in_fp32_on_cpu(self, input: Tensor) -> bool:
        fp32 = self.weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        return fp32 and input.is_cpu and type(self.weight) is nn.Parameter  # not quantized

    def _multiply_few(self, input: Tensor) -> Tensor:
        columns = input.reshape(-1, self.in_features).t()
        halves = self.weight.view(2, -1, self.in_features)
        output = torch.bmm(halves, columns.expand(2, -1, -1)).view(self.out_features, -1).t()
        output = output.reshape(*input.shape[:-1], self.out_features)
        return output if self.bias is None else output + self.bias


class ZeroLinear(Linear):
    """A linear layer without a bias that starts at zero, and draws no random numbers for it.

    So a part that has one starts without effect, and leaves the other weights as they are without.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)


def matrices(module: nn.Module) -> list[Tensor]:
    """Return the weights of the linear layers in a module."""
    return [part.weight for part in module.modules() if isinstance(part, nn.Linear)]


def linear_flops(module: nn.Module) -> int:
    """Return the training FLOPs of a row in the linear layers of a module: 6 per weight.

    A multiplication and an addition in the forward pass, and as many for each of both gradients. A
    frozen weight has no gradient of its own.
    """
    return sum((6 if w.requires_grad else 4) * w.numel() for w in matrices(module))
