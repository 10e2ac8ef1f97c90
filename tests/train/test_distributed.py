"""One run on several processes: equal to one process, resumed by others, and ended together."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from minigpt.config.compose import composed_config
from minigpt.errors import Failure, UserError
from minigpt.run.directory import RunDirectory
from minigpt.train import launch
from minigpt.train.control import Interrupted
from minigpt.train.launch import error_of
from tests.conftest import TEXT, Cli

REPOSITORY = Path(__file__).parents[2]
RUN = [
    *("logger=none", "data=text", "data.path=text.txt", "model.n_layer=2", "model.n_head=2"),
    *("model.n_embd=16", "model.block_size=8", "trainer.batch_size=12", "trainer.max_steps=30"),
    *("trainer.log_every=1", "trainer.eval_every=10", "trainer.checkpoint_every=10"),
    *("trainer.sample_every=15", "trainer.sample_tokens=5", "trainer.device=cpu"),
    *("trainer.threads=1", "trainer.precision=fp32", "schedule=constant"),
    "schedule.warmup_steps=3",
]
# Each is equal to one process in every mode, up to rounding.
DESIGNS = {
    "plain": [],
    "accumulated": ["trainer.grad_accum_steps=3"],
    "uneven": ["trainer.batch_size=13"],
    "muon": ["optimizer=muon", "optimizer.lr=0.01"],
    "clipped": ["optimizer.grad_clip=0.1"],
    "average": ["optimizer.ema=0.9"],
    "epochs": ["data.order=epochs"],
    "documents": ["data.document_separator='\\n'", "model.block_size=16"],
    "shards": ["data=shards", "data.path=shards"],
    "experts": ["ffn=moe", "trainer.grad_accum_steps=2"],
    "values": ["model.value_residual=first_layer", "embedding=untied"],
    "biases": ["model=t5"],
    "bigram": ["model=bigram", "model.n_layer=0"],
    "prefix": ["objective=prefix", "trainer.batch_size=13"],
    "masked": ["objective=masked", "trainer.grad_accum_steps=3"],
    "denoise": ["objective=denoise", "positional=t5", "optimizer=muon"],
}
AVERAGE = ["optimizer=muon", "optimizer.ema=0.9"]
DROPOUT = [*AVERAGE, "model.dropout=0.1"]
# By name: overrides of runs to resume. Those of 20 steps are stopped.
RESUMED = {
    "full": DROPOUT,
    "half": [*DROPOUT, "trainer.max_steps=20"],
    "whole": AVERAGE,
    "stopped": [*AVERAGE, "trainer.max_steps=20"],
}
RESUME = ["full", "half", "stopped"]
SOME = ["prefix", "uneven", "muon", "experts", "denoise"]
Ways = dict[tuple[int | None, str], list[str]]
# The runs in each number of processes and mode: some, and all.
WAYS: Ways = {
    (None, "none"): [*SOME, "whole", "stopped"],
    (2, "ddp"): [*SOME, *RESUME],
    (2, "fsdp"): [*SOME, *RESUME],
    (3, "fsdp"): ["stopped"],
}
ALL_WAYS: Ways = {
    (None, "none"): [*DESIGNS],
    (2, "ddp"): [*DESIGNS],
    (2, "fsdp"): [*DESIGNS],
    (3, "ddp"): [*DESIGNS],
    (3, "fsdp"): [*DESIGNS],
    (4, "ddp"): ["plain", "accumulated"],
}
MEASURED = ("train_loss", "grad_norm", "val_loss")


def python(*arguments: str, ranks: int | None = None, restarts: int = 0) -> list[str]:
    """Return the command that runs a Python module, with torchrun in several processes."""
    started = [sys.executable]
    if ranks is not None:
        started += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        started += [f"--max-restarts={restarts}"]
    return [*started, "-m", *arguments]


def completed(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder."""
    env = environment()
    return subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False
    )


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    # How long the agent of torchrun waits for a process that hangs, before it kills it.
    soon = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "5"}
    return {**os.environ, **soon, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def in_ranks(folder: Path, commands: Sequence[Sequence[str]], ranks: int | None) -> None:
    """Run minigpt commands in float64, in one process or in several."""
    file = folder / f"commands_{ranks}.json"
    file.write_text(json.dumps(commands), encoding="utf-8")
    done = completed(python("tests.train.commands_in_ranks", str(file), ranks=ranks), folder)
    assert done.returncode == 0, done.stderr


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def differences(one: Path, other: Path) -> dict[str, float]:
    """Return the largest difference of each measured number of two runs."""
    pairs = list(zip(metrics(one), metrics(other), strict=True))
    assert all(a.keys() == b.keys() for a, b in pairs)
    return {
        key: max(abs(a[key] - b[key]) for a, b in pairs if key in a)
        for key in {*MEASURED, *(k for a, _ in pairs for k in a if k.startswith("expert_usage"))}
    }


def train_ways(folder: Path, ways: Ways) -> None:
    """Train the runs of some ways in a folder."""
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    prepared = ["data", "--shards", "shards", "data=text", "data.path=text.txt"]
    commands: dict[int | None, list[list[str]]] = {None: [prepared]}
    for (ranks, mode), names in ways.items():
        parallel = [] if ranks is None else [f"trainer.parallel={mode}"]
        for name in names:
            at = f"hydra.run.dir={mode}{ranks or ''}/{name}"
            own = (DESIGNS | RESUMED)[name]
            commands.setdefault(ranks, []).append(["train", *RUN, *parallel, *own, at])
    for ranks, each in commands.items():
        in_ranks(folder, each, ranks)


def require_equal(folder: Path, ways: Ways) -> None:
    """Check that runs in several processes are equal to those in one."""
    for (ranks, mode), names in ways.items():
        for name in (name for name in names if ranks is not None and name in DESIGNS):
            run = folder / f"{mode}{ranks}" / name
            found = differences(folder / "none" / name, run)
            assert found.keys() >= {*MEASURED} and max(found.values()) < 1e-9, (run, found)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of WAYS."""
    folder = tmp_path_factory.mktemp("ranks")
    train_ways(folder, WAYS)
    return folder


@pytest.mark.slow
def test_several_processes_train_as_one(runs: Path) -> None:
    require_equal(runs, WAYS)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_every_design_trains_as_one_in_every_mode(tmp_path: Path) -> None:
    train_ways(tmp_path, ALL_WAYS)
    require_equal(tmp_path, ALL_WAYS)


def resumed(folder: Path, ranks: int | None, moves: Sequence[tuple[str, str]], mode: str) -> None:
    """Resume copies of runs, given as (from, to), in a number of processes to step 30."""
    commands = []
    for source, target in moves:
        shutil.copytree(folder / source, folder / target)
        own = ["trainer.max_steps=30", f"trainer.parallel={mode}"]
        commands.append(["train", f"resume={target}", *own])
    in_ranks(folder, commands, ranks)


def weights_are_equal(one: Path, other: Path) -> bool:
    files = [path / "checkpoints" / "last" / "model.safetensors" for path in (one, other)]
    return filecmp.cmp(*files, shallow=False)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_a_resumed_run_is_bit_equal(runs: Path, mode: str) -> None:
    """Dropout too: each process goes on with its own random numbers."""
    resumed(runs, 2, [(f"{mode}2/half", f"again/{mode}")], mode)
    full, again = runs / f"{mode}2" / "full", runs / "again" / mode
    assert weights_are_equal(full, again)
    assert max(differences(full, again).values()) == 0.0
    state = torch.load(full / "checkpoints" / "last" / "training.pt", weights_only=True)
    assert not torch.equal(state["random"]["cpu"], state["random_of_others"][0]["cpu"])


@pytest.mark.slow
def test_another_number_of_processes_resumes(runs: Path) -> None:
    """2 to 3, 3 to 2, 2 to 1, 1 to 2, and ddp to fsdp. Dropout masks differ, so it is off."""
    moves: dict[tuple[int | None, str], list[tuple[str, str]]] = {
        (3, "fsdp"): [("ddp2/stopped", "moved/2_to_3")],
        (2, "ddp"): [("fsdp3/stopped", "moved/3_to_2"), ("none/stopped", "moved/1_to_2")],
        (None, "none"): [("fsdp2/stopped", "moved/2_to_1")],
    }
    for (ranks, mode), each in moves.items():
        resumed(runs, ranks, each, mode)
        for _, target in each:
            found = differences(runs / "none" / "whole", runs / target)
            assert max(found.values()) < 1e-9, (target, found)


# ---- starting, stopping and failing ----


@contextmanager
def training(
    folder: Path, command: Sequence[str], step: int | None, run: str = "run"
) -> Iterator[subprocess.Popen[str]]:
    """Start a command; the block begins once its run has reached a step.

    None: once its two ranks have been started.
    """
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment(),
        start_new_session=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + 120
        log = folder / run / "metrics.jsonl"
        while not (
            len(rank_pids(process.pid)) == 2
            if step is None
            else log.exists() and len(log.read_text().splitlines()) >= step
        ):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "the run does not begin"
            time.sleep(0.05)
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def rank_pids(parent: int) -> list[int]:
    """Return the ranks that a process has started, in order."""
    children = [
        int(child)
        for task in Path(f"/proc/{parent}/task").glob("*/children")
        for child in task.read_text().split()
        if any(word in Path(f"/proc/{child}/cmdline").read_bytes() for word in RANKS)
    ]
    return sorted(children)


RANKS = (b"multiprocessing.spawn", b"minigpt")  # in the command of a rank: of ours, of torchrun's
LONG = [*RUN, "trainer.max_steps=100000", "trainer.eval_every=null", "trainer.sample_every=null"]
TWO = ["trainer.parallel=ddp", "trainer.processes=2"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_is_named(folder: Path) -> None:
    command = python("minigpt", "train", *LONG, *TWO, "hydra.run.dir=run")
    with training(folder, command, 15) as process:
        os.kill(rank_pids(process.pid)[1], signal.SIGKILL)
        killed = time.monotonic()
        _, errors = process.communicate(timeout=60)
    assert time.monotonic() - killed < 20
    assert process.returncode == 1
    assert errors == (
        "minigpt: rank 1 was killed by SIGKILL, and the other ranks have stopped; continue with "
        "minigpt train resume=run\n"
    )


def test_a_rank_that_has_ended_prints_no_interruption(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch sends SIGINT to the ranks when the process that started them is killed."""
    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(launch, "train_run", lambda *_, **__: None)
    try:
        config = composed_config(RUN)
        launch._train_rank(config, RunDirectory(Path("run")), False, [], 1, None, None)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, handler)


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGUSR1, marks=pytest.mark.exhaustive)]
)
def test_an_interruption_saves_once_and_the_run_continues(
    folder: Path, number: signal.Signals
) -> None:
    """SIGINT as a terminal sends it, to all processes; SLURM sends SIGUSR1 to the parent."""
    command = python("minigpt", "train", *LONG, *TWO, "hydra.run.dir=run")
    with training(folder, command, 5) as process:
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        out, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number and errors == "" and out.count("resume=run") == 1
    result = json.loads((folder / "run" / "result.json").read_text())
    assert result["status"] == "interrupted" and result["steps"] >= 5
    more = [f"trainer.max_steps={result['steps'] + 3}", "trainer.parallel=fsdp"]
    done = completed(python("minigpt", "train", "resume=run", *more), folder)
    assert done.returncode == 0 and f"resumed at step {result['steps']}" in done.stdout
    assert "with trainer.parallel=fsdp (was ddp): results equal" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("after", [pytest.param(0.2, marks=pytest.mark.exhaustive), 1.0])
