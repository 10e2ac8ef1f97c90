"""Sweeps: what they run, skip, resume, list and leave when they are killed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from minigpt.config.hydra_main import config_directory, file_name
from minigpt.model.attention import ATTENTION
from minigpt.model.ffn import FFN
from minigpt.model.norm import PLACEMENTS
from minigpt.model.positional import POSITIONAL
from minigpt.sweep.job import leased
from minigpt.sweep.plan import labels
from minigpt.sweep.watch import last_step
from minigpt.train.state import TRAINING, WEIGHTS
from tests.conftest import TINY, Cli, read_metrics

HERE = "hydra.sweep.dir=sweep"
PRESETS = {
    "positional": set(POSITIONAL.names()),
    "attention": set(ATTENTION.names()),
    "ffn": set(FFN.names()),
    "norm": set(PLACEMENTS),
    "tokenizer": {"char", "gpt2", "bpe"},
}


def runs(folder: str = "sweep") -> dict[str, Path]:
    """The runs of a sweep by name."""
    return {path.parent.name: path.parent for path in Path(folder).glob("*/config.yaml")}


def spawn(*arguments: str) -> subprocess.Popen[str]:
    """A sweep in a process of its own, the leader of its group."""
    command = [sys.executable, "-m", "minigpt.cli", "train", "-m", *TINY, HERE, *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def wait_for(ready: object, process: subprocess.Popen[str]) -> None:
    """Wait until a function says True; fails where the process ends before."""
    assert callable(ready)
    while not ready():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def test_the_same_command_runs_what_is_missing(cli: Cli) -> None:
    command = ["train", "-m", *TINY, "seed=1,2", "trainer.max_steps=2"]
    first = cli(*command)
    assert first.code == 0, first.err
    (folder,) = Path("runs").glob("*_sweep_seed_*")
    made = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    again = cli(*command)
    assert again.code == 0 and "2 of them finished before" in again.out and "2 skipped" in again.out
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert {path for path in made if made[path] != after[path]} == {folder / "sweep.json"}

    more = cli(
        "train", "-m", *TINY, "seed=1,2,3", "trainer.max_steps=2", f"hydra.sweep.dir={folder}"
    )
    assert more.code == 0 and "1 finished" in more.out and "2 skipped" in more.out
    listed = json.loads((folder / "sweep.json").read_text())["jobs"]
    assert [job["path"] for job in listed] == ["seed=1", "seed=2", "seed=3"]


def test_another_config_another_text_or_other_code_is_another_run(
    cli: Cli, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sweep(*changes: str) -> str:
        options = ["seed=1,2", "trainer.max_steps=2", HERE, *changes]
        outcome = cli("train", "-m", *TINY, *options)
        assert outcome.code == 0, outcome.err
        return outcome.out

    sweep()
    assert "2 skipped" in sweep("logger.name=none", "tags=[a]", "trainer.threads=1")
    assert "2 finished" in sweep("optimizer.lr=1e-3")
    assert set(runs()) == {"seed=1", "seed=2", "seed=1_2", "seed=2_2"}
    with (workdir / "text.txt").open("a", encoding="utf-8") as file:
        file.write("More of it.\n")
    assert "2 finished" in sweep()
    manifest = runs()["seed=1_3"] / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"code_sha256": "', '"code_sha256": "0'))
    assert "1 finished, 1 skipped" in sweep() and "seed=1_4" in runs()


def test_a_failing_job_is_told_and_the_others_finish(cli: Cli) -> None:
    outcome = cli("train", "-m", *TINY, "model.n_head=2,3,4", "trainer.max_steps=2", HERE)
    assert outcome.code == 1
    assert "1 of 3 jobs failed" in outcome.err and outcome.err.count("\n") == 1
    said = [line for line in outcome.out.splitlines() if "n_head=3  failed: model.n_head=3" in line]
    assert (
        len(said) == 1
        and "must divide model.n_embd=16" in said[0]
        and "(log: sweep/n_head=3/output.log)" in said[0]
    )
    assert "2 finished, 1 failed" in outcome.out
    log = Path("sweep/n_head=3/output.log").read_text()
    assert "Traceback" in log and "must divide model.n_embd=16" in log
    result = json.loads(Path("sweep/n_head=3/result.json").read_text())
    assert result["status"] == "failed" and "must divide" in result["error"]
    finished = [json.loads((run / "result.json").read_text()) for run in runs().values()]
    assert [result["status"] for result in finished] == ["finished", "finished"]


def test_fail_fast_ends_a_sweep(cli: Cli) -> None:
    options = ["optimizer.lr=1e30,1e-3", "trainer.max_steps=9", "sweep.fail_fast=true", HERE]
    outcome = cli("train", "-m", *TINY, *options)
    assert outcome.code == 1
    assert "1 failed, 1 waiting" in outcome.out and "1 of 2 jobs failed" in outcome.err
    assert set(runs()) == {"lr=1e+30"}
    assert not list(Path("sweep").glob(".stop*"))


def test_a_config_that_is_none_stops_a_sweep_before_it_begins(cli: Cli, workdir: Path) -> None:
    before = sorted(workdir.rglob("*"))
    for options, message in (
        (["optimizer.lr=-1,-2"], "optimizer.lr=-1.0: must be 0 or more"),
        (["optimizer.lr=1,-2", "sweep.fail_fast=true"], "optimizer.lr=-2.0: must be 0 or more"),
        (["seed=1,2", "sweep.match=flop"], "sweep.match=flop: not one of steps"),
        (["seed=1,2", "sweep.fail_fast=perhaps"], "sweep.fail_fast=perhaps: "),
        (["trainer.max_steps=1,2", "sweep.match=flops"], "sweep.match=flops: sets trainer.max_st"),
        (["seed=1,2", "resume=latest"], "resume=latest: resumes one run; leave -m out"),
        (["seed=1,2", "hydra/launcher=slurm"], "hydra/launcher=slurm: no such hydra/launcher"),
        (["seed=1,2", "hydra/sweeper=basic"], "hydra/sweeper=basic: another sweeper knows no"),
    ):
        outcome = cli("train", "-m", *TINY, *options)
        assert outcome.code == 2 and message in outcome.err, outcome.err
        assert outcome.err.count("\n") == 1
    assert "sweep=norm: belongs to a sweep; add -m" in cli("train", *TINY, "sweep=norm").err
    assert sorted(workdir.rglob("*")) == before


@pytest.mark.parametrize("preset", PRESETS)
def test_presets(cli: Cli, preset: str) -> None:
    outcome = cli("train", "-m", f"sweep={preset}", *TINY, "trainer.max_steps=2", "seed=1", HERE)
    assert outcome.code == 0, outcome.out
    assert {name.partition("=")[2] for name in runs()} == PRESETS[preset]
    config = OmegaConf.load(next(iter(runs().values())) / "config.yaml")
    assert config.tags == [preset] and config.group == "sweep"
    params = OmegaConf.load(config_directory() / "sweep" / f"{preset}.yaml").hydra.sweeper.params
    assert params.seed == "1,2,3,4,5"


def test_labels() -> None:
    assert labels([["a=1", "b.c=x/y"], ["a=2", "b.c=x/y"]]) == ["a=1", "a=2"]
    assert labels([["b.lr=1", "c.lr=1"], ["b.lr=2", "c.lr=2"]]) == [
        "b.lr=1_c.lr=1",
        "b.lr=2_c.lr=2",
    ]
    assert labels([["model=rope"]]) == ["model=rope"]
    assert labels([["data.path=x/a"], ["data.path=x?a"]]) == ["path=x_a", "path=x_a"]


def test_jobs_of_one_label_are_two_runs(cli: Cli, workdir: Path) -> None:
    prompts = "trainer.sample_prompt='a?','a*'"
    text = (workdir / "text.txt").read_text() + "?*"
    (workdir / "text.txt").write_text(text * 2)
    outcome = cli("train", "-m", *TINY, prompts, "trainer.max_steps=1", HERE)
    assert outcome.code == 0, outcome.out
    assert set(runs()) == {"sample_prompt=_a", "sample_prompt=_a_2"}
    assert "2 skipped" in cli("train", "-m", *TINY, prompts, "trainer.max_steps=1", HERE).out


@pytest.mark.skipif(os.name == "nt", reason="kills by POSIX signals")
def test_a_killed_sweep_goes_on(workdir: Path) -> None:
    options = ["seed=1,2,3,4,5", "optimizer.lr=1e-3,1e-2", "trainer.max_steps=60"]
    process = spawn(*options)
    wait_for(lambda: len(list(Path("sweep").glob("*/result.json"))) >= 4, process)
    wait_for(lambda: len(runs()) > len(list(Path("sweep").glob("*/result.json"))), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = {path: path.stat().st_mtime_ns for path in Path("sweep").glob("*/result.json")}
    assert 4 <= len(done) < 10

    again = spawn(*options)
    out, err = again.communicate(timeout=300)
    assert again.returncode == 0, err
    assert f"{len(done)} of them finished before" in out
    assert all(path.stat().st_mtime_ns == then for path, then in done.items())

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
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_stopped_sweep_saves_its_runs(workdir: Path, launcher: str) -> None:
    many = [f"hydra/launcher={launcher}", "seed=1,2,3", "trainer.max_steps=100000"]
    process = spawn(*many, "trainer.eval_every=null", "trainer.sample_every=null")
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
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "ray"])
def test_launchers(workdir: Path, launcher: str) -> None:
    process = spawn(f"hydra/launcher={launcher}", "seed=1,2", "optimizer.lr=1e-3,1e30")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1, err
    assert "2 finished, 2 failed" in out and "2 of 4 jobs failed" in err
    config = OmegaConf.load(runs()["seed=1_lr=0.001"] / "config.yaml")
    assert config.trainer.threads == 1
    assert "Traceback" in Path("sweep/seed=1_lr=1e+30/output.log").read_text()


def test_what_a_launcher_computes_is_what_a_lone_run_computes(cli: Cli) -> None:
    assert cli("train", *TINY, "seed=2", "hydra.run.dir=alone").code == 0
    assert cli("train", "-m", *TINY, "seed=1,2", HERE).code == 0
    assert read_metrics(Path("alone")) == read_metrics(Path("sweep/seed=2"))


def second_width() -> int:
    config = OmegaConf.load("sweep/n_layer=3_batch_size=8/config.yaml")
    return int(config.model.n_embd)


@pytest.mark.parametrize("match", ["steps", "tokens", "parameters", "flops"])
def test_equal_work(cli: Cli, match: str) -> None:
    """Of two sizes that differ much in each quantity."""
    options = ["trainer.batch_size=4,8", "model.n_layer=1,3", f"sweep.match={match}", HERE]
    assert cli("train", "-m", *TINY, *options, "model.n_embd=32").code == 0
    first, second = (
        json.loads(Path(f"sweep/n_layer={n}_batch_size={b}/result.json").read_text())
        for b, n in ((4, 1), (8, 3))
    )
    manifest = json.loads(Path("sweep/n_layer=3_batch_size=8/manifest.json").read_text())
    assert manifest["match"]["what"] == match
    parameters = [result["parameters"]["total"] for result in (first, second)]
    tokens = [first["steps"] * 4 * 8, second["steps"] * 8 * 8]
    flops = [
        n * result["flops_per_token"] for n, result in zip(tokens, (first, second), strict=True)
    ]
    amounts = {"steps": [first["steps"], second["steps"]], "parameters": parameters}
    amounts |= {"tokens": tokens, "flops": flops}
    one, other = amounts[match]
    assert [one, other] == manifest["match"]["amount"]
    assert abs(one - other) <= {"flops": 0.1, "parameters": 0.1}.get(match, 0) * one
    changed = {
        "steps": {},
        "tokens": {"trainer.max_steps": [12, 6]},
        "flops": {"trainer.max_steps": [12, second["steps"]]},
        "parameters": {"model.n_embd": [32, second_width()]},
    }
    assert manifest["match"]["changed"] == changed[match]
    assert second["steps"] < 6 if match == "flops" else second_width() <= 32
    assert (second_width() < 32) == (match == "parameters")


def test_leases_are_of_one_each(tmp_path: Path) -> None:
    held: list[int] = []
    most = threading.Semaphore(0)

    def work() -> None:
        with leased(["a", "b"], tmp_path) as index:
            held.append(index)
            most.acquire()
            held.remove(index)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 10
    while len(held) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sorted(held) == [0, 1]
    for _ in threads:
        most.release()
    for thread in threads:
        thread.join(timeout=10)
    assert held == []


def test_last_step_of_a_file_that_is_being_written(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    assert last_step(file) == 0
    file.write_text('{"step": 1}\n{"step": 2, "x": ' + "1" * 9999)
    assert last_step(file) in (0, 1)
    file.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert last_step(file) == 2


def test_the_folder_of_a_sweep_says_what_varies(cli: Cli) -> None:
    assert cli("train", "-m", *TINY, "trainer.max_steps=1", "norm=pre,post").code == 0
    assert cli("train", "-m", "sweep=norm", *TINY, "trainer.max_steps=1", "seed=1").code == 0
    names = sorted(path.name for path in Path("runs").iterdir())
    assert [re.sub(r"^\S{19}_|_\w{6}$", "", name) for name in names] == ["sweep_norm", "sweep_norm"]


def test_the_folder_of_a_sweep_depends_on_the_root_config(cli: Cli) -> None:
    first = cli("train", *TINY, "trainer.max_steps=1", "hydra.run.dir=first")
    assert first.code == 0, first.err
    for name in ("one", "two"):
        shutil.copy("first/config.yaml", f"{name}.yaml")
        again = cli("train", "-m", "--config-dir", ".", "--config-name", name, "seed=1,2")
        assert again.code == 0 and "2 finished" in again.out, again.err
    assert len([*Path("runs").iterdir()]) == 2


def test_a_name_of_a_file_is_no_longer_than_file_systems_take() -> None:
    assert len(file_name("\u4e16" * 300).encode()) <= 255
    assert file_name("a/b " * 50) == file_name(file_name("a/b " * 50))


def test_a_launcher_that_is_not_installed(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from hydra.core.config_store import ConfigStore

    monkeypatch.delitem(ConfigStore.instance().repo["hydra"]["launcher"], "joblib.yaml")
    outcome = cli("train", "-m", *TINY, "seed=1,2", "hydra/launcher=joblib")
    assert outcome.code == 2
    assert "hydra/launcher=joblib: not installed; pip install 'minigpt[joblib]'" in outcome.err


@pytest.mark.slow
def test_two_processes_share_a_sweep(workdir: Path) -> None:
    options = ["seed=1,2,3,4", "trainer.max_steps=200", "trainer.sample_every=null"]
    both = [spawn(*options) for _ in range(2)]
    ended = [(*process.communicate(timeout=300), process.returncode) for process in both]
    assert all("failed" not in out for out, _, _ in ended), ended
    statuses = [json.loads((run / "result.json").read_text())["status"] for run in runs().values()]
    assert statuses == ["finished"] * 4
    manifests = [json.loads((run / "manifest.json").read_text()) for run in runs().values()]
    assert all("resumed" not in manifest for manifest in manifests)


def test_a_job_that_fails_again_says_so_again(cli: Cli) -> None:
    command = ["train", "-m", *TINY, "optimizer.lr=1e30,1e-3", "trainer.max_steps=4", HERE]
    assert "1 finished, 1 failed" in cli(*command).out.replace(
        "1 failed, 1 finished", "1 finished, 1 failed"
    )
    again = cli(*command)
    assert again.code == 1 and "lr=1e+30  failed: loss" in again.out and "1 skipped" in again.out


@pytest.mark.parametrize(
    ("broken", "is_object"),
    [
        ("", False),
        ("[]", False),
        ("{}", True),
        ('{"jobs": 3}', True),
        ('{"jobs": [{"a": 1}]}', True),
    ],
)
def test_broken_files_of_a_sweep(cli: Cli, broken: str, is_object: bool) -> None:
    command = ["train", "-m", *TINY, "seed=1,2", "trainer.max_steps=2", HERE]
    assert cli(*command).code == 0
    Path("sweep/sweep.json").write_text(broken)
    listed = cli(*command)
    assert listed.code == (0 if is_object else 2), listed.err
    assert is_object or "sweep.json: broken JSON" in listed.err
    Path("sweep/sweep.json").unlink()
    Path("sweep/seed=1/result.json").write_text(broken)
    outcome = cli(*command)
    assert outcome.code == (0 if is_object else 1), outcome.out
    assert is_object or "seed=1  failed: sweep/seed=1/result.json: broken" in outcome.out.replace(
        f"{Path.cwd()}/", ""
    )


@pytest.mark.parametrize("choices", ["sweep=norm,ffn", "experiment=claims/common,claims/norm"])
def test_presets_among_others_are_refused(cli: Cli, choices: str) -> None:
    refused = cli("train", "-m", choices, *TINY, "seed=1", "sweep.fail_fast=true")
    assert refused.code == 2 and "name one preset or experiment a command" in refused.err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("hydra.sweep.dir=text.txt", "hydra.sweep.dir=text.txt: is a file; name a folder"),
        ("hydra.launcher.n_jobs=0", "hydra.launcher.n_jobs=0: needs 1 or more"),
        ("data.path=nowhere.txt", "nowhere.txt: no such file"),
    ],
)
def test_what_is_wrong_with_all_jobs_is_told_at_once(cli: Cli, option: str, message: str) -> None:
    launcher = ["hydra/launcher=joblib"] if "launcher" in option else []
    refused = cli("train", "-m", *TINY, "seed=1,2", *launcher, option)
    assert refused.code == 2 and message in refused.err, refused.err
    assert refused.err.count("\n") == 1 and not Path("runs").exists()


def test_tokenizers_are_listed_in_bits_a_byte(cli: Cli) -> None:
    name = "n" * 60
    options = ["tokenizer=char,gpt2", f"name={name}", "trainer.max_steps=1", HERE]
    done = cli("train", "-m", *TINY, *options)
    assert done.code == 0, done.err
    assert "val loss, bits/byte" in done.out and "val loss, nats" not in done.out
    assert "tokenizer=char " in done.out and "tokenizer=gpt2 " in done.out
