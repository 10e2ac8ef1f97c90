"""`minigpt bench plan`: its formulas against tensors of real steps, and its table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minigpt.bench.activations import activation_bytes
from minigpt.bench.measure import kept_bytes
from minigpt.bench.plan import (
    Device,
    Exchange,
    Parameter,
    Traffic,
    exchange,
    memory,
    memory_beside_steps,
    numbers,
    parameters_of,
    timing,
    update_flops,
)
from minigpt.config.compose import composed_config
from minigpt.config.schema import Config
from minigpt.model import GPT
from minigpt.model.attention import ATTENTION
from minigpt.model.ffn import FFN
from minigpt.model.linear import matrices
from minigpt.model.positional import POSITIONAL
from minigpt.optim.optimizer import OPTIMIZERS, states_of
from minigpt.ranks import Ranks
from minigpt.train.distributed import Replicated, Sharded
from tests.conftest import Cli

N_VOCAB = 65
SMALL = ["model.n_layer=3", "model.n_head=2", "model.n_embd=32", "model.block_size=32"]
DESIGNS = {
    "rope": ["model=rope"],
    "muon": ["model=llama", "optimizer=muon"],
    "biases": ["model=gpt2", "model.bias=true"],
    "bigram": ["model=bigram", "model.n_layer=0"],
}


def config_of(*overrides: str) -> Config:
    """Return a small config for CPUs in fp32."""
    trainer = ["trainer.device=cpu", "trainer.precision=fp32", "logger=none"]
    return composed_config([*SMALL, *trainer, *overrides])


def batch(config: Config, windows: int = 2) -> Tensor:
    return torch.randint(N_VOCAB, (windows, config.model.block_size))


def n_bytes(tensors: Iterator[Any]) -> int:
    """Return the bytes of tensors, or of this process's parts of them."""
    local = (x.to_local() if hasattr(x, "to_local") else x for x in tensors)
    return sum(x.numel() * x.element_size() for x in local)


