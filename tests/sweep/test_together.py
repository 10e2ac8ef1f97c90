"""`hydra/launcher=replicas`, compared with separate runs."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from minigpt.train.replicas import Program
from tests.conftest import TINY, Cli, read_metrics

REPLICAS = "hydra/launcher=replicas"


def sweep(cli: Cli, folder: str, *options: str, code: int = 0) -> dict[str, Path]:
    """Run a sweep and return its run directories by name."""
    outcome = cli("train", "-m", *TINY, f"hydra.sweep.dir={folder}", *options)
    assert outcome.code == code, outcome.err
    return {path.parent.name: path.parent for path in Path(folder).glob("*/config.yaml")}


def result(run: Path) -> dict[str, Any]:
    """Return a run's result.json."""
    return json.loads((run / "result.json").read_text())


def assert_same_run(one: Path, other: Path) -> None:
    """Assert equal files, and equal results up to rounding, except for times."""
    for a, b in zip(read_metrics(one), read_metrics(other), strict=True):
        assert a.keys() == b.keys()
        timed = ("seconds", "tokens_per_second")
        assert {k: v for k, v in a.items() if k not in timed} == pytest.approx(
            {k: v for k, v in b.items() if k not in timed}, rel=1e-4
        )
    weights = [load_file(run / "checkpoints/last/model.safetensors") for run in (one, other)]
    for name, tensor in weights[0].items():
        assert (tensor - weights[1][name]).norm() <= 1e-4 * tensor.norm()
    files = [
        {path.relative_to(run) for path in run.rglob("*") if path.is_file()} for run in (one, other)
    ]
    assert files[0] == files[1]
    for key in ("status", "steps", "best_step", "parameters", "seed"):
        assert result(one)[key] == result(other)[key]


def test_replicas_equal_separate_runs(cli: Cli) -> None:
    options = ["seed=1,2", "optimizer.lr=1e-2,3e-3", "optimizer.weight_decay=0.2,0"]
    options += ["trainer.precision=fp32", "trainer.grad_accum_steps=2", "data.order=epochs"]
    options += ["optimizer.ema=0.5"]
    separate = sweep(cli, "separate", *options)
    replicas = sweep(cli, "replicas", *options, REPLICAS)
    assert replicas.keys() == separate.keys() and len(separate) == 8
    for name, run in separate.items():
        assert_same_run(run, replicas[name])
    manifest = json.loads((next(iter(replicas.values())) / "manifest.json").read_text())
    assert manifest["replicas"] == 8 and manifest["backend"].startswith("eager")
    losses = {result(run)["val_loss"] for run in replicas.values()}
    assert len(losses) == 8


def test_replicas_on_a_cpu_recommend_processes(cli: Cli) -> None:
    options = ["-m", *TINY, "hydra.sweep.dir=sweep", "seed=1,2", REPLICAS]
    line = "hydra/launcher=processes, the default, is faster"
    shown = cli("train", *options)
    assert (shown.out + shown.err).count(line) == 1
    again = cli("train", *options)  # nothing to train
    assert line not in again.out + again.err


def test_designs_lengths_and_documents_are_grouped(cli: Cli) -> None:
    options = ["model=rope,t5", "seed=1,2", "trainer.max_steps=4,7", "trainer.precision=fp32"]
    options.append(r"data.document_separator='\n'")
    separate = sweep(cli, "separate", *options)
    replicas = sweep(cli, "replicas", *options, REPLICAS)
    for name, run in separate.items():
        assert_same_run(run, replicas[name])
    assert {result(run)["steps"] for run in replicas.values()} == {4, 7}
    chunked = sweep(cli, "chunked", *options, REPLICAS, "hydra.launcher.at_once=3")
    for name, run in separate.items():
        assert_same_run(run, chunked[name])


