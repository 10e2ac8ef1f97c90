"""`minigpt bench`: measurements and error messages."""

from __future__ import annotations

import json
import operator
import os
import re
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from minigpt.bench import busy, gpu
from minigpt.bench.busy import WAITING
from minigpt.bench.measure import Times, alternately, ceilings, in_new_process
from minigpt.bench.train import LISTED, StepClock
from minigpt.config.compose import composed_config
from minigpt.config.groups import config_directory
from minigpt.config.overrides import combinations
from minigpt.errors import Failure
from tests.conftest import Cli

SMALL = [
    *("data=text", "data.path=text.txt", "model.n_layer=1", "model.n_head=2", "model.n_embd=16"),
    *("model.block_size=16", "trainer.batch_size=4", "trainer.device=cpu"),
]


def rows(file: str) -> list[dict[str, object]]:
    """Return the rows of a JSON report."""
    return json.loads(Path(file).read_text())["rows"]


def test_bench_train_compares_configs(cli: Cli) -> None:
    options = ["--steps", "4", "--warmup", "2", "--repeats", "2", "--json", "out.json"]
    done = cli("bench", "train", *SMALL, "model=rope,alibi", *options)
    assert done.code == 0, done.err
    rope, alibi = rows("out.json")
    assert (rope["config"], alibi["config"]) == ("model=rope", "model=alibi")
    assert rope["ratio"] == 1.0
    for row in (rope, alibi):
        assert all(row[key] > 0 for key in ("tokens_per_second", "utilisation", "evaluation"))  # type: ignore[operator]
    assert "GFLOP/s in a" in done.out and "GB/s copied" in done.out
    assert not Path("runs").exists()


def test_bench_train_writes_a_profile(cli: Cli) -> None:
    options = ["--steps", "2", "--warmup", "1", "--repeats", "1", "--profile", "out/trace.json"]
    done = cli("bench", "train", *SMALL, *options, "--json", "out.json", "--out", "page.md")
    assert done.code == 0 and "ms per step" in done.out, done.err
    operators = json.loads(Path("out.json").read_text())["profile"]
    assert len(operators) == 10 and all("::" in each["operator"] for each in operators)
    times = [each["ms"] for each in operators]
    assert times == sorted(times, reverse=True) and times[-1] > 0
    assert 0 < sum(each["share"] for each in operators) < 1
    assert "## Profile of 2 steps" in Path("page.md").read_text()
    events = json.loads(Path("out/trace.json").read_text())["traceEvents"]
    assert any(str(event.get("name")).startswith("aten::") for event in events)


@pytest.mark.parametrize(
    ("event", "operator"),
    [
        ("aten::mm", "aten::mm"),
        ("minigpt::stored", "minigpt::stored"),
        ("## Call CompiledFxGraph fgwv5qmdqmc52a5y ##", "CompiledFxGraph fgwv5q"),
        ("autograd::engine::evaluate_function: MulBackward0", None),
        ("torch::autograd::AccumulateGrad", None),
        ("Optimizer.step#AdamW.step", None),
        ("TorchDynamo Cache Lookup", None),
    ],
)
def test_a_profile_lists_operators(event: str, operator: str | None) -> None:
    name = LISTED["cpu"].match(event)
    assert (name and name[name.lastindex or 0]) == operator


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train --profile=", "--profile=.: is a folder; name a file in it"),
        ("train --profile folder", "--profile=folder: is a folder; name a file in it"),
        ("train --json /dev/null", "--json=/dev/null: is not a regular file"),
        ("busy --json text.txt/new/x", "--json=text.txt/new/x: cannot be written (Not a directory"),
        ("growth --out text.txt/page.md", "--out=text.txt/page.md: cannot be written (Not a direc"),
        ("startup --json " + "x" * 300, "cannot be written (File name too long)"),
        ("train --json x --profile ./x", "--profile=x: is the file of --json; name another one"),
    ],
)
def test_files_are_checked_before_the_work(cli: Cli, arguments: str, message: str) -> None:
    Path("folder").mkdir()
    refused = cli("bench", *arguments.split(), *SMALL)
    assert refused.code == 2 and message in refused.err, refused.err
    assert refused.err.startswith("minigpt: ") and refused.err.count("\n") == 1


def test_a_failed_benchmark_leaves_no_files(cli: Cli) -> None:
    files = ["--json", "new/x.json", "--out", "new/x.md", "--profile", "new/trace.json"]
    failed = cli("bench", "train", *SMALL, "data.path=nowhere.txt", *files)
    assert failed.code == 2 and "nowhere.txt" in failed.err
    assert {path.name for path in Path().iterdir()} == {"text.txt"}


