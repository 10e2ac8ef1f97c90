"""What earlier tokens leave for later ones: keys and values, and the states of other layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NOWHERE = 2**40  # the position of an unused slot: after every query, so that no mask shows it
SPARE = 32  # positions a window's slots hold beyond it, so that as many tokens can be taken back


class Slots:
    """Keys and values of the last `n` positions of each row: position p stands in slot p mod n.

    `rolls`: p may pass n, and replaces what is no longer wanted; otherwise slot p is position p
    and n grows. Padding is not kept. `stride`: tokens a position.
    """

    def __init__(
        self, batch: int, n: int, rolls: bool, device: torch.device, stride: int = 1
    ) -> None:
        self.n, self.rolls, self.stride = n, rolls, stride
        # One slot more takes what is not kept.
        self.positions = torch.full((batch, n + 1), NOWHERE, device=device)
        self.end = 0  # of the used slots
        self.keys: dict[int, Tensor] = {}  # by layer, (b, h, n + 1, e)
        self.values: dict[int, Tensor] = {}
        self._new: Tensor  # the slots of the tokens of this pass

    def place(self, positions: Tensor, real: Tensor, last: int) -> Tensor:
        """Take the slots of new tokens at `positions` (b, t), none after `last`.

        `real` (b, t): False for padding. Returns the positions (b, s) of what `write` will return.
        """
        assert self.rolls or last < self.n, f"position {last} in a cache of {self.n} slots"
        ends = F.pad(torch.where(real, positions, -1), (1, 0), value=-1).amax(1, keepdim=True)
        kept = real & (positions > ends - self.n)
        before = self.positions[:, : self.end]
        self._new = torch.where(kept, positions % self.n, self.n)
        self._end_before, self.end = self.end, max(self.end, min(last + 1, self.n))
        self.positions = self.positions.scatter(1, self._new, positions)
        self.positions[:, self.n] = NOWHERE
        return torch.cat((before, positions), 1) if self.rolls else self.positions[:, : self.end]

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keep a layer's new keys and values (b, h, t, e); returns those to be seen (b, h, s, e).

        Where slots roll these are all that stood there and the new ones, for a new token may
        replace what an earlier new one still sees.
        """
        if layer not in self.keys:
            b, h, _, e = k.shape
            self.keys[layer] = k.new_zeros(b, h, self.n + 1, e)
            self.values[layer] = v.new_zeros(b, h, self.n + 1, v.shape[-1])
        seen = []
        for held, new in ((self.keys[layer], k), (self.values[layer], v)):
            before = held[:, :, : self._end_before]
            both = torch.cat((before, new), 2) if self.rolls else held[:, :, : self.end]
            held.scatter_(2, self._new[:, None, :, None].expand_as(new), new)
            seen.append(both)
        return seen[0], seen[1]

    def select(self, rows: Tensor) -> None:
        """Keep these rows alone, in this order."""
        self.positions = self.positions.index_select(0, rows)
        for held in (self.keys, self.values):
            held.update({layer: x.index_select(0, rows) for layer, x in held.items()})

    def rewind(self, length: int) -> None:
        """Forget what stands for tokens after the first `length`, be it in part."""
        later = self.positions >= length // self.stride
        self.positions = self.positions.masked_fill(later, NOWHERE)
        self.end = min(self.end, -(-length // self.stride))

    @property
    def there(self) -> Tensor:
        """Which of the slots in use hold something: (b, s)."""
        return self.positions[:, : self.end] != NOWHERE

    def grow(self, n: int) -> None:
        """Make room for more positions."""
        more = n - self.n

        def grown(x: Tensor) -> Tensor:
            return F.pad(x[:, :, :-1], (0, 0, 0, more + 1))

        self.positions = F.pad(self.positions[:, :-1], (0, more + 1), value=NOWHERE)
        self.keys = {layer: grown(keys) for layer, keys in self.keys.items()}
        self.values = {layer: grown(values) for layer, values in self.values.items()}
        self.n = n


class KVCache:
    """What the tokens of a text leave for later ones, for several texts at once.

    `lengths`: tokens of each text in the first pass, which is padded at the end; None for all.
    Memory: 2 n_layer batch capacity n_kv_head head_size numbers; of a layer with a horizon no more
    than that of it, of one with a state that.
    """

    def __init__(
        self, batch: int, capacity: int, device: torch.device, lengths: list[int] | None = None
    ) -> None:
        self.batch, self.capacity, self.device = batch, capacity, device
        self.slots: dict[int | str | None, Slots] = {}  # by horizon, or what else they hold
        self.states: dict[object, Tensor] = {}  # of layers that keep something else, by their key
        self._lengths = None if lengths is None else torch.tensor(lengths, device=device)[:, None]
        self._ends: Tensor | None = None
        self._most = 0  # tokens of a text it has ever seen
        self.positions: Tensor  # (b, t) of this pass's tokens
        self.real: Tensor  # (b, t): which of them are no padding
        self.last: int

    @property
    def empty(self) -> bool:
        """Whether it has seen no token."""
        return not self.slots and not self.states

    def begin(self, positions: Tensor, last: int) -> None:
        """Begin a pass over new tokens at `positions` (b or 1, t), none after `last`."""
        self.positions, self.last = positions.expand(self.batch, -1), last
        self._ends, self._lengths = self._lengths, None
        self._most = max(self._most, last + 1)
        self.real = self.is_real(self.positions)

    def is_real(self, positions: Tensor) -> Tensor:
        """Which positions (b, t) of this pass are no padding."""
        if self._ends is None:
            return torch.ones_like(positions, dtype=torch.bool)
        return positions < self._ends

    def place(self, horizon: int | None) -> Tensor:
        """Take slots for the new tokens; returns the positions (b, s) of what `write` returns.

        `horizon`: how many positions back a query looks, itself included; None for all.
        """
        if horizon is not None and horizon not in self.slots:
            self.slots[horizon] = Slots(self.batch, horizon + SPARE, True, self.device)
        return self.place_at(horizon, self.positions, self.real, self.last)

    def place_at(
        self, name: int | str | None, places: Tensor, real: Tensor, last: int, stride: int = 1
    ) -> Tensor:
        """Take slots for something at `places` (b, t), of which there is one every `stride` tokens.

        Returns the places (b, s) of what `write` returns.
        """
        if name not in self.slots:
            n = -(-self.capacity // stride)
            self.slots[name] = Slots(self.batch, n, False, self.device, stride)
        return self.slots[name].place(places, real, last)

    def write(
        self, name: int | str | None, layer: int, k: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Keep a layer's new keys and values (b, h, t, e); returns all there are to see."""
        return self.slots[name].write(layer, k, v)

    def select(self, rows: Tensor) -> None:
        """Keep these rows alone, in this order; one may be kept several times."""
        self.batch = len(rows)
        for slots in self.slots.values():
            slots.select(rows)
        self.states = {key: state.index_select(0, rows) for key, state in self.states.items()}

    def rewind(self, length: int) -> bool:
        """Forget the tokens at position `length` and later, of every row.

        Returns False where that cannot be: a state holds them all in one, and a window has replaced
        what stood more than SPARE positions before it.
        """
        if length >= self._most:
            return True
        windows = any(slots.rolls for slots in self.slots.values())
        if self.states or (windows and length < self._most - SPARE):
            return False
        for slots in self.slots.values():
            slots.rewind(length)
        return True

    def grow(self, capacity: int) -> None:
        """Make room for more positions."""
        for slots in self.slots.values():
            if not slots.rolls:
                slots.grow(-(-capacity // slots.stride))
        self.capacity = capacity