def test_a_failed_or_stopped_run_does_not_affect_the_others(cli: Cli) -> None:
    options = ["optimizer.lr=1e30,1e-2,0", "trainer.patience=1", "trainer.max_steps=40"]
    runs = sweep(cli, "replicas", *options, REPLICAS, "trainer.eval_every=8", code=1)
    results = {name: result(run) for name, run in runs.items()}
    assert results["lr=1e+30"]["status"] == "failed" and results["lr=1e+30"]["diverged"]
    assert results["lr=0.01"]["steps"] > results["lr=0"]["steps"] == 16
    assert math.isfinite(results["lr=0.01"]["val_loss"])
    assert "Traceback" in (runs["lr=1e+30"] / "output.log").read_text()
    assert "Traceback" not in (runs["lr=0.01"] / "output.log").read_text()
    again = sweep(cli, "replicas", *options, REPLICAS, "trainer.eval_every=8", code=1)
    assert {name: result(run)["status"] for name, run in again.items()} == {
        name: one["status"] for name, one in results.items()
    }


def test_unsupported_options_are_rejected(cli: Cli, workdir: Path) -> None:
    before = sorted(workdir.rglob("*"))
    for options, message in (
        (
            ["model.dropout=0.1"],
            "model.dropout=0.1: replicas would draw other dropout masks than separate runs",
        ),
        (["ffn=moe"], "ffn=moe: expert routing has no batching rule"),
        (["backend=sdpa"], "model.backend.name=sdpa: only eager attention has a batching rule"),
        (["hydra.launcher.at_once=0"], "hydra.launcher.at_once=0: must be an integer of 1"),
        (["hydra.launcher.at_once=2.5"], "hydra.launcher.at_once=2.5: must be an integer"),
        (["hydra.launcher.at_once=abc"], "hydra.launcher.at_once=abc: must be an integer"),
    ):
        outcome = cli("train", "-m", *TINY, "seed=1,2", REPLICAS, *options)
        assert outcome.code == 2 and message in outcome.err and outcome.err.count("\n") == 1
    assert sorted(workdir.rglob("*")) == before


def test_fail_fast_stops_all_runs(cli: Cli) -> None:
    options = ["optimizer.lr=1e30,1e-3", "trainer.max_steps=20000", "sweep.fail_fast=true"]
    options += ["trainer.eval_every=null", "trainer.sample_every=null"]
    outcome = cli("train", "-m", *TINY, *options, REPLICAS, "hydra.sweep.dir=replicas")
    assert outcome.code == 1 and "1 of 2 jobs failed" in outcome.err
    assert result(Path("replicas/lr=0.001"))["status"] == "interrupted"


def test_an_error_in_a_step_fails_all_runs(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_out_of_memory(*arguments: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(Program, "backward", raise_out_of_memory)
    runs = sweep(cli, "replicas", "seed=1,2", REPLICAS, code=1)
    for run in runs.values():
        assert result(run)["status"] == "failed"
        assert "hydra.launcher.at_once" in result(run)["error"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.exhaustive), signal.SIGKILL]
)
def test_a_killed_sweep_resumes(cli: Cli, number: signal.Signals) -> None:
    options = ["seed=1,2,3", "trainer.max_steps=60", "trainer.precision=fp32"]
    options += ["trainer.checkpoint_every=5"]
    separate = sweep(cli, "separate", *options)
    command = [sys.executable, "-m", "minigpt.cli", "train", "-m", *TINY, *options, REPLICAS]
    process = subprocess.Popen(
        [*command, "hydra.sweep.dir=replicas"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    last = Path("replicas/seed=3/checkpoints/last")
    while not last.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.kill(process.pid, number)
    assert process.wait(60) == (-number if number == signal.SIGKILL else 128 + number)
    replicas = sweep(cli, "replicas", *options, REPLICAS)
    for name, run in separate.items():
        assert result(replicas[name])["status"] == "finished"
        assert_same_run(run, replicas[name])
        assert "resumed" in json.loads((replicas[name] / "manifest.json").read_text())
