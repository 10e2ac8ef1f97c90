"""Tables that compiled code computes once, instead of in every kernel that reads them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def materialized(x: Tensor) -> Tensor:
    """Return x; in code that torch.compile compiles, store it as a tensor.

    Inductor inlines pointwise producers into their consumers: without this, each kernel computes
    the cosines of all its angles again. Operators of `torch.library` are never inlined.
    """
    compiles = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
    return _stored(x) if compiles else x


@torch.library.custom_op("minigpt::stored", mutates_args=())
def _stored(x: Tensor) -> Tensor:
    return x.clone()


@_stored.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _gradient(ctx: Any, grad: Tensor) -> Tensor:
    return grad


def _batched(info: Any, in_dims: tuple[int | None], x: Tensor) -> tuple[Tensor, int | None]:
    return _stored(x), in_dims[0]


_stored.register_autograd(_gradient)
_stored.register_vmap(_batched)
