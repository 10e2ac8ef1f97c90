"""The processes that train one run together, and what they exchange."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from minigpt.errors import Failure, UserError
from minigpt.torchrun import RANK, attempt, is_started_as_rank

T = TypeVar("T")
LOSSES = (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError)
SIGNS_OF_LOSS = ("gloo/transport", "timed out")  # gloo raises RuntimeError itself


class LostRank(Failure):
    """Another process ended while this one waited for it, or did not answer (`hangs`)."""

    hangs = False


def agent_store(timeout: timedelta = timedelta(seconds=5)) -> Store | None:
    """Return the key-value store of the agent that started this process; None without one."""
    if not is_started_as_rank() or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    with suppress(RuntimeError):  # the agent has ended
        return TCPStore(host, port, is_master=False, timeout=timeout)
    return None


def attempt_store(timeout: timedelta) -> Store | None:
    """Return the part of the agent's store that processes before a restart have not written to.

    torch's own rendezvous takes the whole store, in which processes may find the addresses of those
    that were restarted, and wait for them in vain.
    """
    store = agent_store(timeout)
    return None if store is None else PrefixStore(f"minigpt/attempt_{attempt()}", store)


def is_first_to_report() -> bool:
    """Return whether no other process of this attempt has reported an error before.

    The first process is asked first, since most errors are the same in all of them.
    """
    time.sleep(0.0 if os.environ[RANK] == "0" else 0.5)
    store = attempt_store(timedelta(seconds=5))
    if store is None:
        return os.environ[RANK] == "0"
    with suppress(RuntimeError):
        return store.add("minigpt/reports", 1) == 1
    return True


@dataclass(frozen=True)
class Ranks:
    """The `rank`-th of `size` processes. Every method but `rows` and `share` waits for the others.

    With a size of 1 the methods return what the process has, and torch.distributed is not used.
    `timeout`: seconds after which a process that does not answer counts as lost.
    """

    rank: int = 0
    size: int = 1
    timeout: float = 0.0

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run directory, and has display and tracker."""
        return self.rank == 0

    def rows(self, x: Tensor) -> Tensor:
        """Return this process's part of the rows of a tensor; parts differ by at most one row."""
        return x.tensor_split(self.size)[self.rank]

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return every `size`-th item, from the `rank`-th on."""
        return items[self.rank :: self.size]

    def sum(self, x: Tensor, what: str) -> Tensor:
        """Return the sum of a tensor over the processes. `what`: its name in an error."""
        if self.size == 1:
            return x
        total = x.clone()
        with self.waiting_for(what):
            dist.all_reduce(total)
        return total

    def gather(self, value: T, what: str) -> list[T]:
        """Return the values of all processes, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with self.waiting_for(what):
            dist.all_gather_object(values, value)
        return values

    def agreed(self, number: int | None, what: str) -> int | None:
        """Return the largest number that a process has; None if none has one."""
        if self.size == 1:
            return number
        largest = torch.tensor(-1 if number is None else number)
        with self.waiting_for(what):
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        return None if largest < 0 else int(largest)

    def first(self, compute: Callable[[], T], what: str) -> T:
        """Return the result of `compute` in the first process. Raises what it raises there."""
        if self.size == 1:
            return compute()
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = compute()
            except Exception as error:
                known = isinstance(error, UserError | Failure | OSError)  # others may not pickle
                outcome[1] = error if known else Failure(f"{type(error).__name__}: {error}")
        with self.waiting_for(what):
            dist.broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    @contextmanager
    def waiting_for(self, what: str) -> Iterator[None]:
        """Raise LostRank if a process ends or does not answer in this block."""
        try:
            yield
        except RuntimeError as error:
            text = str(error).lower()
            if not isinstance(error, LOSSES) and not any(sign in text for sign in SIGNS_OF_LOSS):
                raise
            where = f"waited for the other ranks in {what}"
            if "timed out" not in text and "timeout" not in text:
                raise LostRank(f"{where}, and one has ended") from error
            lost = LostRank(
                f"{where}, and one did not answer within trainer.timeout={self.timeout:g} seconds; "
                f"look for a process that hangs, or raise trainer.timeout"
            )
            lost.hangs = True
            raise lost from error


ALONE = Ranks()


def gathered(x: Tensor) -> Tensor:
    """Return the whole of a tensor of which each process has a part (a DTensor); others as is."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x  # pyright: ignore


def gathered_by_first(x: Tensor, ranks: Ranks) -> Tensor:
    """Return the whole of a tensor in parts on the CPU of the first process; others get none of it.

    A tensor that is not in parts is returned as is.
    """
    whole = gathered(x)
    if whole is x:
        return x
    return whole.cpu() if ranks.is_main else whole.new_empty(0)


def part_like(x: Tensor, other: Any) -> Tensor:
    """Return this process's part of `x`, if the tensor `other` of that shape is in parts."""
    if not hasattr(other, "placements"):
        return x
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(x, other.device_mesh, other.placements, src_data_rank=None)
