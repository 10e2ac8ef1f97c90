"""Training steps as CUDA graphs: without a GPU, the same static step without capture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from minigpt.capture import WARMUP_CALLS
from minigpt.config.compose import composed_config
from minigpt.data import Batch
from minigpt.errors import UserError
from minigpt.model import GPT
from minigpt.model.attention import ATTENTION
from minigpt.model.compatibility import choose_graph, graph_limit
from minigpt.model.ffn import FFN
from minigpt.model.positional import POSITIONAL
from minigpt.objective import OBJECTIVES
from minigpt.optim.optimizer import OPTIMIZERS
from minigpt.runtime import choose_runtime
from minigpt.tokenizer.char import CharTokenizer
from minigpt.train.graph import STEPS, CapturedStep, EagerStep, StaticStep
from tests.conftest import TINY, Cli, read_metrics
from tests.train.test_resume import same_end, stop_at

STEADY = {
    "adamw": ["optimizer.grad_clip=null"],
    "muon": ["optimizer=muon", "optimizer.grad_clip=0.1"],
    "dropout": ["model.dropout=0.1"],
    "schedule": ["schedule=cosine", "optimizer.grad_clip=0.5"],
    "accumulation": ["trainer.grad_accum_steps=2", "model.dropout=0.1"],
    "documents": [r"data.document_separator='\n'"],
    "bf16": ["trainer.precision=bf16", "optimizer=muon"],
    "average": ["optimizer.ema=0.9", "data.order=epochs"],
    **{name: [f"objective={name}"] for name in OBJECTIVES.names() if name != "causal"},
}


def run_static(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the static step that a graph would record, operation by operation."""
    monkeypatch.setitem(STEPS, "off", StaticStep)


