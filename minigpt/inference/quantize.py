"""Weight-only quantization of linear layers to int8 or int4 (torchao).

It saves memory, not compute: matmuls stay in floating point.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from minigpt.errors import UserError, first_line
from minigpt.extras import install
from minigpt.model import GPT
from minigpt.run.load import TrainedRun

Run = TypeVar("Run", bound=TrainedRun)

GROUP_SIZES = (128, 64, 32)  # group sizes of torchao's int4 kernels; larger groups take fewer bytes
CPU_ROWS = 16  # torch's int4 CPU kernel needs out_features to be a multiple of this
INT4_DTYPE = torch.bfloat16  # the only one of the CUDA kernel; others are slow on CPUs


@dataclass(frozen=True)
class Quantization:
    """The number of quantized linear layers, and the bytes of all parameters before and after.

    `left`: number of linear layers that were not quantized, by reason.
    """

    method: str
    layers: int
    left: dict[str, int]
    bytes_before: int
    bytes_after: int

    def describe(self) -> str:
        """Return a one-line summary."""
        total = self.layers + sum(self.left.values())
        left = "".join(f"; {n} not quantized: {why}" for why, n in self.left.items())
        return (
            f"{self.method}: {self.layers} of {total} linear layers; parameters "
            f"{self.bytes_before:,} -> {self.bytes_after:,} bytes{left}"
        )


def quantized(trained: Run, method: str) -> tuple[Run, Quantization]:
    """Return a run with a quantized copy of its model. Raises UserError, see `quantize`."""
    model = copy.deepcopy(trained.model)
    quantization = quantize(model, method)
    changes = (*trained.changes, f"quantize={method}")
    return replace(trained, model=model, changes=changes), quantization


@torch.no_grad()
def quantize(model: GPT, method: str) -> Quantization:
    """Quantize the weights of a model's linear layers in place.

    int8: symmetric, one scale per output channel, absmax / 127.5. int4: asymmetric, 16 levels from
    the minimum to the maximum of each group of input channels, with the largest group size that
    divides them. Layers that no kernel supports or that would not shrink are not quantized, and
    neither is a head tied to the token embedding. Raises UserError if no layer can be quantized or
    torchao is missing.
    """
    _require_torchao(method)
    before, layers = sum(map(stored_bytes, model.parameters())), 0  # a shared tensor counts once
    left: Counter[str] = Counter()
    for name, linear in [*model.named_modules()]:
        if not isinstance(linear, nn.Linear):
            continue
        tied = linear.weight is model.token_embedding.weight
        new = "tied to the token embedding" if tied else METHODS[method](linear)
        if isinstance(new, str):
            left[new] += 1
        else:
            model.set_submodule(name, new)
            layers += 1
    if layers == 0:
        reasons = "; ".join(left) or "the model has no linear layers"
        raise UserError(f"--quantize={method}: no layer can be quantized ({reasons}); leave it out")
    after = sum(map(stored_bytes, model.parameters()))
    return Quantization(method, layers, dict(left), before, after)


def _int8(linear: nn.Linear) -> nn.Linear | str:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    layer = copy.deepcopy(linear)
    quantize_(layer, Int8WeightOnlyConfig(set_inductor_config=False))
    return layer


def _int4(linear: nn.Linear) -> nn.Linear | str:
    """Return a quantized copy of a layer, or why not. Raises UserError if there is no kernel."""
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
    from torchao.quantization import Int4WeightOnlyConfig, quantize_
    from torchao.quantization.quantize_.workflows import Int4PackingFormat

    device, width = linear.weight.device.type, linear.in_features
    if device not in ("cpu", "cuda"):
        raise UserError(f"--quantize=int4: no kernel on {device}; use int8, or --device cpu")
    if device == "cuda" and torch.cuda.get_device_capability() < (8, 0):
        why = "its kernel needs compute capability 8.0 or newer; use int8"
        raise UserError(f"--quantize=int4: {why}")
    size = next((size for size in GROUP_SIZES if width % size == 0), None)
    if size is None:
        return f"in_features={width} is not a multiple of {min(GROUP_SIZES)}"
    if device == "cpu" and linear.out_features % CPU_ROWS:
        return f"out_features={linear.out_features} is not a multiple of {CPU_ROWS}"
    layer = copy.deepcopy(linear)
    layer.weight = nn.Parameter(linear.weight.to(INT4_DTYPE))
    if device == "cpu":  # torchao's other CPU layouts use a byte per value
        quantize_(layer, PrototypeInt4WeightOnlyConfig(size, set_inductor_config=False))
    else:
        packing = Int4PackingFormat.TILE_PACKED_TO_4D
        config = Int4WeightOnlyConfig(size, set_inductor_config=False, int4_packing_format=packing)
        quantize_(layer, config)
    if stored_bytes(layer.weight) >= stored_bytes(linear.weight):  # tiles are padded
        return f"in_features={width} takes no fewer bytes in torchao's layout for {device}"
    return Int4Linear(layer)


# set_inductor_config=False: it would change global settings of torch.compile.
METHODS = {"int8": _int8, "int4": _int4}


class Int4Linear(nn.Linear):
    """An int4 layer that computes in bf16 and returns the dtype of its input."""

    def __init__(self, linear: nn.Linear) -> None:
        bias = linear.bias is not None
        super().__init__(linear.in_features, linear.out_features, bias, device="meta")
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.to(INT4_DTYPE)).to(input.dtype)


def stored_bytes(tensor: Tensor) -> int:
    """Return a tensor's size in bytes, including scales and zero points if quantized."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        return tensor.untyped_storage().nbytes()
    return sum(stored_bytes(getattr(tensor, name)) for name in flatten()[0])


def _require_torchao(method: str) -> None:
    """Import torchao without its warnings about missing kernels. Raises UserError if missing."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        import torchao.prototype.quantization.int4
        import torchao.quantization  # noqa: F401
    except ImportError as error:
        why = f"{first_line(error)}; {install('quantize')}"
        raise UserError(f"--quantize={method}: needs torchao ({why})") from error
    finally:
        logging.disable(before)