def test_bench_attention_covers_backends_and_lengths(cli: Cli) -> None:
    options = ["--lengths", "8,16", "--tokens", "64", "--repeats", "2", "--json", "out.json"]
    done = cli("bench", "attention", *SMALL, *options)
    assert done.code == 0, done.err
    measured = [(row["length"], row["backend"]) for row in rows("out.json")]
    assert measured == [
        (n, b) for n in ("8", "16") for b in ("eager", "blockwise", "sdpa")
    ]  # flex trains on GPUs


@pytest.mark.exhaustive
def test_bench_group_covers_every_choice(cli: Cli) -> None:
    options = ["--lengths", "16", "--tokens", "64", "--repeats", "1", "--json", "out.json"]
    done = cli("bench", "group", "positional", *options, "--out", "docs/cost.md")
    assert done.code == 0, done.err
    page = Path("docs/cost.md").read_text(encoding="utf-8")
    assert page.startswith(
        "# Cost of each positional\n\nWritten by `minigpt bench group positional"
    )
    schemes = sorted(file.stem for file in (config_directory() / "positional").glob("*.yaml"))
    for backend, passes in (("eager", "both"), ("sdpa", "both"), ("flex", "forward")):  # on a CPU
        backend_rows = [row for row in rows("out.json") if row["backend"] == backend]
        assert [row["positional"] for row in backend_rows] == schemes
        for row in backend_rows:
            assert row["passes"] == passes and row["ms_16"] > 0  # type: ignore[operator]
            assert (row["mb_16"] is None) == (passes == "forward")


def test_bench_group_attention_uses_comparable_options(cli: Cli) -> None:
    options = ["--lengths", "64,128", "--tokens", "128", "--repeats", "1", "--json", "out.json"]
    done = cli("bench", "group", "attention", *options, "--backends", "eager", "model.n_embd=16")
    assert done.code == 0, done.err
    names = ["bigbird", "chunked", "full", "landmark", "performer", "sliding_window"]
    assert [row["attention"] for row in rows("out.json")] == names
    assert "model.attention.features=64" in done.out


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests the message without a GPU")
def test_bench_gpu_needs_a_gpu(cli: Cli) -> None:
    done = cli("bench", "gpu", "--json", "out.json")
    assert done.code == 2 and done.out == "" and not Path("out.json").exists()
    assert done.err.count("\n") == 1 and "minigpt bench gpu: needs a GPU" in done.err


