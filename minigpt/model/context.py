"""Inputs and intermediate results shared by the layers of one forward pass."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from minigpt.model.backends import Backend
from minigpt.model.kv_cache import KVCache
from minigpt.model.memory import Memory
from minigpt.model.positional import PositionalScheme
from minigpt.model.visibility import Visibility, earlier

T = TypeVar("T")


@dataclass
class Auxiliary:
    """Auxiliary losses and metrics of layers, by name.

    `losses`: one scalar per layer that has this loss. `coefficients`: the weight of each loss.
    `metrics`: detached tensors that are logged. `total`: sums a tensor over the processes that
    share the batch.
    """

    losses: dict[str, list[Tensor]] = field(default_factory=dict)
    coefficients: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, Tensor] = field(default_factory=dict)
    total: Callable[[Tensor], Tensor] = lambda x: x


@dataclass
class ForwardContext:
    """The inputs, settings and intermediate results that the layers of one forward pass share.

    `positions` (b or 1, t): absolute positions of the hidden states. The first `n_tokens` along t
    are tokens; an attention may append others. `last_position`: upper bound of the positions.
    `in_order`: whether the positions are 0, 1, ... and the cache is empty. `query_blocks`: whether
    attention with a horizon is computed in blocks of queries. `document_ids`: see `GPT.hidden`.
    `visible`: which keys a query can see. `memory`: the output of an encoder, which the blocks of a
    decoder attend to. `auxiliary`: collects losses and metrics. `x0` (b, t, d): the input of the
    first block over its RMS, and `first_values` (b, h, t, e): the values of layer 0, for value
    residuals.
    """

    positional: PositionalScheme
    backend: Backend
    n_head: int
    logit_softcap: float | None
    positions: Tensor
    n_tokens: int
    last_position: int
    in_order: bool
    cache: KVCache | None = None
    query_blocks: bool = True
    document_ids: Tensor | None = None
    visible: Visibility = earlier
    memory: Memory | None = None
    auxiliary: Auxiliary | None = None
    x0: Tensor | None = None
    first_values: Tensor | None = None
    _results: dict[object, Any] = field(default_factory=dict)

    def once(self, key: object, compute: Callable[[], T]) -> T:
        """Return compute(); cache the result under `key` for this forward pass."""
        if key not in self._results:
            self._results[key] = compute()
        return cast(T, self._results[key])

    def visible_keys(self, batch: int) -> Tensor:
        """Return the mask (b, t) of the keys that the first query of each row can see.

        In an encoder, these are all but padding.
        """
        positions = self.positions.expand(batch, -1)
        b = torch.arange(batch, device=positions.device)[:, None]
        return self.visible(b, positions[:, :1], positions)

    def without_side_effects(self) -> ForwardContext:
        """Return a copy without the KV cache, `auxiliary` and cached results."""
        copied = copy(self)
        copied.cache = copied.auxiliary = copied.first_values = None
        copied._results = {}
        return copied


# FSDP copies every dataclass in the inputs of a module, and layers could not share one.
del ForwardContext.__dataclass_fields__
