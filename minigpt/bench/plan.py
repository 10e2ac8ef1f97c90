"""Plan a run on many devices: memory, exchanged bytes and step time by mode, without training.

The formulas, their sources and what they leave out are in docs/scaling.md.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from math import ceil, prod
from typing import NamedTuple

import torch

from minigpt.bench.activations import activation_bytes, countable
from minigpt.bench.measure import Design, Result
from minigpt.config.schema import Config, TrainerConfig
from minigpt.errors import require
from minigpt.model import GPT
from minigpt.model.linear import matrices
from minigpt.optim.optimizer import MuonConfig
from minigpt.report.tables import Cell, Column, Table
from minigpt.runtime import PARALLELS, choose_runtime
from minigpt.train.compilation import vocabulary_size

FP32, BF16 = 4, 2  # bytes
FORWARD = 1 / 3  # of a step's FLOPs: products of a weight, of which the backward pass has two
FIRST_BUCKET, BUCKET = 2**20, 25 * 2**20  # bytes, as DistributedDataParallel's defaults
NEWTON_SCHULZ = inspect.signature(torch.optim.Muon).parameters["ns_steps"].default
MAX_LAYERS = 1024  # these are counted within seconds
STRONG = "strong"  # --scaling: the batch is that of the run; weak: that of each device

COLUMNS = [
    Column("mode", "trainer.parallel"),
    Column("devices"),
    Column("memory", "GB per device", digits=3),
    Column("sent", "GB sent per device and step", digits=3),
    Column("compute", "compute, ms", digits=2),
    Column("communication", "communication, ms", digits=2),
    Column("step", "step, ms", digits=2),
    Column("tokens_per_second", "tokens/s", digits=0),
    Column("efficiency", digits=3),
]
MEMORY_COLUMNS = [
    Column("mode", "trainer.parallel"),
    Column("devices"),
    Column("windows", "windows per micro-batch"),
    *(Column(name, digits=3) for name in ("weights", "gradients", "optimizer")),
    Column("buffers", "exchange buffers", digits=3),
    Column("activations", digits=3),
    Column("checkpoint", "start or checkpoint", digits=3),
]
NOTE = (
    "GB per device: the sum in a step, or more at the start or for a checkpoint. "
    "Efficiency: tokens/s over those of one device, per device. Communication overlaps the "
    "computing of the same pass: in ddp the last backward pass of a step, in fsdp each forward and "
    "backward pass. What the figures leave out is in docs/scaling.md."
)


class Device(NamedTuple):
    """What a device reaches: FLOP/s in training, bytes/s that it sends, seconds per collective."""

    flops: float
    bandwidth: float
    latency: float = 0.0


class Parameter(NamedTuple):
    """The shape of a parameter, and its block (None outside the blocks).

    `by_muon`: whether Muon updates it rather than AdamW.
    """

    shape: tuple[int, ...]
    block: int | None = None
    by_muon: bool = False

    def part(self, n: int) -> int:
        """Return the elements in the largest of `n` parts, each of whole rows."""
        rows, *others = self.shape
        return ceil(rows / n) * prod(others)


class Memory(NamedTuple):
    """Bytes on the fullest device when the backward pass begins, with all gradients allocated."""

    weights: int
    gradients: int
    optimizer: int
    buffers: int
    activations: int


@dataclass(frozen=True)
class Traffic:
    """What a device sends: bytes, in a number of collectives."""

    sent: float = 0.0
    collectives: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.sent + other.sent, self.collectives + other.collectives)

    def seconds(self, device: Device) -> float:
        """Return the time it takes."""
        return self.sent / device.bandwidth + self.collectives * device.latency


@dataclass(frozen=True)
class Exchange:
    """The traffic of each forward pass, of each backward pass, and at the end of a step.

    `gradients`: in addition, of the last backward pass. `update`: of the optimizer.
    """

    forward: Traffic = Traffic()
    backward: Traffic = Traffic()
    gradients: Traffic = Traffic()
    update: Traffic = Traffic()

    def total(self, passes: int) -> Traffic:
        """Return the traffic of a step with a number of forward and backward passes."""
        once = self.gradients + self.update
        return sum([self.forward, self.backward] * passes, once)


class Timing(NamedTuple):
    """Seconds of a step: computing, communication, and both with their overlap."""

    compute: float
    communication: float
    step: float


# ---- memory ----


def parameters_of(model: GPT, config: Config) -> list[Parameter]:
    """Return the parameters of a model, each once, as the optimizer of `config` trains them."""
    block_of = {p: i for i, block in enumerate(model.blocks) for p in block.parameters()}
    muon = isinstance(config.optimizer, MuonConfig)
    hidden = set(matrices(model.blocks)) if muon else set()
    return [Parameter(tuple(p.shape), block_of.get(p), p in hidden) for p in model.parameters()]


def elements(parameters: Iterable[Parameter], n: int = 1) -> int:
    """Return the elements of the largest of `n` parts of the parameters."""
    return sum(p.part(n) for p in parameters)


def memory(
    parameters: list[Parameter],
    mode: str,
    n: int,
    activations: int,
    bf16: bool = False,
    accumulates: bool = False,
    average: bool = False,
) -> Memory:
    """Return the memory of one of `n` devices.

    `accumulates`: over several micro-batches. `average`: whether there is one of the weights.
    """
    shards = n if mode == "fsdp" else 1
    weights = FP32 * elements(parameters, shards) * (2 if average else 1)
    gradients = FP32 * elements(parameters, shards)
    by_adamw = [p for p in parameters if not p.by_muon]
    moments = elements(parameters, shards) + elements(by_adamw, shards)
    optimizer = FP32 * (moments + len(by_adamw))  # and the number of steps of each parameter
    buffers = 0  # DDP exchanges the gradients in place (gradient_as_bucket_view)
    if mode == "fsdp":
        size = BF16 if bf16 else FP32
        outside, block = outside_of(parameters), largest_block(parameters)
        gathered = [*outside, *block, *block]  # of two blocks, one of which comes next
        whole = sum(n * p.part(n) for p in gathered)
        buffers = size * whole + size * elements([*outside, *block])
        buffers += FP32 * 2 * sum(n * p.part(n) for p in block)
        if accumulates:  # whole gradients, until the last micro-batch
            buffers += FP32 * elements(parameters)
    return Memory(weights, gradients, optimizer, buffers, activations)


def memory_beside_steps(
    parameters: list[Parameter], mode: str, n: int, average: bool = False
) -> int:
    """Return the bytes of one of `n` devices at the start or for a checkpoint, the larger one.

    In fsdp each process has the whole model and a copy before it splits them, and for a checkpoint
    whole weights beside its own parts; the first process gathers optimizer states on its CPU, a
    tensor at a time. `average`: as for `memory`.
    """
    _, _, own_states, *_ = memory(parameters, mode, n, 0)
    own = memory(parameters, mode, n, 0, average=average).weights + own_states
    if mode != "fsdp":
        return own
    whole = memory(parameters, "none", 1, 0)
    start = whole.weights * (3 if average else 2)
    return max(start, own + whole.weights)


def outside_of(parameters: Iterable[Parameter]) -> list[Parameter]:
    """Return the parameters outside the blocks, which fsdp gathers together."""
    return [p for p in parameters if p.block is None]


def largest_block(parameters: Iterable[Parameter]) -> list[Parameter]:
    """Return the parameters of the block with most elements; none without blocks."""
    blocks: dict[int, list[Parameter]] = {}
    for p in parameters:
        if p.block is not None:
            blocks.setdefault(p.block, []).append(p)
    return max(blocks.values(), key=elements, default=[])


# ---- traffic and time ----


def exchange(parameters: list[Parameter], mode: str, n: int, bf16: bool = False) -> Exchange:
    """Return what each of `n` devices sends in a step, by ring algorithms."""
    if n == 1:
        return Exchange()
    ring = (n - 1) / n
    if mode == "ddp":
        n_bytes = FP32 * elements(parameters)
        buckets = 1 + max(0, ceil((n_bytes - FIRST_BUCKET) / BUCKET))
        return Exchange(gradients=Traffic(2 * ring * n_bytes, buckets))

    def padded(some: Iterable[Parameter]) -> int:
        return sum(n * p.part(n) for p in some)

    size = BF16 if bf16 else FP32
    inside = [p for p in parameters if p.block is not None]
    n_blocks = len({p.block for p in inside})
    again = Traffic(ring * size * padded(inside), n_blocks)
    first = again + Traffic(ring * size * padded(outside_of(parameters)), 1)
    hidden = [p for p in parameters if p.by_muon]
    return Exchange(
        forward=first,
        backward=again,
        gradients=Traffic(ring * FP32 * padded(parameters), n_blocks + 1),
        update=Traffic(ring * FP32 * padded(hidden), len(hidden)),
    )


def update_flops(parameters: Iterable[Parameter]) -> int:
    """Return the FLOPs of Muon's update, of which each device computes all.

    A Newton-Schulz step of a matrix of r rows and c >= r columns has products of r^2 c, r^3 and
    r^2 c multiplications. Elementwise updates are not counted.
    """
    sides = [sorted(p.shape) for p in parameters if p.by_muon]
    return NEWTON_SCHULZ * sum(2 * r * r * (2 * c + r) for r, c in sides)


def timing(
    exchange: Exchange, flops: float, passes: int, device: Device, update: float = 0.0
) -> Timing:
    """Return the time of a step of `passes` micro-batches of `flops` each.

    `update`: FLOPs of the optimizer, whose communication does not overlap.
    """
    seconds = flops / device.flops
    forward, backward = FORWARD * seconds, (1 - FORWARD) * seconds
    last = exchange.backward + exchange.gradients
    computing = passes * seconds + update / device.flops
    step = passes * max(forward, exchange.forward.seconds(device))
    step += (passes - 1) * max(backward, exchange.backward.seconds(device))
    step += max(backward, last.seconds(device))
    step += update / device.flops + exchange.update.seconds(device)
    return Timing(computing, exchange.total(passes).seconds(device), step)


# ---- the table ----


def measure(
    design: Design,
    devices: int,
    flops: float,
    bandwidth: float,
    latency: float,
    scaling: str,
) -> Result:
    """Return the plan of every mode for 1, 2, 4, ... and `devices` devices.

    `scaling`: strong, with a batch of trainer.batch_size windows for the run, as trainer.processes
    has it, or weak, with as many for each device. Raises UserError for a design that cannot be
    counted.
    """
    (_, config), device = design.configs[0], Device(flops, bandwidth, latency)
    trainer, length = config.trainer, config.model.block_size
    n_layer, why = config.model.n_layer, f"a plan has at most {MAX_LAYERS:,} layers; use fewer"
    require(n_layer <= MAX_LAYERS, "model.n_layer", n_layer, why)
    kind, bf16 = _kind(trainer)
    n_vocab, accum = vocabulary_size(config), trainer.grad_accum_steps
    average, strong = config.optimizer.ema is not None, scaling == STRONG
    model = _without_memory(config, n_vocab)
    parameters = parameters_of(model, config)
    kept: Callable[[int, bool], int]
    kept = cache(lambda n, sharded: activation_bytes(config, n_vocab, n, kind, bf16, sharded))
    ways = [("none", 1)]
    ways += [(mode, n) for mode in PARALLELS if mode != "none" for n in numbers(devices)]
    largest = trainer.micro_batch_size if strong else devices
    rows: list[list[Cell]] = []
    parts: list[list[Cell]] = []
    first = 0.0
    for mode, n in [(mode, n) for mode, n in ways if n <= largest]:
        windows = ceil(trainer.micro_batch_size / (n if strong else 1))
        needs = memory(
            *(parameters, mode, n, kept(windows, mode == "fsdp" and bf16)),
            *(bf16, accum > 1, average),
        )
        beside = memory_beside_steps(parameters, mode, n, average)
        traffic = exchange(parameters, mode, n, bf16)
        micro = windows * length * model.flops_per_token(windows)
        time = timing(traffic, micro, accum, device, update_flops(parameters))
        speed = trainer.batch_size * length * (1 if strong else n) / time.step
        first = first or speed
        largest_sum, sent = max(sum(needs), beside), traffic.total(accum).sent
        seconds = [1e3 * each for each in time]
        rows.append([mode, n, largest_sum / 1e9, sent / 1e9, *seconds, speed, speed / n / first])
        parts.append([mode, n, windows, *(n_bytes / 1e9 for n_bytes in (*needs, beside))])
    table = Table("plan", "Plan", COLUMNS, rows, _note(config, scaling, largest, devices))
    details = Table("memory", "Memory per device, GB", MEMORY_COLUMNS, parts)
    facts = {
        "parameters": f"{elements(parameters):,}",
        "for": f"{'a GPU' if kind == 'cuda' else 'a CPU'} in {'bf16' if bf16 else 'fp32'}",
        "per device": f"{flops:g} FLOP/s, {bandwidth:g} bytes/s, {latency:g} s per collective",
    }
    return Result(table, facts, details=[details])


def _without_memory(config: Config, n_vocab: int) -> GPT:
    """Return the model on the meta device."""
    with countable(), torch.device("meta"):
        return GPT(config.model, n_vocab)


def numbers(largest: int) -> list[int]:
    """Return the powers of two below a number, and the number."""
    return [*(2**i for i in range((largest - 1).bit_length())), largest]


def _kind(trainer: TrainerConfig) -> tuple[str, bool]:
    """Return the device type that is planned for, and whether it computes in bf16.

    By default a GPU, which need not be here, in bf16.
    """
    why = "trains on one device; leave it out to plan for GPUs, or use cpu"
    require(trainer.device != "mps", "trainer.device", "mps", why)
    if trainer.device == "cpu":
        return "cpu", choose_runtime("cpu", trainer.precision).precision == "bf16"
    return "cuda", trainer.precision != "fp32"


def _note(config: Config, scaling: str, largest: int, devices: int) -> str:
    windows, length = config.trainer.batch_size, config.model.block_size
    each = "Batch of the run" if scaling == STRONG else "Batch of each device"
    note = f"{each}: {windows:,} x {length:,} tokens (--scaling {scaling}). "
    if largest < devices:
        note += (
            f"A micro-batch of {largest:,} windows is too small for more devices; raise "
            f"trainer.batch_size or use --scaling weak. "
        )
    return note + NOTE
