"""Count the memory of a forward pass from shapes alone, also of a device that is not here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.overrides import TorchFunctionMode

from minigpt.bench.measure import kept_bytes
from minigpt.config.schema import Config
from minigpt.errors import UserError, first_line, require
from minigpt.model import GPT
from minigpt.model.backends import BACKENDS
from minigpt.model.bias import AttentionBias
from minigpt.model.compatibility import choose_backend
from minigpt.model.grouped import repeat_kv

# What autocast computes in fp32 on a GPU, but not on a CPU (see torch's autocast op reference).
IN_FP32 = {"pow", "square", "__pow__", "exp", "log", "reciprocal", "rsqrt", "softplus", "logsumexp"}
IN_FP32 |= {"softmax", "log_softmax", "layer_norm", "rms_norm", "norm", "sum", "prod", "cumsum"}


def activation_bytes(
    config: Config, n_vocab: int, windows: int, device: str, bf16: bool, sharded: bool = False
) -> int:
    """Return the bytes that the forward pass of a micro-batch keeps for the backward pass.

    Weights are excluded, but not the copies in bf16 that autocast makes of them; with `sharded`
    there are none, because fsdp gathers the weights in bf16. `device`: cuda or cpu. A GPU need not
    be here: what its autocast and its fused kernels do otherwise is imitated. Raises UserError for
    a design whose memory depends on the data, or that is too large to count.
    """
    moe, why = config.model.ffn.name == "moe", "its memory depends on the data; use another ffn"
    require(not moe, "ffn", "moe", why)

    def count(n_layer: int) -> int:
        model = replace(config.model, n_layer=n_layer)
        return _count(replace(config, model=model), n_vocab, windows, device, bf16, sharded)

    # Deep models repeat a few layers, of which U-net skips connect two.
    period = 2 * len(getattr(config.model.attention, "layers", [1]))
    n_layer = config.model.n_layer
    few = 2 * period + n_layer % period
    if n_layer <= few + period:
        return count(n_layer)
    less, more = count(few), count(few + period)
    return less + (more - less) * ((n_layer - few) // period)


def _count(
    config: Config, n_vocab: int, windows: int, device: str, bf16: bool, sharded: bool
) -> int:
    """Return `activation_bytes` of every layer, by torch's fake tensors, which have no memory."""
    name, _ = choose_backend(config.model, device, bf16, "training")
    on_gpu = device != "cpu"
    with countable(), FakeTensorMode():
        model = GPT(config.model, n_vocab)
        if sharded and bf16:
            _replace_by_bf16(model)
        model.set_backend(FUSED.get(name, BACKENDS[name]) if on_gpu else BACKENDS[name])
        tokens = torch.zeros((windows, config.model.block_size), dtype=torch.int64)
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=bf16)
        with autocast, _GpuAutocast() if bf16 and on_gpu else nullcontext():
            return kept_bytes(model, tokens)


@contextmanager
def countable() -> Iterator[None]:
    """Raise UserError if the block makes tensors of sizes that torch cannot count."""
    try:
        yield
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise UserError(f"the memory of this design depends on the data ({error.func})") from None
    except (RuntimeError, OverflowError) as error:
        why = f"torch cannot count its bytes ({first_line(error)}); use smaller sizes"
        raise UserError(f"this design is too large: {why}") from None


def _replace_by_bf16(model: GPT) -> None:
    """Replace the parameters, as fsdp does in a forward pass. Fake ones cannot be converted."""
    parameters = list(model.parameters())
    converted = {p: nn.Parameter(p.detach().bfloat16()) for p in parameters}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, converted[parameter])


class _GpuAutocast(TorchFunctionMode):
    """Computes the functions in IN_FP32 in fp32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ in IN_FP32:
            args = [x.float() if _is_bf16(x) else x for x in args]
        return func(*args, **(kwargs or {}))


def _is_bf16(x: object) -> bool:
    return isinstance(x, Tensor) and x.dtype == torch.bfloat16


def _flex(
    q: Tensor, k: Tensor, v: Tensor, bias: AttentionBias, layer: int, dropout: float
) -> Tensor:
    """A backend that keeps what FlexAttention keeps; the result has no values."""
    return _fused(q, repeat_kv(k, q), repeat_kv(v, q), None)


def _sdpa(
    q: Tensor, k: Tensor, v: Tensor, bias: AttentionBias, layer: int, dropout: float
) -> Tensor:
    """A backend that keeps what the kernels of scaled_dot_product_attention keep."""
    mask = None if bias.is_causal or bias.is_absent else bias.dense(q, k, layer)
    return _fused(q, repeat_kv(k, q), repeat_kv(v, q), mask)


FUSED = {"sdpa": _sdpa, "flex": _flex}


def _fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    if torch.is_autocast_enabled("cpu"):
        q, k, v = (x.bfloat16() for x in (q, k, v))
    return _Fused.apply(q, k, v, None if mask is None else mask.to(q.dtype))


class _Fused(torch.autograd.Function):
    """Keeps q, k, v, the mask, the output, and the logarithm of a sum for each query.

    The output has the layout of the queries, as that of flash attention.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, mask, out, q.new_empty(q.shape[:3], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise NotImplementedError("it has no values")