def test_parts_of_bench_gpu(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part but those that need a GPU, on small models; a failed part does not stop others."""
    monkeypatch.setattr(gpu, "STEPS", 4)
    monkeypatch.setattr(gpu, "WARMUP", 1)
    monkeypatch.setattr("minigpt.bench.measure.CEILING_SIZE", {"cpu": 64})
    small = [*SMALL, "model.dropout=0.0", "trainer.precision=fp32"]
    parts: dict[str, gpu.Part] = {
        "steps": partial(gpu.training, small, 1, ways=["eager"]),
        "decoding": partial(gpu.decoding, small, 1, tokens=3),
        "replicas": partial(gpu.together, small, 1, n=2),
        "graph": partial(gpu.training, small, 1, ways=["graph"]),
    }
    rows = [row for name, part in parts.items() for row in gpu.rows_of(name, part, 60.0)]
    *figures, failed = rows
    assert all(isinstance(row[1], float) and row[1] > 0 for row in figures)
    assert len(figures) == 2 + 4 + 1 and figures[-1][2] == ">= 5"
    assert str(failed[3]).startswith("failed: trainer.graph=on: CUDA graphs need")
    late = gpu.rows_of("steps", parts["steps"], 0.0)
    assert late == [["steps", None, "", "not measured: 520 s have passed"]]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="kills a process group")
def test_a_part_of_bench_gpu_ends_in_time_with_all_that_it_started(workdir: Path) -> None:
    """The grandchild would write the file long before the test ends."""
    grandchild = "import time; open('began', 'w').close(); time.sleep(6); open('late', 'w').close()"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
    Path("program.py").write_text(child)

    def part(seconds: float) -> Iterator[gpu.Figure]:
        gpu.program_output(Path("program.py"), [], seconds)
        yield gpu.Figure("none", 0.0)

    assert gpu.rows_of("slow", part, 3.0) == [
        ["slow", None, "", "not measured: did not end in 3 s"]
    ]
    assert Path("began").exists()
    time.sleep(4)
    assert not Path("late").exists()


def test_a_missed_target_is_a_figure_and_a_missing_one_a_failure(workdir: Path) -> None:
    """As loss_targets.py and bench_vs_nanogpt.py, which exit with 1 if a target was missed."""
    write = (
        "import pathlib, sys; pathlib.Path(sys.argv[-1]).write_text('{\"loss\": 2}'); sys.exit(1)"
    )
    Path("missed.py").write_text(write)
    assert gpu.program_output(Path("missed.py"), [], 60) == {"loss": 2}
    Path("failed.py").write_text("raise SystemExit('no GPU memory')")
    with pytest.raises(Failure, match=r"^no GPU memory$"):
        gpu.program_output(Path("failed.py"), [], 60)


def test_a_benchmark_without_a_part_fails(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table is printed and written before; here of parts for which no time is left."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "LIMIT", 0.0)
    failed = cli("bench", "gpu", *SMALL, "--json", "out.json")
    assert failed.code == 1 and "not measured: 0 s have passed" in failed.out
    parts = "training steps, decoding, replicas, speedrun, best"
    assert failed.err == f"minigpt: not measured: {parts}; the table says why\n"
    assert [row["value"] for row in rows("out.json")] == [None] * 5


def test_figures_are_met_or_missed() -> None:
    assert gpu.Figure("loss", 1.41, 1.40).row() == ["loss", 1.41, "<= 1.4", "missed"]
    assert gpu.Figure("times", 5.0, 5, operator.ge).row() == ["times", 5.0, ">= 5", "met"]
    assert gpu.Figure("ms", 5.0).row() == ["ms", 5.0, "", ""]


@pytest.mark.exhaustive
@pytest.mark.slow
def test_bench_gpu_reads_the_study(workdir: Path) -> None:
    small = [*SMALL, "trainer.max_steps=3", "trainer.compile=false", "logger=none"]
    figures = list(gpu.recipe("speedrun", small, 300.0))
    assert [figure.target for figure in figures] == [1.4697, 10, 40]
    assert all(figure.value > 0 for figure in figures)
    with pytest.raises(Failure, match="no such option"):
        list(gpu.recipe("speedrun", ["model.n_layers=1"], 300.0))


@pytest.mark.gpu
@pytest.mark.slow
def test_bench_gpu_on_small_models(cli: Cli) -> None:
    small = [option for option in SMALL if "device" not in option]
    short = ("trainer.max_steps=5", "model.dropout=0.0", "--json", "out.json")
    done = cli("bench", "gpu", *small, *short)
    assert done.code == 0, done.err
    assert not [row for row in rows("out.json") if "failed" in str(row["result"])]


def test_bench_vocabulary_compares_chunked_logits(cli: Cli) -> None:
    small = ["--vocabulary", "40000", "--tokens", "256", "--repeats", "1", "--json", "out.json"]
    done = cli("bench", "vocabulary", *small)
    assert done.code == 0, done.err
    at_once, chunks = rows("out.json")
    assert at_once["loss"] == pytest.approx(chunks["loss"], abs=0.01)
    assert at_once["ratio"] == 1 and chunks["ratio"] > 1  # type: ignore[operator]


@pytest.mark.exhaustive
def test_bench_growth_writes_a_page(cli: Cli) -> None:
    small = ["--axes", "depth,corpus", "--depth", "1,2", "--corpus", "1e5,1e7", "--sparse"]
    brief = ["--tokens", "64", "--steps", "2", "--warmup", "1", "--repeats", "1", "--folder", "."]
    files = ["--out", "docs/page.md", "--json", "out.json"]
    done = cli("bench", "growth", *small, *brief, *files, "trainer.device=cpu")
    assert done.code == 0, done.err
    assert "depth 2, round 1: " in done.err and done.out.startswith("Growth of training\n")
    page = Path("docs/page.md").read_text(encoding="utf-8")
    assert Path("docs/page.png").read_bytes().startswith(b"\x89PNG") and "](page.png)" in page
    assert "From 1 to 2 layers" in page and "From 100,000 to 10,000,000 tokens" in page
    assert page.count("worse than the model's own complexity") == 2
    assert [row["size"] for row in rows("out.json")] == [1, 2, 10**5, 10**7]
    assert all(row["time_growth"] > 0 for row in rows("out.json"))  # type: ignore[operator]
    assert [*Path().glob("minigpt_growth_*")] == []

    too_large = cli("bench", "growth", "--axes", "corpus", "--corpus", "1e15", *brief)
    assert too_large.code == 1 and "GB are free" in too_large.err
    invalid = cli("bench", "growth", "--axes", "depth", *brief, "model.n_head=7")
    assert invalid.code == 2 and "model.n_embd" in invalid.err.splitlines()[-1]


def test_bench_decode_covers_batch_sizes(cli: Cli) -> None:
    options = ["--tokens", "5", "--batch", "1,3", "--prompt", "4", "--repeats", "1"]
    done = cli("bench", "decode", *SMALL, *options, "--json", "out.json")
    assert done.code == 0, done.err
    assert [row["batch"] for row in rows("out.json")] == ["1", "3"]


def test_bench_parallel(cli: Cli) -> None:
    options = ["--processes", "1", "--steps", "3", "--repeats", "1", "--json", "out.json"]
    done = cli("bench", "parallel", *SMALL, "trainer.precision=fp32", *options)
    assert done.code == 0, done.err
    alone, *others = rows("out.json")
    assert [(row["mode"], row["processes"]) for row in others] == [("ddp", 1), ("fsdp", 1)]
    assert alone["efficiency"] == 1.0 and alone["share"] is None
    for row in others:
        assert all(row[key] > 0 for key in ("step", "tokens_per_second", "efficiency", "memory"))  # type: ignore[operator]
        assert 0 <= row["share"] < 1  # type: ignore[operator]
    assert "share" in done.out and not Path("runs").exists()


def test_bench_replicas(cli: Cli) -> None:
    options = ["--replicas", "3", "--steps", "2", "--warmup", "1", "--repeats", "1"]
    done = cli("bench", "replicas", *SMALL, *options, "--json", "out.json")
    assert done.code == 0, done.err
    separate, replicas = rows("out.json")
    assert separate["ratio"] == 1.0
    assert replicas["tokens_per_second"] > 0  # type: ignore[operator]
    assert "3 runs of 64 tokens per step" in done.out
    done = cli("bench", "replicas", *SMALL, "model.dropout=0.1", *options)
    assert done.code == 2 and "model.dropout=0.1: replicas would draw" in done.err


@pytest.mark.exhaustive
def test_bench_busy(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two of the ways to wait, to save time."""
    monkeypatch.setattr(busy, "WAITING", dict([*WAITING.items()][:2]))
    options = ["--competitors", "1", "--steps", "3", "--repeats", "1", "--json", "out.json"]
    done = cli("bench", "busy", *SMALL, *options)
    assert done.code == 0, done.err
    measured = rows("out.json")
    assert [row["competitors"] for row in measured] == ["1"] * 2
    assert [row["waiting"] for row in measured] == [*WAITING][:2]
    assert measured[0]["ratio"] == 1.0
    assert re.search(r"minigpt: measuring: \d+%, \d+:\d\d left", done.err)
    for row in measured:
        assert all(row[key] > 0 for key in ("tokens_per_second", "eval", "sample"))  # type: ignore[operator]
    assert not Path("runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [SMALL, []], ids=["small", "default"])
def test_bench_startup(cli: Cli, overrides: list[str]) -> None:
    done = cli("bench", "startup", *overrides, "--repeats", "1", "--json", "out.json")
    assert done.code == 0, done.err
    names = [str(row["what"]) for row in rows("out.json")]
    training = " ".join(["minigpt train", *overrides])
    assert names[2] == "minigpt --help" and names[-1] == f"{training}: first step"
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        "startup data=text data.path=nowhere.txt",
        "busy data=text data.path=nowhere.txt --competitors 0",
    ],
)
def test_an_error_of_a_program_is_that_of_the_benchmark(cli: Cli, arguments: str) -> None:
    failed = cli("bench", *arguments.split(), "--repeats", "1")
    assert failed.code == 2 and failed.err.startswith(
        "minigpt: data.path=nowhere.txt: no such file"
    )
    assert failed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("sing", "argument WHAT: invalid choice: 'sing'"),
        ("train model=ropee", "model=ropee: no such model. Did you mean rope or nope?"),
        ("train model=rope,alibbi", "model=alibbi: no such model. Did you mean alibi?"),
        ("train --repeats 0", "--repeats=0: must be 1 or more"),
        ("train --warmup 0", "--warmup=0: must be 1 or more"),
        ("decode --tokens 1", "--tokens=1: must be 2 or more"),
        (
            "decode --steps 5",
            "minigpt: unrecognized arguments: --steps. An override is steps=VALUE.",
        ),
        ("train --steps 5,6", "--steps=5,6: takes one number"),
        ("attention model=rope,alibi", "model=rope,alibi: bench attention takes one config"),
        ("startup seed=1,2", "seed=1,2: bench startup takes one config"),
        ("startup trainer.max_steps=0", "trainer.max_steps=0: trains no first step; use 1 or more"),
        ("startup resume=/nowhere", "resume=/nowhere: benchmarks train new runs; leave it out"),
        ("startup logger=wandb", "logger=wandb: is set by this benchmark; leave it out"),
        ("startup +trainer.log_every=9", "trainer.log_every=9: is set by this benchmark"),
        ("busy trainer.max_steps=9", "trainer.max_steps=9: use --steps"),
        ("parallel trainer.parallel=ddp", "trainer.parallel=ddp: is set by this benchmark"),
        ("parallel --processes 1,1000", "--processes=1000: this machine has"),
        ("busy --competitors 1,1000000", "--competitors=1000000: with more than 16 loops per core"),
        ("train hydra.run.dir=x", "hydra.run.dir=x: benchmarks keep no runs; leave it out"),
        ("decode --batch 1,x", "--batch=1,x: not integers"),
        ("attention --lengths 0", "--lengths=0: must be 1 or more"),
        ("train trainer.device=cuda9", "trainer.device=cuda9: not one of"),
        ("group", "the following arguments are required: GROUP"),
        ("group optimizer", "GROUP=optimizer: not one of positional, attention, ffn, norm."),
        ("group ffn --backends cuda", "--backends=cuda: not one of eager, blockwise, sdpa, flex."),
        ("growth --folder nowhere", "--folder=nowhere: no such folder; create it"),
        ("gpu --nanogpt nowhere", "--nanogpt=nowhere: no such folder; create it"),
        ("gpu --nanogpt .", "--nanogpt=.: no train.py there; give a checkout of nanoGPT"),
        ("growth --axes dept", "--axes=dept: not one of context, width, depth, corpus. Did you"),
        ("growth --context 128 --tokens 64", "--tokens=64: fewer than one window of --context"),
        ("growth --axes depth model.n_layers=1", "model.n_layers: no such option"),
    ],
)
def test_mistakes_print_one_line(cli: Cli, arguments: str, message: str) -> None:
    done = cli("bench", *arguments.split())
    assert done.code == 2 and message in done.err, done.err
    assert done.err.startswith("minigpt: ") and done.err.count("\n") == 1