def test_an_interruption_while_ranks_start_prints_nothing(folder: Path, after: float) -> None:
    command = python("minigpt", "train", *LONG, *TWO, "hydra.run.dir=run")
    with training(folder, command, None) as process:
        time.sleep(after)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT and errors == ""


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_written_at_a_signal_is_one_line(folder: Path) -> None:
    command = python("minigpt", "train", *LONG, *TWO, "hydra.run.dir=run")
    with training(folder, [*command, "trainer.checkpoint_every=null"], 5) as process:
        (folder / "run" / "checkpoints").write_text("a file")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and len(errors.splitlines()) == 1
    assert errors.startswith("minigpt: run/checkpoints"), errors


@pytest.mark.slow
def test_ranks_save_and_end_when_torchrun_is_killed(folder: Path) -> None:
    command = python("minigpt", "train", *LONG, TWO[0], "hydra.run.dir=run", ranks=2)
    result = folder / "run" / "result.json"
    with training(folder, command, 5) as process:
        process.kill()
        deadline = time.monotonic() + 60
        while not result.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
    assert json.loads(result.read_text())["status"] == "interrupted"
    assert (folder / "run" / "checkpoints" / "last").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("after", [0.2, pytest.param(2.0, marks=pytest.mark.exhaustive)])
def test_ranks_end_when_the_process_that_starts_them_is_killed(folder: Path, after: float) -> None:
    command = python("minigpt", "train", *LONG, *TWO, "hydra.run.dir=run")
    with training(folder, command, None) as process:
        time.sleep(after)
        ranks = [Path(f"/proc/{pid}") for pid in rank_pids(process.pid)]
        process.kill()
        process.wait()
        deadline = time.monotonic() + 60
        while any(map(is_running, ranks)) and time.monotonic() < deadline:
            time.sleep(0.1)
    assert not any(map(is_running, ranks))


