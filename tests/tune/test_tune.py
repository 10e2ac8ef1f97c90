"""Searches with Ray workers: results, files, stopping and resuming."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from minigpt import console
from minigpt.cli import main
from minigpt.tune.session import ray_session
from tests.conftest import TEXT, Cli, inspect_wandb, read_metrics
from tests.train.test_resume import same_end

pytestmark = pytest.mark.slow

BASE = {
    **{"data": "text", "data.path": "text.txt", "trainer.device": "cpu", "trainer.threads": "1"},
    **{"model.n_layer": "1", "model.n_head": "2", "model.n_embd": "16", "model.block_size": "8"},
    **{"trainer.batch_size": "4", "trainer.log_every": "5", "schedule.warmup_steps": "3"},
    **{"trainer.eval_every": "4", "trainer.checkpoint_every": "6", "trainer.sample_every": "null"},
    **{"trainer.sample_tokens": "5", "logger": "none"},
}


def tiny(**changes: object) -> list[str]:
    """Return the overrides of a small run; the argument a__b=1 becomes a.b=1."""
    options = BASE | {key.replace("__", "."): str(value) for key, value in changes.items()}
    return [f"{key}={value}" for key, value in options.items()]


GRID = ["--search", "grid", "--scheduler", "none", "--jobs", "1", "--dir", "search"]
RATES = "optimizer.lr=tag(log,interval(1e-4,1e-1))"


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """Start Ray once for all searches of this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        with ray_session(None, jobs=2, trials=2):
            yield


@dataclass(frozen=True)
class FinishedSearch:
    """The directory, output and report of a finished search."""

    folder: Path
    out: str
    report: dict[str, Any]

    def result(self, name: str) -> dict[str, Any]:
        """Return the result.json of a trial."""
        return json.loads((self.folder / name / "result.json").read_text())


def read_report(folder: Path) -> dict[str, Any]:
    """Return the tune.json of a search."""
    return json.loads((folder / "tune.json").read_text())


@pytest.fixture(scope="module")
def asha_search(
    ray: None, tmp_path_factory: pytest.TempPathFactory, prepared_data: Path
) -> Iterator[FinishedSearch]:
    """Run a search with TPE and ASHA over learning rates and models, logged to W&B."""
    folder = tmp_path_factory.mktemp("asha")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    arguments = tiny(logger="wandb", trainer__max_steps=14, data__fraction=0.5)
    arguments += [
        RATES,
        "model=choice(rope,alibi)",
        "--trials",
        "5",
        "--jobs",
        "2",
        "--dir",
        "search",
    ]
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.chdir(folder)
        patch.setenv("MINIGPT_DATA", str(prepared_data))
        patch.setenv("WANDB_MODE", "offline")
        assert main(["tune", *arguments]) == 0
        search = folder / "search"
        yield FinishedSearch(search, out.getvalue(), read_report(search))


def test_stopped_trials_have_status_stopped(asha_search: FinishedSearch) -> None:
    trials = {trial["name"]: trial for trial in asha_search.report["trials"]}
    assert len(trials) == 5
    statuses = [trial["status"] for trial in trials.values()]
    assert set(statuses) == {"finished", "stopped"}
    for name, trial in trials.items():
        result = asha_search.result(name)
        evaluations = [m for m in read_metrics(asha_search.folder / name) if "val_loss" in m]
        assert result["status"] == trial["status"]
        assert result["steps"] == trial["steps"] == evaluations[-1]["step"]
        assert result["val_loss"] == trial["value"] == evaluations[-1]["val_loss"]
        assert (result["steps"] == 14) == (result["status"] == "finished")
        assert f"{name}: {result['status']} at step {result['steps']} of 14" in asha_search.out


def test_report_counts_the_saved_steps(asha_search: FinishedSearch) -> None:
    saving = asha_search.report["saving"]
    trained = [asha_search.result(trial["name"])["steps"] for trial in asha_search.report["trials"]]
    assert saving["steps_trained"] == sum(trained) < saving["steps_in_full"] == 5 * 14
    assert f"trained {sum(trained)} steps in " in asha_search.out
    assert f"{1 - sum(trained) / 70:.0%} of the steps saved" in asha_search.out