def test_times_report_median_and_quartiles() -> None:
    times = Times([0.003, 0.001, 0.002, 0.005, 0.004])
    assert times.median == 0.003 and times.quartiles == (0.002, 0.004)
    assert times.describe() == "3.00 (2.00-4.00)"
    assert Times([0.001]).describe() == "1.00 (1.00-1.00)"


def test_functions_are_timed_alternately() -> None:
    calls: list[str] = []
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = alternately(functions, repeats=3, warmup=1, device="cpu")
    assert "".join(calls) == "abababab"
    assert all(len(repeated.seconds) == 3 for repeated in times.values())


def test_in_new_process_raises_the_error_of_the_function() -> None:
    with pytest.raises(ValueError, match="no such option"):
        in_new_process(composed_config, ["model.n_layers=1"])
    with pytest.raises(Failure, match="abort: its process was killed"):
        in_new_process(os.abort)


def test_step_clock_excludes_warmup_steps() -> None:
    clock = StepClock("cpu")
    clock.readings = [(0, 0.0), (1, 9.0), (2, 10.0), (3, 10.5), (5, 12.5)]
    assert clock.seconds(warmup=2) == [0.5, 1.0]


def test_ceilings_measure_flops_and_bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minigpt.bench.measure.CEILING_SIZE", {"cpu": 256})
    monkeypatch.setattr("minigpt.bench.measure.COPIED_BYTES", {"cpu": 2**20})
    peak = ceilings("cpu", "fp32")
    assert peak.flops > 1e8 and peak.bytes > 1e7


def test_combinations_are_the_product_of_lists() -> None:
    assert combinations(["a=1,2", "b=x"]) == [["a=1", "b=x"], ["a=2", "b=x"]]
    assert combinations([]) == [[]]
