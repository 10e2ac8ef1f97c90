"""Weights of linear layers rounded to 8 or 4 bits, to use a trained model in less memory (torchao).

What is held shrinks, not the work: products are of floating-point numbers as before.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from minigpt.errors import UserError, first_line
from minigpt.model import GPT
from minigpt.run.load import TrainedRun

GROUP_SIZES = (128, 64, 32)  # that torchao's int4 kernels have, the fewest bytes first
CPU_ROWS = 16  # of an int4 weight that torch's CPU kernel takes at once
INT4_DTYPE = torch.bfloat16  # CUDA's kernel takes no other; the CPU's is slow in any other


@dataclass(frozen=True)
class Quantization:
    """What was quantised: linear layers, those `left` by reason, bytes of all the parameters."""

    method: str
    layers: int
    left: dict[str, int]
    bytes_before: int
    bytes_after: int

    def describe(self) -> str:
        """One line for people."""
        total = self.layers + sum(self.left.values())
        left = "".join(f"; {n} as before: {why}" for why, n in self.left.items())
        return (
            f"{self.method}: {self.layers} of {total} linear layers; weights "
            f"{self.bytes_before:,} -> {self.bytes_after:,} bytes{left}"
        )


def quantized(trained: TrainedRun, method: str) -> TrainedRun:
    """A run with a quantised copy of its model. Raises UserError, see `quantize`."""
    model = copy.deepcopy(trained.model)
    return replace(trained, model=model, quantization=quantize(model, method))


@torch.no_grad()
def quantize(model: GPT, method: str) -> Quantization:
    """Round the weights of a model's linear layers, in place; all else stays as it is.

    int8: absmax a row over 127.5, a scale for each row. int4: two a byte, from the least to the
    greatest of each group of input channels in 15 steps; the largest group that divides them. What
    no kernel takes or what would not shrink is left, and a head that is the token table. Raises
    UserError where nothing is to be quantised, or without torchao.
    """
    _require_torchao(method)
    before, layers = _bytes_of(model), 0
    left: Counter[str] = Counter()
    for name, linear in [*model.named_modules()]:
        if not isinstance(linear, nn.Linear):
            continue
        tied = linear.weight is model.token_embedding.weight
        new = "the tied head is the token table" if tied else ROUNDED[method](linear)
        if isinstance(new, str):
            left[new] += 1
        else:
            model.set_submodule(name, new)
            layers += 1
    if layers == 0:
        whys = "; ".join(left) or "the model has no linear layer"
        raise UserError(f"--quantize={method}: nothing to quantise ({whys}); leave it out")
    return Quantization(method, layers, dict(left), before, _bytes_of(model))


def _int8(linear: nn.Linear) -> nn.Linear | str:
    """A copy of a layer with rounded weights."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    small = copy.deepcopy(linear)
    quantize_(small, Int8WeightOnlyConfig(set_inductor_config=False))
    return small


def _int4(linear: nn.Linear) -> nn.Linear | str:
    """A copy of a layer with rounded weights, or why there is none. Raises UserError if never."""
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
    from torchao.quantization import Int4WeightOnlyConfig, quantize_
    from torchao.quantization.quantize_.workflows import Int4PackingFormat

    device, width = linear.weight.device.type, linear.in_features
    if device not in ("cpu", "cuda"):
        raise UserError(f"--quantize=int4: no kernel on {device}; use int8, or --device cpu")
    if device == "cuda" and torch.cuda.get_device_capability() < (8, 0):
        raise UserError("--quantize=int4: its kernel needs a GPU of 8.0 or newer; use int8")
    size = next((size for size in GROUP_SIZES if width % size == 0), None)
    if size is None:
        return f"in_features={width} is no multiple of {min(GROUP_SIZES)}"
    if device == "cpu" and linear.out_features % CPU_ROWS:
        return f"out_features={linear.out_features} is no multiple of {CPU_ROWS}"
    small = copy.deepcopy(linear)
    small.weight = nn.Parameter(linear.weight.to(INT4_DTYPE))
    if device == "cpu":  # its other layouts that run here keep each number in a byte
        quantize_(small, PrototypeInt4WeightOnlyConfig(size, set_inductor_config=False))
    else:
        packing = Int4PackingFormat.TILE_PACKED_TO_4D
        config = Int4WeightOnlyConfig(size, set_inductor_config=False, int4_packing_format=packing)
        quantize_(small, config)
    if held_bytes(small.weight) >= held_bytes(linear.weight):  # tiles are padded
        return f"in_features={width} take no fewer bytes in torchao's layout for {device}"
    return Int4Linear(small)


ROUNDED = {"int8": _int8, "int4": _int4}  # without torchao's settings of the whole process


class Int4Linear(nn.Linear):
    """A quantised layer that computes in bf16; what comes out has the dtype of what came in."""

    def __init__(self, linear: nn.Linear) -> None:
        bias = linear.bias is not None
        super().__init__(linear.in_features, linear.out_features, bias, device="meta")
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.to(INT4_DTYPE)).to(input.dtype)


def held_bytes(tensor: Tensor) -> int:
    """Bytes a tensor really holds: of a quantised one its packed numbers, scales and zeros."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        return tensor.untyped_storage().nbytes()
    return sum(held_bytes(getattr(tensor, name)) for name in flatten()[0])


def _bytes_of(model: GPT) -> int:
    return sum(map(held_bytes, model.parameters()))  # a tensor used twice comes once


def _require_torchao(method: str) -> None:
    """Import it without its warnings about kernels for other machines. Raises UserError."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        import torchao.prototype.quantization.int4
        import torchao.quantization  # noqa: F401
    except ImportError as error:
        why = f"{first_line(error)}; pip install 'minigpt[quantize]'"
        raise UserError(f"--quantize={method}: needs torchao ({why})") from error
    finally:
        logging.disable(before)