def test_best_config_reproduces_the_best_value(
    asha_search: FinishedSearch, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    best = asha_search.report["best"]
    finished = [t for t in asha_search.report["trials"] if t["status"] == "finished"]
    assert best["value"] == min(trial["value"] for trial in finished)
    again = ["--config-dir", "search", "--config-name", "best", "hydra.run.dir=again"]
    monkeypatch.chdir(asha_search.folder.parent)
    monkeypatch.setattr(sys, "argv", ["minigpt"])
    assert main(["train", *again, "logger=none"]) == 2  # group choices are invalid here
    assert main(["train", *again]) == 0
    assert json.loads(Path("again/result.json").read_text())["val_loss"] == best["value"]
    assert "group: null" in Path("search/best.yaml").read_text()
    assert best_comment(Path("search")).startswith("# All values of this run, as requested.")
    # Trials on a part of the text; then the best config on all of it.
    in_full = [*again[:-1], "hydra.run.dir=full", "data.fraction=1"]
    assert main(["train", *in_full]) == 0
    sizes = [
        json.loads(Path(f"{run}/manifest.json").read_text())["tokens"] for run in ("again", "full")
    ]
    assert sizes[0]["train"] == sizes[1]["train"] // 2 and sizes[0]["val"] == sizes[1]["val"]


def test_trials_can_be_evaluated_sampled_and_resumed(
    asha_search: FinishedSearch, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(asha_search.folder.parent)
    stopped = next(t["name"] for t in asha_search.report["trials"] if t["status"] == "stopped")
    for command in (["eval"], ["sample", "--prompt", "Line"]):
        assert main([command[0], f"search/{stopped}", *command[1:]]) == 0
    whole = shutil.copytree(f"search/{stopped}", "whole")
    assert main(["train", f"resume={whole}"]) == 0  # a stopped trial can be trained to the end
    assert json.loads(Path("whole/result.json").read_text())["status"] == "finished"


def test_trials_share_a_wandb_group(asha_search: FinishedSearch) -> None:
    groups = []
    for trial in asha_search.report["trials"]:
        (file,) = (asha_search.folder / trial["name"]).rglob("*.wandb")
        records = [json.loads(line) for line in inspect_wandb(file).splitlines()]
        groups.append(next(r["run"]["run_group"] for r in records if r["type"] == "run"))
    assert groups == ["search"] * 5


def test_no_files_of_ray_tune_remain(asha_search: FinishedSearch) -> None:
    files = {path.name for path in asha_search.folder.iterdir() if not path.name.startswith("0")}
    assert files == {".lock", "best.yaml", "tune.json"}
    assert not list(asha_search.folder.rglob("*.pkl"))


def test_a_finished_search_does_not_train_again(
    asha_search: FinishedSearch, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(asha_search.folder.parent)
    before = {path: path.stat().st_mtime_ns for path in asha_search.folder.glob("0*/*")}
    command = [*asha_search.report["overrides"], "--trials", "5", "--dir", "search"]
    assert main(["tune", *command]) == 0
    assert {path: path.stat().st_mtime_ns for path in asha_search.folder.glob("0*/*")} == before
    assert read_report(asha_search.folder)["trials"] == asha_search.report["trials"]
    assert main(["tune", *command, "--scheduler", "none"]) == 2
    assert main(["tune", *command[:-4], "seed=7", "--dir", "search"]) == 2
    assert "contains a search with other overrides" in capfd.readouterr().err


@pytest.mark.exhaustive
def test_a_killed_worker_resumes_exactly(
    cli: Cli, ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "SILENCE_SECONDS", 0.3)
    killed: list[int] = []

    def kill() -> None:
        """Kill the worker after a checkpoint."""
        (trial,) = wait_for(lambda: list(Path("search").glob("000*")))
        wait_for(lambda: count_lines(trial / "metrics.jsonl") > 40)
        pid = json.loads((trial / "trial.json").read_text())["pid"]
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    options = tiny(trainer__max_steps=600, trainer__checkpoint_every=10, trainer__sample_every=97)
    done = cli("tune", *options, "optimizer.lr=1e-3,4e-3", *GRID)
    assert done.code == 0, done.err
    assert killed
    assert "worker lost; resumes from the last checkpoint" in done.out
    progress = r"^1 running, at step \d+ of 600  \[\d of 2 trials, about 0:\d\d left\]$"
    assert re.search(progress, done.out, re.MULTILINE)
    (trial,) = Path("search").glob("000*")
    assert len(json.loads((trial / "manifest.json").read_text())["resumed"]) == 1
    assert json.loads((trial / "trial.json").read_text())["pid"] != killed[0]
    assert cli("train", *options, "optimizer.lr=1e-3", "hydra.run.dir=whole").code == 0
    same_end(trial, Path("whole"))


@pytest.mark.exhaustive
def test_a_killed_and_a_stopped_search_resume(cli: Cli, ray: None) -> None:
    """Stop a search by SIGKILL, resume it, stop it by SIGINT, and resume it to the end."""
    options = tiny(trainer__max_steps=1500, trainer__checkpoint_every=50, trainer__eval_every=50)
    command = [sys.executable, "-m", "minigpt.cli", "tune", *options, "optimizer.lr=1e-3,4e-3"]
    command += GRID
    search = Path("search")

    def trials() -> list[Path]:
        return sorted(search.glob("00*"))

    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    wait_for(lambda: trials() and count_lines(trials()[0] / "metrics.jsonl") > 20)
    first.send_signal(signal.SIGKILL)
    first.wait()
    started = (trials()[0] / "manifest.json").read_text()

    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    second = subprocess.Popen(command, **pipes, start_new_session=True)
    wait_for(lambda: len(trials()) == 2 and count_lines(trials()[1] / "metrics.jsonl") > 20)
    finished = (trials()[0] / "result.json").read_text()
    os.killpg(second.pid, signal.SIGINT)  # Ctrl-C in a terminal also signals Ray's processes
    output, errors = second.communicate(timeout=90)
    assert second.returncode == 128 + signal.SIGINT, errors
    assert errors == ""
    assert re.search(r"stopped by SIGINT, trials saved; resume with: minigpt tune .*--dir", output)
    assert json.loads((trials()[1] / "result.json").read_text())["status"] == "interrupted"
    assert read_report(search)["status"] == "interrupted"

    third = cli(*command[3:])  # in this process, with the fixture's Ray
    assert third.code == 0, third.err
    assert "resumed    1 trials have ended, 1 are unfinished" in third.out
    assert (trials()[0] / "result.json").read_text() == finished
    manifest = json.loads((trials()[0] / "manifest.json").read_text())
    assert manifest["started"] == json.loads(started)["started"]
    assert len(manifest["resumed"]) == 1
    statuses = [trial["status"] for trial in read_report(search)["trials"]]
    assert statuses == ["finished"] * 2


def test_a_ray_that_fails_is_one_line(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray raises a plain Exception if one of its processes is killed while it starts."""
    import ray

    def fail(*_: object, **__: object) -> None:
        raise Exception("The current node timed out during startup.\nMore of it.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fail)
    done = cli("tune", *tiny(trainer__max_steps=4), "optimizer.lr=1e-3,4e-3", *GRID)
    assert done.code == 1 and done.err.count("\n") == 1, done.err
    assert "Ray failed to start (The current node timed out during startup.)" in done.err


@pytest.mark.exhaustive
def test_a_search_extended_trial_by_trial_repeats_no_values(cli: Cli, ray: None) -> None:
    options = tiny(trainer__max_steps=4, schedule__warmup_steps=8)
    search = Path("search")
    for trials in (2, 3, 4):
        done = cli(
            "tune", *options, RATES, "--trials", str(trials), "--jobs", "1", "--dir", "search"
        )
        assert done.code == 0, done.err
        assert "1 at a time, 1 thread each" in done.out
        assert "first compares trials at step 4, when the warm-up of 8 steps has not" in done.out
    rates = [trial["values"]["optimizer.lr"] for trial in read_report(search)["trials"]]
    assert len({*rates}) == len(rates) == 4
    workers = [json.loads(file.read_text())["pid"] for file in sorted(search.glob("*/trial.json"))]
    assert workers[0] == workers[1] != workers[2]  # a call starts a worker once


def test_a_search_leaves_the_values_that_diverge(cli: Cli, ray: None) -> None:
    """From a rate of about 20 the loss is not finite."""
    options = tiny(trainer__max_steps=12, schedule__warmup_steps=0)
    options += ["optimizer.lr=tag(log,interval(1e-4,1e5))", "--trials", "18", "--jobs", "1"]
    done = cli("tune", *options, "--dir", "search")
    assert done.code == 0, done.err
    trials = read_report(Path("search"))["trials"]
    failed = [trial["values"]["optimizer.lr"] for trial in trials if trial["status"] == "failed"]
    others = [trial["values"]["optimizer.lr"] for trial in trials if trial["status"] != "failed"]
    assert failed and max(others) < min(failed)
    assert len(failed) < len(others), (failed, others)


def test_trials_stopped_by_patience_count_with_their_best_loss(cli: Cli, ray: None) -> None:
    options = tiny(trainer__max_steps=40, trainer__patience=1, optimizer__grad_clip="null")
    done = cli("tune", *options, "optimizer.lr=0,3", *GRID)
    assert done.code == 0, done.err
    rose = False
    for trial in read_report(Path("search"))["trials"]:
        result = json.loads((Path("search") / trial["name"] / "result.json").read_text())
        assert (result["status"], trial["value"]) == ("finished", result["best_val_loss"])
        assert result["steps"] < 40
        ended = f"at step {result['steps']} of 40, val_loss {result['best_val_loss']:.4f} "
        assert f"{trial['name']}: finished {ended}" in done.out
        rose |= result["best_val_loss"] < result["val_loss"]
    assert rose, "no loss rose, so the test is vacuous"


@pytest.mark.exhaustive
def test_hyperband_stops_in_rounds(cli: Cli, ray: None) -> None:
    options = ["--scheduler", "hyperband", "--trials", "6", "--jobs", "2", "--dir", "search"]
    done = cli("tune", *tiny(trainer__max_steps=12), RATES, *options)
    assert done.code == 0, done.err
    report = read_report(Path("search"))
    statuses = {trial["status"] for trial in report["trials"]}
    assert len(report["trials"]) == 6 and statuses == {"finished", "stopped"}
    values = [trial["value"] for trial in report["trials"] if trial["status"] == "finished"]
    assert report["best"]["value"] == min(values)


@pytest.mark.exhaustive
def test_population_based_training_copies_better_trials(cli: Cli, ray: None) -> None:
    # With one worker, trials take turns, and which one is copied depends only on the seed.
    steps = {"trainer__max_steps": 30, "trainer__eval_every": 10, "trainer__log_every": 1}
    arguments = tiny(**steps, trainer__checkpoint_every=10, schedule__warmup_steps=0)
    arguments += [
        "schedule=constant",
        "optimizer.lr=interval(1e-5,1e-1)",
        "optimizer.weight_decay=0.1,0.3",
    ]
    arguments += ["--scheduler", "pbt", "--trials", "2", "--jobs", "1"]
    done = cli("tune", *arguments, "--seed", "2", "--dir", "search")
    assert done.code == 0, done.err
    trials = read_report(Path("search"))["trials"]
    copies = [trial for trial in trials if trial["adopted"]]
    assert [trial["status"] for trial in trials] == ["finished"] * 2
    assert copies
    for trial in copies:
        run = Path("search") / trial["name"]
        donor = Path("search") / trial["adopted"][-1]["run"]
        copy_step = trial["adopted"][-1]["step"]
        metrics = read_metrics(run)
        evaluated = [m["step"] for m in metrics if "val_loss" in m]
        assert evaluated == [10, 20, 30]
        if not json.loads((donor / "trial.json").read_text()).get("adopted"):
            shared = [m for m in read_metrics(donor) if m["step"] <= copy_step]
            assert metrics[: len(shared)] == shared
        config = (run / "config.yaml").read_text()
        for key, value in trial["adopted"][-1]["values"].items():
            assert f"{key.partition('.')[2]}: {value}" in config
        assert trial["adopted"][-1]["values"] == trial["values"]
        rates = [m["lr"] for m in metrics if "lr" in m and m["step"] > copy_step]
        assert max(rates) <= trial["values"]["optimizer.lr"]
    for trial in trials:
        assert trial["schedule"][-1]["values"] == trial["values"]
        assert_trained_with(trial["schedule"], Path("search") / trial["name"])
    best = read_report(Path("search"))["best"]
    assert best["adopted"], "the best trial kept its values, so the test is vacuous"
    comment = best_comment(Path("search"))
    assert f"# This config does not reproduce {best['name']}: it has the last values" in comment
    for part in best["schedule"]:
        values = " ".join(f"{key}={value}" for key, value in part["values"].items())
        assert f"#   from step {part['step']}: {values}\n" in comment
    again = ["--config-dir", "search", "--config-name", "best", "hydra.run.dir=again"]
    assert cli("train", *again).code == 0


def assert_trained_with(schedule: list[dict[str, Any]], run: Path) -> None:
    """Compare the logged learning rates, which have no warm-up or decay, with a schedule."""
    for line in (line for line in read_metrics(run) if "lr" in line):
        (*_, part) = (part for part in schedule if part["step"] < line["step"])
        assert line["lr"] == part["values"]["optimizer.lr"]


def best_comment(folder: Path) -> str:
    """Return the first lines of best.yaml, which are comments."""
    lines = (folder / "best.yaml").read_text().splitlines(keepends=True)
    return "".join(itertools.takewhile(lambda line: line.startswith("#"), lines))


def wait_for(condition: Any, seconds: float = 180) -> Any:
    """Wait until condition() is true; return its value."""
    started = time.monotonic()
    while not (value := condition()):
        assert time.monotonic() - started < seconds
        time.sleep(0.05)
    return value


def count_lines(path: Path) -> int:
    """Return the number of lines of a file, 0 if it does not exist."""
    return path.read_bytes().count(b"\n") if path.exists() else 0
