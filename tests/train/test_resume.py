"""Resumed runs are bit-equal to uninterrupted ones."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pty
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minigpt.model.attention import ATTENTION
from minigpt.objective import OBJECTIVES
from minigpt.optim.optimizer import OPTIMIZERS
from minigpt.optim.schedule import SCHEDULES
from minigpt.tokenizer import TOKENIZERS
from minigpt.train.control import STOP_SIGNALS, StopRequest, stop_signals
from minigpt.train.display import Display
from tests.conftest import TINY, Cli, read_metrics

TOKENIZER_OPTIONS = {
    "char": [],
    "gpt2": ["model.vocab_multiple=64"],
    "bpe": ["tokenizer.vocab_size=300"],
    "tiktoken": ["tokenizer.encoding=gpt2"],
}


def same_end(first: Path, second: Path) -> None:
    """Assert that two runs have equal weights, metrics, samples and results."""
    for checkpoint in ("last", "best"):
        weights = [
            run / "checkpoints" / checkpoint / "model.safetensors" for run in (first, second)
        ]
        assert weights[0].read_bytes() == weights[1].read_bytes()
    assert read_metrics(first) == read_metrics(second)
    assert (first / "samples.txt").read_text() == (second / "samples.txt").read_text()
    results = [json.loads((run / "result.json").read_text()) for run in (first, second)]
    for key in ("status", "steps", "best_step", "train_loss", "val_loss", "best_val_loss"):
        assert results[0][key] == results[1][key], key


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch, number: int = signal.SIGTERM) -> None:
    """Send this process a signal after a step."""
    show = Display.step

    def show_and_signal(self: Display, done: int) -> None:
        show(self, done)
        if done == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Display, "step", show_and_signal)


@pytest.mark.parametrize(
    ("tokenizer", "schedule"),
    [
        *((tokenizer, "linear") for tokenizer in TOKENIZERS.names()),
        *(("char", schedule) for schedule in SCHEDULES.names() if schedule != "linear"),
    ],
)
def test_resume_equals_an_uninterrupted_run(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tokenizer: str, schedule: str
) -> None:
    options = [f"tokenizer={tokenizer}", *TOKENIZER_OPTIONS[tokenizer], f"schedule={schedule}"]
    assert_resume_is_exact(cli, monkeypatch, [*TINY, *options, "model.dropout=0.1"])


@pytest.mark.fast
def test_resume_restores_expert_usage(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Expert usage is logged at steps 4, 8 and 12, so the checkpoint at step 7 has part of it."""
    assert_resume_is_exact(cli, monkeypatch, [*TINY, "ffn=moe", "trainer.log_every=4"])
    logged = [m for m in read_metrics(Path("parts")) if "expert_usage/layer_0/expert_7" in m]
    assert [metrics["step"] for metrics in logged] == [4, 8, 12]


@pytest.mark.parametrize("attention", ATTENTION.names())
def test_resume_restores_attention_buffers(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, attention: str
) -> None:
    """Performer's random features are saved too."""
    assert_resume_is_exact(cli, monkeypatch, [*TINY, f"attention={attention}"])


