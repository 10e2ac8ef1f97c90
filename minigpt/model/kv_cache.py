"""KV cache: keys, values and recurrent states of earlier tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

EMPTY = 2**40  # position of an empty slot: after every query, so that the causal mask hides it
SPARE = 32  # extra slots of a ring buffer: this many tokens can be rewound


class RingBuffer:
    """Keys and values of each row of a batch, position p in slot p mod capacity.

    `wraps`: positions may exceed the capacity and then overwrite the oldest; otherwise slot p holds
    position p and `grow` enlarges the buffer. Padding is not stored. `stride`: tokens per position.
    """

    def __init__(
        self, batch: int, capacity: int, wraps: bool, device: torch.device, stride: int = 1
    ) -> None:
        self.capacity, self.wraps, self.stride = capacity, wraps, stride
        # One extra slot receives keys and values that are not stored, such as padding.
        self.positions = torch.full((batch, capacity + 1), EMPTY, device=device)
        self.end = 0  # number of slots in use
        self.keys: dict[int, Tensor] = {}  # per layer: (b, h, capacity + 1, e)
        self.values: dict[int, Tensor] = {}
        self._new_slots: Tensor  # (b, t): slots of the new tokens

    def reserve(self, positions: Tensor, is_token: Tensor, last: int) -> Tensor:
        """Assign slots to new tokens at `positions` (b, t), whose maximum is `last`.

        `is_token` (b, t): False for padding. Returns the positions (b, s) of the keys that `write`
        returns.
        """
        full = f"position {last} in a cache of {self.capacity} slots"
        assert self.wraps or last < self.capacity, full
        newest = F.pad(torch.where(is_token, positions, -1), (1, 0), value=-1).amax(1, keepdim=True)
        stored = is_token & (positions > newest - self.capacity)
        before = self.positions[:, : self.end]
        self._new_slots = torch.where(stored, positions % self.capacity, self.capacity)
        self._end_before, self.end = self.end, max(self.end, min(last + 1, self.capacity))
        self.positions = self.positions.scatter(1, self._new_slots, positions)
        self.positions[:, self.capacity].fill_(EMPTY)
        return torch.cat((before, positions), 1) if self.wraps else self.positions[:, : self.end]

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values (b, h, t, e); return all to attend to (b, h, s, e).

        A buffer that wraps returns its old content followed by the new keys and values, since a
        new token may overwrite a key that an earlier new token still attends to.
        """
        if layer not in self.keys:
            b, h, _, e = k.shape
            self.keys[layer] = k.new_zeros(b, h, self.capacity + 1, e)
            self.values[layer] = v.new_zeros(b, h, self.capacity + 1, v.shape[-1])
        results = []
        for stored, new in ((self.keys[layer], k), (self.values[layer], v)):
            before = stored[:, :, : self._end_before]
            results.append(torch.cat((before, new), 2) if self.wraps else stored[:, :, : self.end])
            stored.scatter_(2, self._new_slots[:, None, :, None].expand_as(new), new)
        return results[0], results[1]

    def select(self, rows: Tensor) -> None:
        """Keep only these rows, in this order."""
        self.positions = self.positions.index_select(0, rows)
        for tensors in (self.keys, self.values):
            tensors.update({layer: x.index_select(0, rows) for layer, x in tensors.items()})

    def rewind(self, length: int) -> None:
        """Remove every position that holds a token after the first `length`."""
        removed = self.positions >= length // self.stride
        self.positions = self.positions.masked_fill(removed, EMPTY)
        self.end = min(self.end, -(-length // self.stride))

    @property
    def occupied(self) -> Tensor:
        """Mask (b, s) of the slots in use that hold a key."""
        return self.positions[:, : self.end] != EMPTY

    def grow(self, capacity: int) -> None:
        """Raise the capacity."""
        more = capacity - self.capacity + 1
        self.positions = F.pad(self.positions[:, :-1], (0, more), value=EMPTY)
        for tensors in (self.keys, self.values):
            for layer, x in tensors.items():
                tensors[layer] = F.pad(x[:, :, :-1], (0, 0, 0, more))
        self.capacity = capacity


class KVCache:
    """Keys, values and states of earlier tokens, for a batch of sequences.

    `lengths`: number of tokens of each sequence in the first forward pass, which is right-padded;
    None without padding. Memory: 2 n_layer batch capacity n_kv_head head_size numbers. A layer with
    a horizon stores at most horizon + SPARE positions; a layer with a state stores only the state.
    """

    def __init__(
        self, batch: int, capacity: int, device: torch.device, lengths: list[int] | None = None
    ) -> None:
        self.batch, self.capacity, self.device = batch, capacity, device
        self.buffers: dict[int | str | None, RingBuffer] = {}  # by horizon, or by name
        self.states: dict[object, Tensor] = {}  # by a key that the layer chooses
        self._lengths = None if lengths is None else torch.tensor(lengths, device=device)[:, None]
        self._ends: Tensor | None = None
        self._max_length = 0  # upper bound of the positions stored so far
        self.positions: Tensor  # (b, t): positions of the new tokens
        self.is_token: Tensor  # (b, t): False for padding
        self.last: int

    @property
    def empty(self) -> bool:
        """Whether nothing has been stored."""
        return not self.buffers and not self.states

    def last_of(self, positions: Tensor) -> int:
        """Return the maximum of new positions, for which the host waits, or an upper bound."""
        return int(positions.max())

    def begin(self, positions: Tensor, last: int) -> None:
        """Begin a forward pass of tokens at `positions` (b or 1, t); `last` is their maximum."""
        self.positions, self.last = positions.expand(self.batch, -1), last
        self._ends, self._lengths = self._lengths, None
        self._max_length = max(self._max_length, last + 1)
        self.is_token = self.not_padding(self.positions)

    def not_padding(self, positions: Tensor) -> Tensor:
        """Return the mask (b, t) of new tokens that are not padding."""
        if self._ends is None:
            return torch.ones_like(positions, dtype=torch.bool)
        return positions < self._ends

    def reserve(self, horizon: int | None) -> Tensor:
        """Assign slots to the new tokens; return the positions (b, s) of the keys `write` returns.

        `horizon`: number of positions a query attends to, including its own; None for all.
        """
        if horizon is not None and horizon not in self.buffers:
            self.buffers[horizon] = RingBuffer(self.batch, horizon + SPARE, True, self.device)
        return self.reserve_at(horizon, self.positions, self.is_token, self.last)

    def reserve_at(
        self,
        name: int | str | None,
        positions: Tensor,
        is_token: Tensor,
        last: int,
        stride: int = 1,
    ) -> Tensor:
        """Assign slots at `positions` (b, t), one per `stride` tokens, in the buffer `name`.

        Returns the positions (b, s) of the keys that `write` returns.
        """
        if name not in self.buffers:
            capacity = -(-self.capacity // stride)
            self.buffers[name] = RingBuffer(self.batch, capacity, False, self.device, stride)
        return self.buffers[name].reserve(positions, is_token, last)

    def write(
        self, name: int | str | None, layer: int, k: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values (b, h, t, e); return all to attend to."""
        return self.buffers[name].write(layer, k, v)

    def select(self, rows: Tensor) -> None:
        """Keep only these rows, in this order; a row may occur several times."""
        self.batch = len(rows)
        for buffer in self.buffers.values():
            buffer.select(rows)
        self.states = {key: state.index_select(0, rows) for key, state in self.states.items()}

    def rewind(self, length: int) -> bool:
        """Remove the tokens at position `length` and later from every row.

        Returns False if that is impossible: a state cannot be rewound, and a ring buffer can be
        rewound by at most SPARE tokens.
        """
        if length >= self._max_length:
            return True
        any_wraps = any(buffer.wraps for buffer in self.buffers.values())
        if self.states or (any_wraps and length < self._max_length - SPARE):
            return False
        for buffer in self.buffers.values():
            buffer.rewind(length)
        return True

    def grow(self, capacity: int) -> None:
        """Raise the capacity."""
        for buffer in self.buffers.values():
            if not buffer.wraps:
                buffer.grow(-(-capacity // buffer.stride))
        self.capacity = capacity


class StaticRingBuffer(RingBuffer):
    """A buffer of which every pass attends to all slots; the causal mask hides empty ones.

    Its tensors stay where they are, and no shape depends on the positions.
    """

    def reserve(self, positions: Tensor, is_token: Tensor, last: int) -> Tensor:
        self._new_slots = torch.where(is_token, positions, self.capacity)
        self._end_before, self.end = 0, self.capacity
        self.positions.scatter_(1, self._new_slots, positions)
        self.positions[:, self.capacity].fill_(EMPTY)
        return self.positions[:, : self.capacity]


class StaticKVCache(KVCache):
    """A KV cache for full attention in which passes over one position run as a CUDA graph.

    `reset` empties it for a prefill. A pass must not go beyond `capacity`, which is not checked.
    """

    def __init__(self, batch: int, capacity: int, device: torch.device) -> None:
        super().__init__(batch, capacity, device)
        self.buffers[None] = StaticRingBuffer(batch, capacity, False, device)
        self._empty = True

    @property
    def empty(self) -> bool:
        return self._empty

    def reset(self, lengths: list[int]) -> None:
        """Remove everything. `lengths`: see KVCache."""
        self.buffers[None].positions.fill_(EMPTY)
        self._lengths = torch.tensor(lengths, device=self.device)[:, None]
        self._empty = True

    def last_of(self, positions: Tensor) -> int:
        return self.capacity - 1

    def begin(self, positions: Tensor, last: int) -> None:
        super().begin(positions, last)
        self._empty = False