@contextmanager
def process_group(n: int) -> Iterator[None]:
    """Be the first of `n` processes, whose others do not exist and exchange nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=n)
    try:
        yield
    finally:
        dist.destroy_process_group()


class Collectives(TorchDispatchMode):
    """Records the bytes of the larger tensor of each collective by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[str, list[int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        kinds = [kind for kind in ("allgather", "reduce_scatter") if kind in name_of(func)]
        for kind in kinds:
            tensors = [x for x in tree_leaves((args, result)) if isinstance(x, Tensor)]
            self.sizes.setdefault(kind, []).append(max(x.nbytes for x in tensors))
        return result


def name_of(func: Any) -> str:
    """Return the name of a collective in one of torch's two spellings, or an empty string."""
    return func.__name__.replace("all_gather", "allgather") if "c10d" in func.namespace else ""


# ---- memory ----


@pytest.mark.parametrize("design", DESIGNS)
def test_memory_of_one_process(design: str) -> None:
    config = config_of(*DESIGNS[design])
    model = GPT(config.model, N_VOCAB)
    optimizer = OPTIMIZERS.build(config.optimizer, model)
    model.loss(batch(config), batch(config)).backward()
    optimizer.step()
    planned = memory(parameters_of(model, config), "none", 1, 0)
    states = (x for _, state in states_of(optimizer) for x in state.values())
    assert planned.weights == n_bytes(model.parameters())
    assert planned.gradients == n_bytes(p.grad for p in model.parameters())
    assert planned.optimizer == n_bytes(states)
    assert planned.buffers == 0


@pytest.mark.parametrize("n", [2, 8])
@pytest.mark.parametrize("design", DESIGNS)
def test_memory_and_traffic_of_fsdp(design: str, n: int) -> None:
    """The weights that are gathered at one time, and every collective of a step."""
    config = config_of(*DESIGNS[design])
    model = GPT(config.model, N_VOCAB)
    parameters = parameters_of(model, config)
    gathered: list[int] = []
    with process_group(n):
        Sharded(Ranks(0, n)).split(model)
        for block in model.blocks:
            part = block.get_submodule("ffn")  # the whole block is split again after it
            part.register_forward_hook(lambda *_: gathered.append(whole_bytes(model)))
            part.register_full_backward_hook(lambda *_: gathered.append(whole_bytes(model)))
        optimizer = OPTIMIZERS.build(config.optimizer, model)
        with Collectives() as collectives:
            loss, _ = model.training_loss(batch(config), batch(config))
            loss.backward()
            optimizer.step()
    planned = memory(parameters, "fsdp", n, 0)
    states = (x for _, state in states_of(optimizer) for x in state.values())
    assert planned.weights == n_bytes(model.parameters())
    assert planned.gradients == n_bytes(p.grad for p in model.parameters())
    assert planned.optimizer == n_bytes(states)
    outside = [p for p in parameters if p.block is None]
    block = [p for p in parameters if p.block == 0]
    expected = 4 * sum(n * p.part(n) for p in (*outside, *block))
    assert gathered == [expected] * 2 * config.model.n_layer  # and flat, the block that comes next
    assert planned.buffers > expected
    own, weights = planned.weights + planned.optimizer, sum(map(full_bytes, model.parameters()))
    assert memory_beside_steps(parameters, "fsdp", n) == max(2 * weights, own + weights)
    sizes = collectives.sizes
    traffic = exchange(parameters, "fsdp", n)
    ring = (n - 1) / n
    scattered, all_gathered = sizes["reduce_scatter"], sizes["allgather"]
    assert traffic.gradients.collectives == len(scattered)
    assert traffic.gradients.sent == pytest.approx(ring * sum(scattered))
    expected = traffic.forward + traffic.backward + traffic.update
    assert len(all_gathered) == expected.collectives
    assert ring * sum(all_gathered) == pytest.approx(expected.sent)


def full_bytes(x: Tensor) -> int:
    """Return the bytes of all parts of a tensor."""
    return x.numel() * x.element_size()


def whole_bytes(model: GPT) -> int:
    """Return the bytes of the gathered weights."""
    whole = [p for p in model.parameters() if not hasattr(p, "to_local")]
    return sum({p.untyped_storage()._cdata: p.untyped_storage().nbytes() for p in whole}.values())


def test_buckets_of_ddp() -> None:
    config = config_of("model=rope", "model.n_embd=512", "model.n_head=4")
    model = GPT(config.model, N_VOCAB)
    parameters = parameters_of(model, config)
    buckets: list[int] = []

    def record(state, bucket):  # torch compares annotations, which must not be strings
        buckets.append(bucket.buffer().nbytes)
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    with process_group(2):
        loss = Replicated(Ranks(0, 2)).loss(model, model.training_loss)
        loss.register_comm_hook(None, record)  # pyright: ignore
        for _ in range(2):  # the first step has one bucket, and shows in which order they fill
            buckets.clear()
            loss(batch(config), batch(config))[0].backward()
    planned = memory(parameters, "ddp", 2, 0)
    assert planned.gradients == sum(buckets) and planned.buffers == 0
    storages = {
        p.grad.untyped_storage()._cdata: p.grad for p in model.parameters() if p.grad is not None
    }
    assert sum(x.untyped_storage().nbytes() for x in storages.values()) == sum(buckets)
    traffic = exchange(parameters, "ddp", 2).gradients
    assert traffic.sent == sum(buckets)  # 2 (n - 1) / n of them
    assert abs(traffic.collectives - len(buckets)) <= 1


# ---- activations ----


def choices() -> list[str]:
    """Return overrides that have each positional scheme, attention and feed-forward layer."""
    registries = {"positional": POSITIONAL, "attention": ATTENTION, "ffn": FFN}
    names = {key: [*registry.names()] for key, registry in registries.items()}
    names["ffn"].remove("moe")
    names["attention"].remove("performer")  # takes few positional schemes
    columns = [[f"{key}={name}" for name in each] for key, each in names.items()]
    columns += [["model=gemma"], ["model.dropout=0.1"], ["model.value_residual=x0"]]
    rows = [" ".join(filter(None, row)) for row in zip_longest(*columns)]
    return [
        *rows,
        "attention=performer",
        "model=llama",
        "model.backend.name=eager",
        "model.backend.name=blockwise",
    ]


@pytest.mark.parametrize("choice", choices())
def test_activations_are_counted_without_memory(choice: str) -> None:
    config = config_of("model=rope", *choice.split())
    for bf16 in (False, True)[: 2 if "model" in choice else 1]:
        assert activation_bytes(config, N_VOCAB, 2, "cpu", bf16) == measured(config, bf16)


@pytest.mark.parametrize("model", ["rope", "llama", "alibi"])
def test_activations_on_a_gpu(model: str) -> None:
    """As on a CPU, whose flash attention keeps the same; but there pow computes in bf16."""
    config = config_of(f"model={model}", "model.backend.name=sdpa")
    for bf16 in (False, True):
        expected = measured(config, bf16)
        if bf16 and config.model.ffn.name == "relu2":
            tokens = 2 * config.model.block_size * config.model.n_layer
            expected += tokens * 4 * 4 * config.model.n_embd
        counted = activation_bytes(config, N_VOCAB, 2, "cuda", bf16)
        assert counted == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    ("n_layer", "design"),
    [
        (9, "model.value_residual=first_layer"),
        (10, "model.unet_skips=true"),
        (
            18,
            "positional=alibi attention=sliding_window model.attention.window=8 "
            "model.attention.layers=[sliding_window,full]",
        ),
    ],
)
def test_activations_of_many_layers(n_layer: int, design: str) -> None:
    """Of which few are counted."""
    config = config_of("model=rope", *design.split(), f"model.n_layer={n_layer}")
    assert activation_bytes(config, N_VOCAB, 2, "cpu", False) == measured(config, False)


def test_fsdp_makes_no_copies_of_weights() -> None:
    config = config_of("model=rope")
    copied, gathered = (
        activation_bytes(config, N_VOCAB, 2, "cuda", True, s) for s in (False, True)
    )
    n_matrices = sum(p.numel() for p in matrices(GPT(config.model, N_VOCAB)))
    assert copied - gathered == 2 * n_matrices


def measured(config: Config, bf16: bool, windows: int = 2) -> int:
    model = GPT(config.model, N_VOCAB)
    model.use_backend("cpu", bf16, "training")
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        return kept_bytes(model, batch(config, windows))


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize(("d", "h", "t"), [(64, 4, 64), (128, 4, 32), (96, 2, 128)])
def test_table_of_the_page(backend: str, d: int, h: int, t: int) -> None:
    """The activations of the default design in docs/scaling.md."""
    shape = [f"model.n_embd={d}", f"model.n_head={h}", f"model.block_size={t}"]
    config = config_of("model=rope", *shape, f"model.backend.name={backend}")
    windows, m, is_eager = 3, 4 * d, backend == "eager"
    layer = 44 * d + 8 * m + 12 * h + 16 + is_eager * 4 * h * t
    expected = config.model.n_layer * layer + 8 * d + 4 * N_VOCAB
    assert measured(config, False, windows) == pytest.approx(windows * t * expected, rel=0.05)
    layer = 34 * d + 8 * m + 12 * h + 16 + is_eager * 6 * (h * t - d)
    expected = config.model.n_layer * layer + 6 * d + 4 * N_VOCAB
    counted = activation_bytes(config, N_VOCAB, windows, "cuda", bf16=True, sharded=True)
    assert counted == pytest.approx(windows * t * expected, rel=0.05)


# ---- traffic and time, by hand ----

TWO = [Parameter((8, 2), None), Parameter((4, 4), 0), Parameter((4, 4), 1)]  # 16 elements each


def test_one_device_moves_nothing() -> None:
    for mode in ("none", "ddp", "fsdp"):
        assert exchange(TWO, mode, 1) == Exchange()
    assert memory(TWO, "none", 1, 7) == (192, 192, 2 * 192 + 12, 0, 7)


def test_traffic_by_hand() -> None:
    """Four devices, three parameters of 64 bytes."""
    assert exchange(TWO, "ddp", 4) == Exchange(gradients=Traffic(2 * 3 / 4 * 192, 1))
    blocks, all_of_them = Traffic(3 / 4 * 128, 2), Traffic(3 / 4 * 192, 3)
    assert exchange(TWO, "fsdp", 4) == Exchange(all_of_them, blocks, all_of_them)
    half = exchange(TWO, "fsdp", 4, bf16=True)
    assert half.forward.sent == all_of_them.sent / 2 and half.gradients == all_of_them
    assert exchange(TWO, "fsdp", 4).total(2) == Traffic(3 / 4 * (2 * (192 + 128) + 192), 13)


def test_fsdp_splits_rows() -> None:
    """Eight devices hold one row of four each, or none; the gathered tensor has eight rows."""
    (_, parameter, _) = TWO
    assert [parameter.part(n) for n in (1, 2, 4, 8)] == [16, 8, 4, 4]
    assert exchange([parameter], "fsdp", 8).gradients.sent == 7 / 8 * 4 * 8 * 4


def test_time_by_hand() -> None:
    """1 s of computing; the gradients need 1 s, of which 2/3 overlap the backward pass."""
    device = Device(flops=300, bandwidth=100, latency=0.25)
    traffic = Exchange(gradients=Traffic(sent=50, collectives=2))
    assert timing(traffic, 300, 1, device) == pytest.approx((1, 1, 1 / 3 + 1))
    assert timing(traffic, 300, 4, device) == pytest.approx((4, 1, 4 + 1 / 3))
    slow = Exchange(update=Traffic(sent=100))
    assert timing(slow, 300, 1, device, update=600) == pytest.approx((3, 1, 4))


def test_flops_of_muon() -> None:
    assert update_flops(TWO) == 0
    assert update_flops([Parameter((2, 3), 0, by_muon=True)]) == 5 * 2 * (12 + 8 + 12)


def test_numbers_of_devices() -> None:
    assert [numbers(n) for n in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]


# ---- the command ----

DESIGN = ["data=text", "data.path=text.txt", "model.n_layer=2", "model.n_embd=64"]
RATES = ["--flops", "1e12", "--bandwidth", "1e9"]


def planned(cli: Cli, *arguments: str) -> dict[tuple[str, int], dict[str, Any]]:
    done = cli("bench", "plan", *DESIGN, *RATES, *arguments, "--json", "plan.json")
    assert done.code == 0, done.err
    rows = json.loads(Path("plan.json").read_text())["rows"]
    return {(row["mode"], row["devices"]): row for row in rows}


def test_plan_of_a_batch(cli: Cli) -> None:
    """More devices: less memory, more traffic, and a shorter step at a lower efficiency."""
    rows = planned(cli, "--devices", "8", "trainer.batch_size=8", "trainer.precision=fp32")
    sizes = [1, 2, 4, 8]
    assert [*rows] == [("none", 1), *((mode, n) for mode in ("ddp", "fsdp") for n in sizes)]
    alone = rows["none", 1]
    assert alone["sent"] == alone["communication"] == 0 and alone["efficiency"] == 1
    assert alone["step"] == pytest.approx(alone["compute"])
    for mode in ("ddp", "fsdp"):
        assert rows[mode, 1]["sent"] == 0
        for key, rises in {"memory": False, "sent": True, "efficiency": False}.items():
            values = [rows[mode, n][key] for n in sizes]
            assert values == sorted(values, reverse=not rises), (mode, key, values)
            assert values[0] != values[-1]
    assert rows["fsdp", 8]["memory"] < rows["ddp", 8]["memory"]
    assert rows["fsdp", 8]["sent"] > rows["ddp", 8]["sent"]


def test_weak_scaling_keeps_the_batch_of_a_device(cli: Cli) -> None:
    rows = planned(cli, "--devices", "1024", "--scaling", "weak", "trainer.batch_size=2")
    one, many = rows["ddp", 1], rows["ddp", 1024]
    assert one["compute"] == many["compute"] and one["memory"] == many["memory"]
    assert many["tokens_per_second"] == pytest.approx(
        1024 * one["tokens_per_second"] * many["efficiency"]
    )


def test_a_batch_that_is_too_small_for_all_devices(cli: Cli) -> None:
    options = ["--devices", "64", "trainer.batch_size=4"]
    done = cli("bench", "plan", *DESIGN, *RATES, *options, "--out", "plan.md")
    assert done.code == 0 and "too small for more devices" in done.out, done.err
    assert max(n for _, n in planned(cli, *options)) == 4
    assert "## Memory per device, GB" in Path("plan.md").read_text()


def test_latency_and_overlap(cli: Cli) -> None:
    fast, slow = (
        planned(cli, "--devices", "2", "--latency", seconds)["ddp", 2] for seconds in ("0", "1")
    )
    assert slow["communication"] == pytest.approx(fast["communication"] + 1e3)
    assert slow["step"] > 1e3 > fast["step"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--devices 0", "--devices=0: must be 1 or more"),
        ("--devices 1e300", "--devices=1e300: must be 1048576 or less"),
        ("--devices 2,4", "--devices=2,4: takes one number"),
        ("--flops abc", "--flops=abc: not a number; give one such as 400e12"),
        ("--flops nan", "--flops=nan: must be finite and above 0, such as 400e12"),
        ("--bandwidth -1", "--bandwidth=-1: must be finite and above 0, such as 300e9"),
        ("--latency=-1", "--latency=-1: must be finite and 0 or more"),
        ("--scaling none", "argument --scaling: invalid choice: 'none'"),
        ("--repeats 3", "unrecognized arguments: --repeats"),
        ("trainer.parallel=ddp", "trainer.parallel=ddp: a plan has every mode; leave it out"),
        ("trainer.device=mps", "trainer.device=mps: trains on one device"),
        ("ffn=moe", "ffn=moe: its memory depends on the data; use another ffn"),
        ("model.n_layer=2000", "model.n_layer=2000: a plan has at most 1,024 layers"),
        ("model.n_embd=4000000000", "this design is too large: torch cannot count"),
        (
            "trainer.batch_size=100000000000000000",
            "this design is too large: torch cannot count",
        ),
        ("model=rope,alibi", "model=rope,alibi: bench plan takes one config"),
    ],
)
def test_mistakes_print_one_line(cli: Cli, arguments: str, message: str) -> None:
    failed = cli("bench", "plan", *DESIGN, *RATES, *arguments.split())
    assert failed.code == 2 and message in failed.err, failed.err
    assert failed.err.startswith("minigpt: ") and failed.err.count("\n") == 1


def test_rates_are_required(cli: Cli) -> None:
    failed = cli("bench", "plan", *DESIGN, "--bandwidth", "1e9")
    assert failed.code == 2
    assert failed.err == "minigpt: --flops: is required; give a number such as 400e12\n"
