"""Killed, stopped and concurrent sweeps."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minigpt.run.weights import WEIGHTS
from minigpt.sweep.watch import last_step
from minigpt.train.state import TRAINING
from tests.conftest import read_metrics
from tests.sweep.helpers import runs, spawn, wait_for


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="kills by POSIX signals")
def test_the_same_command_resumes_a_killed_sweep(workdir: Path) -> None:
    options = ["seed=1,2,3,4,5", "optimizer.lr=1e-3,1e-2", "trainer.max_steps=60"]
    process = spawn(*options)
    wait_for(lambda: len(list(Path("sweep").glob("*/result.json"))) >= 4, process)
    wait_for(lambda: len(runs()) > len(list(Path("sweep").glob("*/result.json"))), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    finished = {path: path.stat().st_mtime_ns for path in Path("sweep").glob("*/result.json")}
    assert 4 <= len(finished) < 10

    again = spawn(*options)
    out, err = again.communicate(timeout=300)
    assert again.returncode == 0, err
    assert f"{len(finished)} of them finished before" in out
    assert all(path.stat().st_mtime_ns == time for path, time in finished.items())

    Path("sweep").rename("killed")
    whole = spawn(*options)
    out, err = whole.communicate(timeout=300)
    assert whole.returncode == 0, err
    assert runs().keys() == runs("killed").keys() and len(runs()) == 10
    for name, run in runs().items():
        killed = Path("killed") / name
        assert read_metrics(killed) == read_metrics(run)
        weights = (f"checkpoints/last/{WEIGHTS}", "samples.txt")
        assert all((killed / file).read_bytes() == (run / file).read_bytes() for file in weights)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="stops by POSIX signals")
@pytest.mark.parametrize("launcher", ["basic", "processes"])
def test_a_stopped_sweep_saves_its_runs(workdir: Path, launcher: str) -> None:
    options = [f"hydra/launcher={launcher}", "seed=1,2,3", "trainer.max_steps=100000"]
    process = spawn(*options, "trainer.eval_every=null", "trainer.sample_every=null")
    wait_for(lambda: any(last_step(run / "metrics.jsonl") > 20 for run in runs().values()), process)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "interrupted" in out and "waiting" in out
    started = runs().values()
    assert started and all((run / "checkpoints/last" / TRAINING).exists() for run in started)
    statuses = {json.loads((run / "result.json").read_text())["status"] for run in started}
    assert statuses == {"interrupted"}


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="stops by POSIX signals")
def test_a_signal_to_starting_workers_stops_the_sweep(workdir: Path) -> None:
    """As `timeout` and a closed terminal send it: to all processes, also those that still start."""
    process = spawn("hydra/launcher=processes", "hydra.launcher.at_once=2", "seed=1,2,3")
    wait_for(lambda: Path("sweep/sweep.json").exists(), process)
    os.killpg(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "launcher failed" not in out + err


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="kills by POSIX signals")
def test_an_idle_worker_ends_with_its_parent(workdir: Path) -> None:
    program = (
        "import os, time; from minigpt.sweep.job import end_with; end_with(os.getppid()); "
        "print(os.getpid(), flush=True); time.sleep(100)"
    )
    start = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {program!r}])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", start]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline()
        parent.kill()
        killed = time.monotonic()
        assert parent.stdout.read() == ""  # closed once the worker has ended
        assert time.monotonic() - killed < 20


@pytest.mark.slow
def test_two_processes_share_a_sweep(workdir: Path) -> None:
    options = ["seed=1,2,3,4", "trainer.max_steps=200", "trainer.sample_every=null"]
    processes = [spawn(*options) for _ in range(2)]
    outcomes = [(*process.communicate(timeout=300), process.returncode) for process in processes]
    assert all("failed" not in out for out, _, _ in outcomes), outcomes
    statuses = [json.loads((run / "result.json").read_text())["status"] for run in runs().values()]
    assert statuses == ["finished"] * 4
    manifests = [json.loads((run / "manifest.json").read_text()) for run in runs().values()]
    assert all("resumed" not in manifest for manifest in manifests)
