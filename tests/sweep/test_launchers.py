"""Hydra's launchers, and GPUs shared by their jobs."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from minigpt.extras import install
from minigpt.sweep.job import leased, leased_gpus
from tests.conftest import TINY, Cli, read_metrics
from tests.sweep.helpers import HERE, runs, spawn

SUBMITIT = pytest.param("submitit_local", marks=pytest.mark.exhaustive)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["processes", "joblib", SUBMITIT, "ray"])
def test_launchers_run_all_jobs(workdir: Path, launcher: str) -> None:
    process = spawn(f"hydra/launcher={launcher}", "seed=1,2", "optimizer.lr=1e-3,1e30")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1, err
    assert "2 finished, 2 failed" in out and "2 of 4 jobs failed" in err
    config = OmegaConf.load(runs()["seed=1_lr=0.001"] / "config.yaml")
    assert config.trainer.threads == 1
    assert "Traceback" in Path("sweep/seed=1_lr=1e+30/output.log").read_text()


def test_a_job_equals_a_single_run(cli: Cli) -> None:
    assert cli("train", *TINY, "seed=2", "hydra.run.dir=single").code == 0
    assert cli("train", "-m", *TINY, "seed=1,2", HERE).code == 0
    assert read_metrics(Path("single")) == read_metrics(Path("sweep/seed=2"))


def test_a_missing_launcher_names_the_extra(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from hydra.core.config_store import ConfigStore

    monkeypatch.delitem(ConfigStore.instance().repo["hydra"]["launcher"], "ray.yaml")
    outcome = cli("train", "-m", *TINY, "seed=1,2", "hydra/launcher=ray")
    assert outcome.code == 2
    assert f"hydra/launcher=ray: not installed; {install('ray')}" in outcome.err


def test_leases_are_exclusive(tmp_path: Path) -> None:
    leases: list[int] = []
    release = threading.Semaphore(0)

    def work() -> None:
        with leased(["a", "b"], tmp_path) as index:
            leases.append(index)
            release.acquire()
            leases.remove(index)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 10
    while len(leases) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sorted(leases) == [0, 1]
    for _ in threads:
        release.release()
    for thread in threads:
        thread.join(timeout=10)
    assert leases == []


def test_a_job_of_several_processes_has_gpus_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine that says it has five GPUs."""
    used: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 5)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: SimpleNamespace(uuid=i))
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "all")
    with leased_gpus(1), leased_gpus(2):
        assert used == [0] and os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-1,GPU-2"
        with leased_gpus(2):
            assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-3,GPU-4"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "all"