def is_running(process: Path) -> bool:
    """Return whether a process in /proc exists, and has not ended."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_a_process_that_hangs_is_reported(folder: Path) -> None:
    command = python("minigpt", "train", *LONG, *TWO, "trainer.timeout=3", "hydra.run.dir=run")
    with training(folder, command, 5) as process:
        os.kill(rank_pids(process.pid)[1], signal.SIGSTOP)
        _, errors = process.communicate(timeout=90)
    assert process.returncode == 1
    assert "waited for the other ranks in " in errors and "one did not answer" in errors
    assert "trainer.timeout=3 seconds" in errors and len(errors.splitlines()) == 1


@pytest.mark.slow
def test_torchrun_restarts_a_run_which_ends_bit_equal(folder: Path) -> None:
    own = ["trainer.parallel=ddp", "model.dropout=0.1"]
    whole = [*RUN, *own, "trainer.max_steps=400", "trainer.eval_every=null"]
    done = completed(python("minigpt", "train", *whole, "hydra.run.dir=whole", ranks=2), folder)
    assert done.returncode == 0, done.stderr
    command = python("minigpt", "train", *whole, "hydra.run.dir=run", ranks=2, restarts=1)
    with training(folder, command, 30) as process:
        os.kill(rank_pids(process.pid)[1], signal.SIGKILL)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert weights_are_equal(folder / "whole", folder / "run")
    assert len(json.loads((folder / "run" / "manifest.json").read_text())["resumed"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trainer.processes=2"], "trainer.processes=2: trains on one device; add trainer.para"),
        (["trainer.parallel=ddp"], "trainer.parallel=ddp: starts no processes; add trainer.proc"),
        (["trainer.parallel=dp"], "trainer.parallel=dp: not one of none, ddp, fsdp"),
        (["trainer.parallel=tp"], "trainer.parallel=tp: not built: queries, keys and values are"),
        ([*TWO, "trainer.compile=true"], "trainer.compile=True: is not supported with trainer.p"),
        ([*TWO, "trainer.graph=on"], "trainer.graph=on: is not supported with trainer.parallel"),
        ([*TWO, "trainer.timeout=0"], "trainer.timeout=0"),
        (["trainer.parallel=ddp", "trainer.processes=0"], "trainer.processes=0: must be 1 or more"),
        ([*TWO, "trainer.batch_size=1"], "trainer.processes=2: a micro-batch has 1 windows for as"),
    ],
)
def test_wrong_options_are_refused(
    cli: Cli, workdir: Path, arguments: list[str], message: str
) -> None:
    done = cli("train", *RUN, *arguments)
    assert done.code == 2 and done.err.startswith(f"minigpt: {message}"), done.err


@pytest.mark.parametrize("command", ["train -m seed=1,2", "eval latest", "tune", "compare"])
def test_torchrun_starts_trainings_only(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("minigpt.ranks.is_first_to_report", lambda: True)
    done = cli(*command.split())
    assert done.code == 2 and "each of the processes that torchrun started" in done.err


@pytest.mark.slow
def test_an_error_is_printed_once(folder: Path) -> None:
    (folder / "file").write_text("")
    command = ["minigpt", "train", *RUN, *TWO, "hydra.run.dir=file/run"]
    done = completed(python(*command), folder)
    assert done.returncode == 1 and done.stderr == "minigpt: file/run: Not a directory\n"


KILLED = "rank 1 was killed by SIGKILL, and the other ranks have stopped; give the command again"


@pytest.mark.parametrize(
    ("failures", "error"),
    [
        ([(0, 1, "LostRank: waited"), (0, -9, "")], Failure(KILLED)),
        ([(0, -15, ""), (0, -9, "")], Failure(KILLED)),
        ([(0, 1, "LostRank: waited"), (1, 1, "ValueError: a: b")], Failure("rank 1: a: b")),
        ([(0, 2, "UserError: key=1: no"), (0, 2, "UserError: key=1: no")], UserError("key=1: no")),
        ([(0, 1, "LostRank: did not answer"), (30, -9, "")], Failure("did not answer")),
        ([(0, 143, ""), (0, -15, "")], Interrupted(15)),
        ([(0, 3, ""), (0, -15, "")], Failure("rank 0 ended with exit code 3")),
    ],
)
def test_the_error_of_ranks(
    tmp_path: Path, failures: list[tuple[int, int, str]], error: BaseException
) -> None:
    """Given for each rank: when it failed, its exit code, and the error that it recorded."""
    recorded = {
        rank: SimpleNamespace(
            timestamp=at, exitcode=code, message={"message": text} if text else "Signal received"
        )
        for rank, (at, code, text) in enumerate(failures)
    }
    found = error_of(recorded, RunDirectory(tmp_path))
    assert type(found) is type(error) and str(found) == str(error)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_jobs_of_a_sweep_start_their_processes(folder: Path) -> None:
    """A stopped sweep saves each run once; the same command ends it like an uninterrupted one."""
    sweep = ["train", "-m", *RUN, *TWO, "trainer.max_steps=80", "model.dropout=0.1", "seed=1,2"]
    sweep += ["hydra.launcher.at_once=1"]
    single = ["train", *sweep[2:-2], "seed=1", "hydra.run.dir=whole"]
    done = completed(python("minigpt", *single), folder)
    assert done.returncode == 0, done.stderr
    command = python("minigpt", *sweep, "hydra.sweep.dir=stopped")
    with training(folder, command, 10, "stopped/seed=1") as process:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    result = json.loads((folder / "stopped" / "seed=1" / "result.json").read_text())
    assert result["status"] == "interrupted" and 10 <= result["steps"] < 80
    again = completed(command, folder)
    assert again.returncode == 0, again.stderr
    assert weights_are_equal(folder / "whole", folder / "stopped/seed=1")
    for seed in (1, 2):
        run = folder / "stopped" / f"seed={seed}"
        assert json.loads((run / "result.json").read_text())["processes"] == 2
        assert "step 80/80" in (run / "output.log").read_text()


@pytest.mark.slow
def test_a_job_of_a_sweep_that_fails_says_why(folder: Path) -> None:
    sweep = ["train", "-m", *RUN, *TWO, "trainer.max_steps=2", "seed=1,2", "hydra.sweep.dir=sweep"]
    (folder / "sweep" / "seed=1").mkdir(parents=True)
    (folder / "sweep" / "seed=1" / "checkpoints").write_text("a file")
    done = completed(python("minigpt", *sweep), folder)
    assert done.returncode == 1
    results = [
        json.loads((folder / "sweep" / f"seed={seed}" / "result.json").read_text())
        for seed in (1, 2)
    ]
    assert [result["status"] for result in results] == ["failed", "finished"]
    assert "seed=1/checkpoints" in results[0]["error"]


@pytest.mark.slow
def test_a_loss_that_is_not_finite_in_one_rank_stops_all(folder: Path) -> None:
    command = [*RUN, "trainer.parallel=ddp", "hydra.run.dir=run"]
    (folder / "commands.json").write_text(json.dumps([["train", *command]]), encoding="utf-8")
    program = python("tests.train.commands_in_ranks", "commands.json", "--nan-in-rank=1", ranks=2)
    started = time.monotonic()
    done = completed(program, folder)
    assert done.returncode == 1 and time.monotonic() - started < 60
    lines = [line for line in done.stderr.splitlines() if line.startswith("minigpt: ")]
    assert len(lines) == 1 and "nan at step 13" in lines[0], done.stderr
    result = json.loads((folder / "run" / "result.json").read_text())
    assert result["status"] == "failed" and result["diverged"]
    assert metrics(folder / "run")[-1]["step"] == 13
