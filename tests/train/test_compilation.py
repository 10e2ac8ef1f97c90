"""`trainer.compile`: the choice, its record, failures, and sweeps."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from minigpt.config.compose import composed_config
from minigpt.config.schema import Config
from minigpt.model.attention import ATTENTION
from minigpt.run.directory import RunDirectory
from minigpt.runtime import choose_runtime
from minigpt.train import compilation
from minigpt.train.compilation import COSTS, Choice, Cost, Planned, choose_compilation
from tests.conftest import TINY, Cli

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
CPU = ["trainer.device=cpu", "trainer.precision=fp32"]
DEFAULT_COST = COSTS["cpu"]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return composed_config([f"data.dir={tmp_path}", *CPU, "model.n_layer=1"])


def with_steps(config: Config, steps: int) -> Planned:
    """Return a planned run of so many steps."""
    return Planned(replace(config, trainer=replace(config.trainer, max_steps=steps)), 65)


def mark_as_cached(planned: Planned) -> None:
    """Record that the code of a design is in the cache."""
    file = planned.cached(choose_runtime("cpu", "fp32"))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("{}")


def steps_for(config: Config, flops: float) -> int:
    """Return the number of steps with at least so many FLOPs."""
    return int(flops / with_steps(config, 1).flops) + 1


@needs_compiler
def test_auto_compiles_runs_that_are_long_enough(config: Config) -> None:
    cold = steps_for(config, DEFAULT_COST.load + DEFAULT_COST.compile)
    assert choose_compilation([with_steps(config, cold)]).compiled
    assert not choose_compilation([with_steps(config, cold - 1)]).compiled
    warm = steps_for(config, DEFAULT_COST.load)
    mark_as_cached(with_steps(config, 1))  # the number of steps is not part of the design
    assert choose_compilation([with_steps(config, warm)]).compiled
    assert not choose_compilation([with_steps(config, warm - 1)]).compiled


@needs_compiler
def test_seeds_share_the_cost_of_compiling(config: Config) -> None:
    few = steps_for(config, DEFAULT_COST.load + DEFAULT_COST.compile / 4)
    assert not choose_compilation([with_steps(config, few)]).compiled
    seeds = [Planned(replace(with_steps(config, few).config, seed=seed), 65) for seed in range(4)]
    assert choose_compilation(seeds).compiled
    assert choose_compilation(seeds, processes=1).compiled
    wider = replace(config.model, n_embd=136)
    designs = [seeds[0], Planned(replace(seeds[1].config, model=wider), 65)]
    assert not choose_compilation(designs).compiled


@needs_compiler
def test_runs_in_one_process_load_their_code_once(config: Config) -> None:
    steps = steps_for(config, DEFAULT_COST.load / 2)
    mark_as_cached(with_steps(config, 1))
    seeds = [Planned(replace(with_steps(config, steps).config, seed=seed), 65) for seed in range(4)]
    assert choose_compilation(seeds, processes=1).compiled
    assert choose_compilation(seeds, processes=2).compiled
    assert not choose_compilation(seeds, processes=3).compiled
    assert not choose_compilation(seeds).compiled  # one each
    wider = [replace(seed.config, model=replace(config.model, n_embd=136)) for seed in seeds]
    mark_as_cached(Planned(wider[0], 65))
    others = [Planned(config, 65) for config in wider]
    assert choose_compilation(seeds + others, processes=1).compiled
    in_turn = [run for pair in zip(seeds, others, strict=True) for run in pair]
    assert not choose_compilation(in_turn, processes=1).compiled


@pytest.mark.parametrize("attention", ATTENTION.names())
def test_the_resolved_config_is_the_same_design(tmp_path: Path, attention: str) -> None:
    config = composed_config([f"data.dir={tmp_path}", *CPU, f"attention={attention}"])
    with torch.device("meta"):
        module = ATTENTION.build(config.model.attention, config.model.shape)
    model = replace(config.model, attention=module.resolved(config.model.attention))
    runtime = choose_runtime("cpu", "fp32")
    resolved = replace(config, model=model)
    assert Planned(config, 65).cached(runtime) == Planned(resolved, 65).cached(runtime)


def test_auto_without_a_compiler_is_eager(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = with_steps(config, 10**9)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert choose_compilation([planned]).describe().startswith("eager (no C++ compiler")


def test_a_given_value_decides(config: Config) -> None:
    for value in (True, False):
        trainer = replace(config.trainer, compile=value)
        planned = [Planned(replace(config, trainer=trainer), 65)]
        assert choose_compilation(planned) == Choice(value, "as configured")


def resolved(run: str) -> object:
    """Return the value of trainer.compile that a run's manifest has."""
    directory = RunDirectory(Path(run))
    return directory.read_json(directory.manifest)["resolved"].get("trainer.compile")