def test_resume_within_an_epoch(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch of this text takes 6 steps: the run stops at step 7, in the second."""
    Path("text.txt").write_text(Path("text.txt").read_text()[:230])
    options = ["data.order=epochs", "trainer.grad_accum_steps=2", "model.dropout=0.1"]
    assert_resume_is_exact(cli, monkeypatch, [*TINY, *options])


@pytest.mark.parametrize("objective", [name for name in OBJECTIVES.names() if name != "causal"])
def test_resume_restores_the_draws_of_an_objective(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    options = [f"objective={objective}", "trainer.grad_accum_steps=2", "model.dropout=0.1"]
    assert_resume_is_exact(cli, monkeypatch, [*TINY, *options])


@pytest.mark.parametrize("optimizer", [name for name in OPTIMIZERS.names() if name != "adamw"])
def test_resume_restores_the_optimizer(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    assert_resume_is_exact(cli, monkeypatch, [*TINY, f"optimizer={optimizer}"])


def assert_resume_is_exact(cli: Cli, monkeypatch: pytest.MonkeyPatch, options: list[str]) -> None:
    """Assert that a run stopped at step 7 and resumed equals an uninterrupted one."""
    assert cli("train", *options, "hydra.run.dir=whole").code == 0
    stop_at(7, monkeypatch)
    stopped = cli("train", *options, "hydra.run.dir=parts")
    assert stopped.code == 128 + signal.SIGTERM
    assert "stopped    by SIGTERM at step 7 of 12, saved\n" in stopped.out
    assert stopped.out.endswith("run        parts\nnext       minigpt train resume=parts\n")
    assert json.loads(Path("parts/result.json").read_text())["status"] == "interrupted"
    assert cli("train", "resume=parts").code == 0
    same_end(Path("whole"), Path("parts"))


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_signals_save_a_checkpoint(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    stop_at(3, monkeypatch, number)  # no checkpoint is due before step 5
    stopped = cli("train", *TINY, "hydra.run.dir=run")
    assert stopped.code == 128 + number
    assert json.loads(Path("run/result.json").read_text())["steps"] == 3
    assert Path("run/checkpoints/last/training.pt").exists()
    assert signal.getsignal(signal.SIGINT) is handler


def test_only_a_second_urgent_signal_interrupts_the_saving() -> None:
    def send(*numbers: int) -> int | None:
        with stop_signals(StopRequest()) as stop:
            for number in numbers:
                os.kill(os.getpid(), number)
        return stop.number

    assert send(signal.SIGHUP, signal.SIGHUP) == signal.SIGHUP  # from the kernel and the shell
    assert send(signal.SIGUSR1, signal.SIGTERM) == signal.SIGUSR1
    assert send(signal.SIGINT, signal.SIGHUP) == signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGTERM, signal.SIGINT)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as by nohup
    try:
        assert send(signal.SIGHUP) is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_closed_terminal_saves_the_run(workdir: Path) -> None:
    program, name = pty.fork()
    if program == 0:  # the child, whose terminal `name` is
        arguments = [*TINY, "trainer.max_steps=100000", "hydra.run.dir=run"]
        os.execv(sys.executable, [sys.executable, "-m", "minigpt.cli", "train", *arguments])
    metrics, deadline = Path("run/metrics.jsonl"), time.monotonic() + 120
    os.set_blocking(name, False)
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < 5:
        assert time.monotonic() < deadline
        with contextlib.suppress(BlockingIOError):
            os.read(name, 1 << 16)
        time.sleep(0.01)
    os.close(name)
    assert os.waitstatus_to_exitcode(os.waitpid(program, 0)[1]) == 128 + signal.SIGHUP
    result = json.loads(Path("run/result.json").read_text())
    assert result["status"] == "interrupted" and result["steps"] > 0
    assert Path("run/checkpoints/last/training.pt").exists()


@pytest.mark.exhaustive
@pytest.mark.slow
def test_resume_after_sigkill_at_random_times(workdir: Path) -> None:
    """Kill processes with SIGKILL at random times, also while they write files."""
    steps = ["trainer.max_steps=800", "trainer.checkpoint_every=3", "trainer.eval_every=7"]
    options = [*TINY, *steps, "trainer.sample_every=50", "model.dropout=0.1"]
    subprocess.run(command("train", *options, "hydra.run.dir=whole"), check=True, timeout=120)
    generator = random.Random(0)
    arguments = [*options, "hydra.run.dir=parts"]
    kills = 0
    for _ in range(4):
        process = subprocess.Popen(command("train", *arguments), stderr=subprocess.DEVNULL)
        started = time.monotonic()
        size_before = size(Path("parts/metrics.jsonl"))
        while process.poll() is None and size(Path("parts/metrics.jsonl")) <= size_before:
            assert time.monotonic() - started < 60
            time.sleep(0.01)
        time.sleep(generator.uniform(0, 0.4))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        arguments = ["resume=parts"]
    assert kills >= 2, "the run is too short to be killed"
    subprocess.run(command("train", "resume=parts"), check=True, timeout=120)
    same_end(Path("whole"), Path("parts"))


def command(*arguments: str) -> list[str]:
    """Return the command line of a separate process."""
    return [sys.executable, "-m", "minigpt.cli", *arguments]


def size(path: Path) -> int:
    """Return the size of a file in bytes, 0 if it does not exist."""
    return path.stat().st_size if path.exists() else 0


def test_resume_without_a_checkpoint_starts_again(cli: Cli) -> None:
    options = [*TINY, "trainer.checkpoint_every=null"]
    assert cli("train", *options, "hydra.run.dir=whole").code == 0
    assert cli("train", *options, "hydra.run.dir=parts").code == 0
    # A kill in the first steps leaves logs, but no checkpoint.
    for leftover in Path("parts/checkpoints").rglob("*"):
        if leftover.is_file():
            leftover.unlink()
    for folder in sorted(Path("parts/checkpoints").rglob("*"), reverse=True):
        folder.rmdir()
    Path("parts/result.json").unlink()
    assert cli("train", "resume=parts").code == 0
    same_end(Path("whole"), Path("parts"))


def test_resume_after_a_kill_during_the_rename_of_a_checkpoint(cli: Cli) -> None:
    assert cli("train", *TINY, "hydra.run.dir=whole").code == 0
    assert cli("train", *TINY, "hydra.run.dir=parts").code == 0
    last = Path("parts/checkpoints/last")
    last.rename(last.with_name(".last.old"))
    Path("parts/result.json").unlink()
    assert cli("train", "resume=parts").code == 0
    same_end(Path("whole"), Path("parts"))


def test_a_clock_that_goes_back_changes_nothing(
    cli: Cli, workdir: Path, trained_once: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look at the clock is an hour before the last one; files are of before the first one."""
    now = itertools.count(time.time() + 1e6, -3600)
    monkeypatch.setattr(time, "time", lambda: next(now))
    with monkeypatch.context() as patch:
        stop_at(7, patch)
        assert cli("train", *TINY, "hydra.run.dir=run").code == 128 + signal.SIGTERM
    assert cli("train", "resume=run").code == 0
    same_end(trained_once, Path("run"))
    sweep = ["train", "-m", *TINY, "seed=1,2", "hydra.sweep.dir=sweep", "hydra/launcher=basic"]
    assert cli(*sweep).code == 0
    again = cli(*sweep)
    assert again.code == 0 and "2 of them finished before" in again.out


def test_resume_can_extend_a_run_but_not_change_its_config(cli: Cli) -> None:
    options = [*TINY, "schedule=constant", "hydra.run.dir=run"]
    assert cli("train", *options).code == 0
    refused = cli("train", "resume=run", "optimizer.lr=1")
    assert refused.code == 2
    assert refused.err.startswith("minigpt: optimizer.lr=1: a resumed run keeps its config")
    assert cli("train", "resume=run", "trainer.max_steps=20").code == 0
    assert json.loads(Path("run/result.json").read_text())["steps"] == 20


def test_resume_of_an_interrupted_extension(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    options = [*TINY, "schedule=constant"]
    assert cli("train", *options, "trainer.max_steps=20", "hydra.run.dir=whole").code == 0
    assert cli("train", *options, "hydra.run.dir=parts").code == 0
    with monkeypatch.context() as patch:
        stop_at(15, patch)
        assert cli("train", "resume=parts", "trainer.max_steps=20").code == 143
    assert cli("train", "resume=parts", "trainer.max_steps=13").code == 2
    assert cli("train", "resume=parts").code == 0
    assert json.loads(Path("parts/result.json").read_text())["steps"] == 20
    last = "checkpoints/last/model.safetensors"
    assert Path("whole", last).read_bytes() == Path("parts", last).read_bytes()
    manifest = json.loads(Path("parts/manifest.json").read_text())
    assert [entry["command"][2] for entry in manifest["resumed"]] == ["resume=parts"] * 2


def test_best_checkpoint_after_an_extension(cli: Cli) -> None:
    options = [*TINY, "schedule=constant", "trainer.eval_every=5", "hydra.run.dir=run"]
    assert cli("train", *options).code == 0  # its last evaluation, at step 12, is the best
    assert cli("train", "resume=run", "trainer.max_steps=13").code == 0
    result = json.loads(Path("run/result.json").read_text())
    info = json.loads(Path("run/checkpoints/best/info.json").read_text())
    assert info == {"step": result["best_step"], "val_loss": result["best_val_loss"]}
    steps = [line["step"] for line in read_metrics(Path("run")) if "val_loss" in line]
    assert steps == [5, 10, 12, 13]


def test_resume_of_an_early_stopped_run_changes_nothing(cli: Cli) -> None:
    options = [*TINY, "optimizer.lr=0", "trainer.patience=1", "hydra.run.dir=run"]
    assert cli("train", *options, "trainer.max_steps=99").code == 0
    before = read_metrics(Path("run")), json.loads(Path("run/result.json").read_text())["val_loss"]
    assert cli("train", "resume=run").code == 0
    after = read_metrics(Path("run")), json.loads(Path("run/result.json").read_text())["val_loss"]
    assert before == after


def test_resume_of_a_finished_run_is_an_error(cli: Cli) -> None:
    assert cli("train", *TINY, "hydra.run.dir=run").code == 0
    before = Path("run/metrics.jsonl").read_text()
    again = cli("train", "resume=run")
    assert again.code == 2
    assert "finished" in again.err and "trainer.max_steps" in again.err
    assert Path("run/metrics.jsonl").read_text() == before


def test_resume_rejects_a_changed_text(cli: Cli, workdir: Path) -> None:
    assert cli("train", *TINY, "hydra.run.dir=run").code == 0
    Path("run/result.json").unlink()
    (workdir / "text.txt").write_text("another text entirely, of fox and dog. 0123456789\n" * 30)
    refused = cli("train", "resume=run")
    assert refused.code == 2
    assert "the text has changed" in refused.err


@pytest.mark.slow
def test_two_processes_cannot_train_one_run(workdir: Path) -> None:
    options = [*TINY, "trainer.max_steps=100000", "hydra.run.dir=run"]
    first = subprocess.Popen(command("train", *options), stdout=subprocess.DEVNULL)
    try:
        started = time.monotonic()
        while not Path("run/checkpoints/last").exists():
            assert time.monotonic() - started < 60
            time.sleep(0.05)
        second = subprocess.run(command("train", "resume=run"), capture_output=True, text=True)
        assert second.returncode == 2
        assert "another process is training this run" in second.stderr
    finally:
        first.kill()
        first.wait()