@pytest.mark.parametrize("options", STEADY.values(), ids=STEADY)
def test_static_steps_equal_eager_ones(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    arguments = ["train", *TINY, *options, "trainer.log_every=1"]
    assert cli(*arguments, "hydra.run.dir=eager").code == 0
    run_static(monkeypatch)
    outcome = cli(*arguments, "hydra.run.dir=static")
    assert outcome.code == 0, outcome.err
    same_end(Path("eager"), Path("static"))


@pytest.mark.parametrize("optimizer", OPTIMIZERS.names())
@pytest.mark.parametrize("static_part", [0, 1])
def test_a_run_resumes_with_the_other_step(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, optimizer: str, static_part: int
) -> None:
    """Checkpoints of both steps are the same, although one keeps learning rates in tensors."""
    arguments = ["train", *TINY, f"optimizer={optimizer}", "model.dropout=0.1"]
    assert cli(*arguments, "hydra.run.dir=whole").code == 0
    parts: list[tuple[str, ...]] = [(*arguments, "hydra.run.dir=parts"), ("train", "resume=parts")]
    for part, command in enumerate(parts):
        with monkeypatch.context() as patch:
            if part == static_part:
                run_static(patch)
            if part == 0:
                stop_at(7, patch)
            assert cli(*command).code == (143 if part == 0 else 0)
    same_end(Path("whole"), Path("parts"))


class HostWaits(TorchDispatchMode):
    """Records operations that wait for a GPU or copy from the host, which no graph can record."""

    NAMES = (
        *("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim"),
        *("lift_fresh", "equal", "is_nonzero"),
    )

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.__name__.partition(".")[0]
        indices = args[1] if name in ("index", "index_put_", "index_put") else ()
        masks = [i for i in indices if i is not None and i.dtype == torch.bool]
        if name in self.NAMES or masks:
            self.found.add(name)
        return func(*args, **(kwargs or {}))


def step_of(cls: type[EagerStep], *overrides: str, device: str = "cpu") -> EagerStep:
    """Return a step of a small design, of 50 tokens."""
    config = composed_config([*TINY, "trainer.precision=fp32", *overrides])
    torch.manual_seed(0)
    model = GPT(config.model, 50).to(device)
    model.use_backend(device, False, "training")
    optimizer = OPTIMIZERS.build(config.optimizer, model)
    runtime = choose_runtime(device, config.trainer.precision)
    return cls(model.training_loss, model, optimizer, runtime, config)


def batch_of(step: EagerStep, seed: int, documents: bool = False) -> list[Batch]:
    """Return a random batch as one micro-batch."""
    length, device = step.config.model.block_size, step.runtime.device
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(50, (4, length + 1), generator=generator).to(device)
    ids = (tokens[:, :-1] == 0).long().cumsum(1) if documents else None
    windows = Batch(tokens[:, :-1], tokens[:, 1:], ids)
    tokenizer = CharTokenizer("".join(map(chr, range(40, 90))))
    objective = OBJECTIVES.build(step.config.objective, tokenizer, length)
    draws = {name: x.to(device) for name, x in objective.draw(4, length, generator).items()}
    return [objective.apply(windows, draws)]


DESIGNS = [
    *(f"positional={name}" for name in POSITIONAL.names()),
    *(f"attention={name}" for name in ATTENTION.names() if name != "full"),
    *(f"ffn={name}" for name in FFN.names()),
    *("optimizer=muon", "model.unet_skips=true", "model.value_residual=true", "backend=eager"),
    *("model.value_residual=x0", "model.head_gates=true"),
    *(f"objective={name}" for name in OBJECTIVES.names() if name != "causal"),
    *("backend=sdpa", "model=bigram", "model.logit_softcap=20.0", "embedding=tied", "documents"),
]

SIZE = ["model.n_layer=2", "model.block_size=16"]
OVERRIDES = {
    "documents": [r"data.document_separator='\n'", *SIZE],
    "model=bigram": ["model=bigram", "model.n_layer=0"],
}


@pytest.mark.fast
@pytest.mark.parametrize("design", DESIGNS)
def test_a_step_waits_for_the_device_only_where_graphs_are_refused(
    design: str, workdir: Path
) -> None:
    documents = design == "documents"
    overrides = OVERRIDES.get(design, [design, *SIZE])
    step = step_of(StaticStep, *overrides)
    for seed in range(WARMUP_CALLS):
        step(batch_of(step, seed, documents), 1e-3)
    micro_batches = batch_of(step, WARMUP_CALLS, documents)
    with HostWaits() as waits:
        step.compute(micro_batches)
    refused = graph_limit(step.config.model, "cuda", step.model.backend_name)
    assert bool(waits.found) == (refused is not None), (waits.found, refused)


def test_graph_on_needs_a_gpu(cli: Cli) -> None:
    outcome = cli("train", *TINY, "trainer.graph=on", "hydra.run.dir=run")
    assert outcome.code == 2 and not Path("run").exists()
    assert outcome.err.strip().splitlines()[-1] == (
        "minigpt: trainer.graph=on: CUDA graphs need trainer.device=cuda, and this run uses cpu; "
        "use auto or off"
    )


def test_the_choice_is_saved(cli: Cli) -> None:
    assert cli("train", *TINY, "hydra.run.dir=run").code == 0
    manifest = json.loads(Path("run/manifest.json").read_text())
    assert manifest["resolved"]["trainer.graph"] == "off"


@pytest.mark.fast
@pytest.mark.parametrize(
    ("overrides", "backend", "reason"),
    [
        (["ffn=moe"], "sdpa", "ffn=moe waits for the number of tokens of each expert"),
        ([], "flex", "FlexAttention"),
    ],
)
def test_designs_that_cannot_be_captured(
    workdir: Path, overrides: list[str], backend: str, reason: str
) -> None:
    model = composed_config([*TINY, *overrides]).model
    assert choose_graph("auto", model, "cuda", backend)[0] == "off"
    assert reason in choose_graph("auto", model, "cuda", backend)[1]
    with pytest.raises(UserError, match=f"^trainer.graph=on: .*{reason}.*; use auto or off$"):
        choose_graph("on", model, "cuda", backend)


def test_yaml_reads_an_unquoted_choice_as_a_boolean(cli: Cli) -> None:
    Path("mine.yaml").write_text("defaults: [train, _self_]\ntrainer: {graph: off}\n")
    own = ("--config-dir", ".", "--config-name", "mine")
    assert cli("train", *own, *TINY, "hydra.run.dir=run").code == 0
    assert "  graph: 'off'" in Path("run/config.yaml").read_text()


@pytest.mark.fast
def test_full_attention_is_captured(workdir: Path) -> None:
    model = composed_config(TINY).model
    assert choose_graph("auto", model, "cuda", "sdpa") == ("on", "one launch per step")
    assert choose_graph("off", model, "cuda", "sdpa") == ("off", "as configured")


def test_replicas_take_no_graphs(cli: Cli) -> None:
    together = ("-m", "seed=1,2", "hydra/launcher=replicas", "hydra.sweep.dir=sweep")
    outcome = cli("train", *TINY, *together, "trainer.graph=on")
    assert outcome.code == 2 and "trainer.graph=on: the runs take their steps" in outcome.err


# ---- on a GPU ----


@pytest.mark.gpu
@pytest.mark.parametrize("design", DESIGNS)
def test_captured_steps_equal_eager_ones(design: str, workdir: Path) -> None:
    documents = design == "documents"
    overrides = OVERRIDES.get(design, [design, *SIZE])
    overrides = [*overrides, "trainer.device=cuda", "model.n_embd=32", "optimizer.grad_clip=0.5"]
    steps = [step_of(cls, *overrides, device="cuda") for cls in (EagerStep, CapturedStep)]
    if graph_limit(steps[0].config.model, "cuda", steps[0].model.backend_name) is not None:
        pytest.skip("refused")
    for seed in range(WARMUP_CALLS + 5):
        (metrics, norm), (captured, captured_norm) = (
            step(batch_of(step, seed, documents), 1e-3 / (1 + seed)) for step in steps
        )
        torch.testing.assert_close(captured, metrics, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(captured_norm, norm, rtol=1e-3, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("more", [[], ["trainer.compile=true"], ["trainer.grad_accum_steps=2"]])
def test_runs_with_and_without_graphs_agree(cli: Cli, more: list[str]) -> None:
    gpu = ["trainer.device=cuda", "trainer.precision=fp32", "trainer.log_every=1", *more]
    for graph in ("on", "off"):
        options = [*TINY, *gpu, f"trainer.graph={graph}", f"hydra.run.dir={graph}"]
        outcome = cli("train", *options)
        assert outcome.code == 0, outcome.err
    rows = [read_metrics(Path(graph)) for graph in ("on", "off")]
    for captured, eager in zip(*rows, strict=True):
        assert captured == pytest.approx(eager, rel=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", OPTIMIZERS.names())
def test_a_captured_run_resumes(cli: Cli, monkeypatch: pytest.MonkeyPatch, optimizer: str) -> None:
    gpu = ["trainer.device=cuda", "trainer.precision=fp32", "trainer.log_every=1"]
    arguments = ["train", *TINY, *gpu, f"optimizer={optimizer}", "model.dropout=0.1"]
    assert cli(*arguments, "hydra.run.dir=whole").code == 0
    with monkeypatch.context() as patch:
        stop_at(7, patch)
        assert cli(*arguments, "hydra.run.dir=parts").code == 143
    assert cli("train", "resume=parts").code == 0
    for whole, parts in zip(*map(read_metrics, (Path("whole"), Path("parts"))), strict=True):
        assert parts == pytest.approx(whole, rel=1e-3)


@pytest.mark.gpu
def test_dropout_masks_differ_between_replays(workdir: Path) -> None:
    step = step_of(
        CapturedStep, "model.dropout=0.5", "trainer.device=cuda", "optimizer.lr=0", device="cuda"
    )
    losses = [step(batch_of(step, 0), 0.0)[0][0]["train_loss"] for _ in range(WARMUP_CALLS + 4)]
    assert len({float(loss) for loss in losses}) == len(losses)