@needs_compiler
def test_a_failed_compilation_leaves_an_eager_run(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "COSTS", {"cpu": Cost(0, 0)})
    assert cli("train", *TINY, "trainer.compile=false", "hydra.run.dir=eager").code == 0
    monkeypatch.setattr(compilation, "CACHE_OF_USER", "text.txt/cache")  # inside a file
    done = cli("train", *TINY, "hydra.run.dir=auto")
    assert done.code == 0, done.err
    assert done.out.count("compile    failed, so this run is eager: ") == 1
    assert resolved("auto") is False
    weights = [Path(run, "checkpoints/last/model.safetensors") for run in ("eager", "auto")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    refused = cli("train", *TINY, "trainer.compile=true", "hydra.run.dir=asked")
    assert refused.code == 1
    assert refused.err.startswith("minigpt: trainer.compile=true: ")
    assert refused.err.count("\n") == 1


@pytest.mark.parametrize(
    ("compiler", "message"),
    [
        ("no_such_compiler", "no C++ compiler no_such_compiler; with one, training is faster"),
        ("false", "the C++ compiler false does not work"),
    ],
)
def test_true_without_a_compiler_says_so(workdir: Path, compiler: str, message: str) -> None:
    """In a process of its own: torch reads CXX when it is imported."""
    command = [sys.executable, "-m", "minigpt.cli", "train", *TINY, "trainer.compile=true"]
    environment = os.environ | {"CXX": compiler, compilation.CACHE: str(workdir / "empty")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    remedy = "use trainer.compile=auto, or false"
    assert done.returncode == 1
    assert done.stderr == f"minigpt: trainer.compile=true: {message}; {remedy}\n"


@pytest.mark.exhaustive
@needs_compiler
@pytest.mark.slow
def test_a_compiled_run_resumes_bit_equal_and_fills_the_cache(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "COSTS", {"cpu": Cost(0, 0)})
    options = [*TINY, "model.dropout=0.1", "schedule=constant", "data.dir=data"]
    whole = cli("train", *options, "hydra.run.dir=whole")
    assert "steps      compiled (not in the cache yet)" in whole.out, whole.err
    assert resolved("whole") is True
    assert len([*Path("data/compiled/designs").glob("*.json")]) == 1
    first = cli("train", *options, "trainer.max_steps=5", "hydra.run.dir=parts")
    assert "steps      compiled (in the cache)" in first.out
    # The decision is saved: a resumed run is compiled although auto would now be eager.
    monkeypatch.setattr(compilation, "COSTS", {"cpu": Cost(1e30, 1e30)})
    assert cli("train", "resume=parts", "trainer.max_steps=12").code == 0
    weights = [Path(run, "checkpoints/last/model.safetensors") for run in ("whole", "parts")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.exhaustive
@needs_compiler
@pytest.mark.slow
def test_the_next_run_of_a_design_reuses_the_code_of_the_process(cli: Cli) -> None:
    options = [*TINY, "trainer.compile=true", "data.dir=data"]

    def graphs_after(run: str, *more: str) -> int:
        assert cli("train", *options, *more, f"hydra.run.dir={run}").code == 0
        return torch._dynamo.utils.counters["stats"]["unique_graphs"]

    torch.compiler.reset()
    first = graphs_after("first", "seed=1")
    assert graphs_after("second", "seed=2") == first
    assert graphs_after("wider", "seed=2", "model.n_embd=40") > first
    graphs_after("alone", "seed=2")  # after another design
    weights = [Path(run, "checkpoints/last/model.safetensors") for run in ("second", "alone")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@needs_compiler
@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one thread computes in order")
def test_compiled_runs_with_several_threads_are_bit_equal(cli: Cli) -> None:
    large = [*("model.n_embd=64", "model.block_size=64", "trainer.batch_size=32")]
    options = [*TINY, *large, "trainer.threads=2", "trainer.compile=true"]
    for run in ("one", "two"):
        assert cli("train", *options, f"hydra.run.dir={run}").code == 0
    weights = [Path(run, "checkpoints/last/model.safetensors") for run in ("one", "two")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_design_is_compiled_by_one_process_at_a_time(config: Config) -> None:
    cached = with_steps(config, 1).cached(choose_runtime("cpu", "fp32"))
    lock = FileLock(cached.with_suffix(".lock"))
    with compilation._compiling(cached):
        assert not cached.exists()
        with pytest.raises(TimeoutError):
            lock.acquire(timeout=0)
    assert cached.exists()
    with compilation._compiling(cached):  # others read it at the same time
        lock.acquire(timeout=0)
        lock.release()


def test_a_failed_compilation_is_not_in_the_cache(config: Config) -> None:
    cached = with_steps(config, 1).cached(choose_runtime("cpu", "fp32"))
    with pytest.raises(ZeroDivisionError), compilation._compiling(cached):
        raise ZeroDivisionError
    assert not cached.exists()


def test_all_runs_of_a_sweep_decide_alike(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run alone would be compiled; together they are not, and later ones follow."""
    eager = {"cpu": Cost(1e30, 1e30)}
    monkeypatch.setattr(compilation, "COSTS", eager)
    sweep = ["train", "-m", *TINY, "seed=1,2", "hydra.sweep.dir=sweep"]
    assert cli(*sweep).code == 0
    shutil.rmtree("sweep/seed=2")
    monkeypatch.setattr(compilation, "COSTS", {"cpu": Cost(0, 0)})
    assert cli(*sweep).code == 0
    log = Path("sweep/seed=2/output.log").read_text()
    assert "steps      eager (as the earlier runs of this sweep)" in log
    assert [resolved(f"sweep/seed={seed}") for seed in (1, 2)] == [False, False]


def test_the_cache_of_the_user_is_used(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compilation.cache_folder(config) == config.data.directory / "compiled"
    monkeypatch.setattr(compilation, "CACHE_OF_USER", os.fspath("elsewhere"))
    assert compilation.cache_folder(config) == Path("elsewhere").absolute()


@pytest.mark.parametrize("value", ["maybe", "null", "1"])
def test_other_values_are_refused(cli: Cli, value: str) -> None:
    done = cli("train", *TINY, f"trainer.compile={value}")
    assert done.code == 2
    assert done.err.startswith(f"minigpt: trainer.compile={value}: ")
