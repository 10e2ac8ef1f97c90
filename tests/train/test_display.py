"""What a run shows: the loss by time, no silence, and a table at the end."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from minigpt import console
from minigpt.model import GPT
from minigpt.run import load
from minigpt.run.weights import load_weights
from minigpt.train import display
from tests.conftest import TINY, Cli, read_metrics
from tests.train.test_resume import stop_at

RARELY = ["trainer.log_every=1000", "trainer.eval_every=null", "trainer.sample_every=null"]


def test_the_first_step_is_shown(cli: Cli) -> None:
    done = cli("train", *TINY, *RARELY, "hydra.run.dir=run")
    shown = re.findall(r"^step (\d+)/12  train loss [\d.]+ nats/token  ", done.out, re.MULTILINE)
    assert shown == ["1", "12"]
    assert re.search(r"^step 1/12 .* tokens/s  \d+:\d\d left$", done.out, re.MULTILINE)
    resumed = cli("train", "resume=run", "trainer.max_steps=20")
    shown = re.findall(r"^step (\d+)/20  train loss", resumed.out, re.MULTILINE)
    assert shown == ["13", "20"]


def test_losses_on_display_change_nothing(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    options = [*TINY, "trainer.log_every=5", "trainer.grad_accum_steps=2"]
    assert cli("train", *options, "hydra.run.dir=rarely").code == 0
    monkeypatch.setattr(display, "LOSS_SECONDS", 0.0)
    often = cli("train", *options, "hydra.run.dir=often")
    shown = re.findall(r"^step (\d+)/12  train loss", often.out, re.MULTILINE)
    assert shown == [str(n) for n in range(1, 13)]
    rarely, often = Path("rarely"), Path("often")
    assert read_metrics(rarely) == read_metrics(often)
    weights = [run / "checkpoints/last/model.safetensors" for run in (rarely, often)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.slow
def test_a_slow_run_in_a_pipe_is_never_silent(workdir: Path) -> None:
    """Steps and evaluations longer than the interval; the real one is a constant of `console`."""
    script = """if True:
        import sys
        from minigpt import console
        from minigpt.cli import main
        console.SILENCE_SECONDS = 1.0
        sys.exit(main(sys.argv[1:]))
    """
    size = ["model.n_layer=4", "model.n_embd=256", "model.block_size=256", "trainer.batch_size=32"]
    Path("text.txt").write_text("a line of text\n" * 20_000)
    options = [*TINY, *RARELY, *size, "trainer.max_steps=4", "trainer.precision=fp32"]
    command = [sys.executable, "-u", "-c", script, "train", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines, moments = [], [time.monotonic()]
    for line in process.stdout:
        lines.append(line.rstrip())
        moments.append(time.monotonic())
    assert process.wait() == 0
    started = next(number for number, line in enumerate(lines) if line.startswith("run "))
    pauses = [
        later - sooner
        for sooner, later in zip(moments[started + 1 :], moments[started + 2 :], strict=False)
    ]
    assert max(pauses) < 2.5, list(
        zip(pauses, lines[started + 1 :], strict=False)
    )  # a busy machine
    output = "\n".join(lines)
    assert re.search(r"^step 0/4  \d+\.\d s so far$", output, re.MULTILINE)
    assert re.search(r"^step [123]/4  \d+:\d\d left$", output, re.MULTILINE)
    assert re.search(r"^step 4/4  evaluating the val split, \d+%  0:00 left$", output, re.MULTILINE)


def rows(output: str) -> dict[str, str]:
    """Return the table at the end of a run's output, in a pipe; commands by line."""
    table = re.split(r"\n(?=(?:finished|stopped|paused)   )", output)[-1]
    lines = [(line[:10].strip(), line[11:]) for line in table.splitlines()]
    commands = [text for name, text in lines if name in ("next", "")]
    return {name: text for name, text in lines if name} | {"next": "; ".join(commands)}


def test_the_end_is_a_table(cli: Cli) -> None:
    table = rows(cli("train", *TINY, "hydra.run.dir=my run").out)
    result = json.loads(Path("my run/result.json").read_text())
    best = f"best {result['best_val_loss']:.4f} at step {result['best_step']}"
    assert table == {
        "finished": "12 steps",
        "val loss": f"{result['val_loss']:.4f} nats/token (full pass); {best}",
        "perplexity": f"{result['val_perplexity']:.3f}",
        "bits/byte": f"{result['val_bits_per_byte']:.4f}",
        "time": f"{result['seconds']:.1f} s",
        "run": "my run",
        "next": "minigpt sample 'my run'; minigpt eval 'my run'; minigpt report 'my run'",
    }


def test_the_end_of_a_stopped_and_a_resumed_run(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_at(3, patch)
        table = rows(cli("train", *TINY, "hydra.run.dir=run").out)
    assert table["stopped"] == "by SIGTERM at step 3 of 12, saved"
    assert table["next"] == "minigpt train resume=run"
    assert "val loss" not in table  # before the first evaluation
    with monkeypatch.context() as patch:
        stop_at(5, patch)
        table = rows(cli("train", "resume=run").out)
    assert table["val loss"].endswith("at step 4") and "(last evaluation)" in table["val loss"]
    assert rows(cli("train", "resume=run").out)["finished"] == "12 steps, resumed at step 5"


def test_the_end_of_a_run_that_stops_early(cli: Cli) -> None:
    worse = ["optimizer.lr=3", "optimizer.grad_clip=null", "trainer.patience=1"]
    done = cli("train", *TINY, *worse, "trainer.max_steps=200", "hydra.run.dir=run")
    assert done.code == 0, done.err
    result = json.loads(Path("run/result.json").read_text())
    assert rows(done.out)["stopped"] == (
        f"early at step {result['steps']} of 200: no lower validation loss since step "
        f"{result['best_step']} (trainer.patience)"
    )


def test_a_terminal_has_a_bar_and_a_table(workdir: Path) -> None:
    leader, follower = pytest.importorskip("pty").openpty()
    command = [sys.executable, "-m", "minigpt.cli", "train", *TINY, "trainer.max_steps=300"]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "90", "LINES": "40"}
    process = subprocess.Popen(command, stdout=follower, stderr=follower, env=environment)
    os.close(follower)
    output = b""
    while chunk := _read(leader):
        output += chunk
    os.close(leader)
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", output.decode())
    assert re.search(r"step \d+/300  ━.* train loss [\d.]+ nats/token  [\d,]+ tokens/s  \d", text)
    table = text[text.index("finished") :]
    assert re.search(r"finished +300 steps +\r\n ─+", table)
    assert re.search(r"val loss +[\d.]+ nats/token \(full pass\); best", table)
    assert re.search(r"next +minigpt sample runs/\S+ +\r\n +minigpt eval runs/", table)
    assert "tokens/s" not in table  # the bar is gone


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:  # Linux: the other end is closed
        return b""


# ---- other commands ----


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is shown at once."""
    monkeypatch.setattr(console, "SILENCE_SECONDS", 0.005)


def test_eval_shows_progress_on_stderr(
    cli: Cli, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["eval", "run", "--lengths", "1,2,4", "--random-batches", "3"]
    quiet = cli(*command)
    assert quiet.code == 0 and quiet.err == ""
    monkeypatch.setattr(console, "SILENCE_SECONDS", 0.005)
    forward, calls = GPT.forward, itertools.count()

    def slow(*args: Any, **options: Any) -> Any:
        if next(calls) < 30:  # the full passes; there are hundreds of random batches
            time.sleep(0.05)
        return forward(*args, **options)

    monkeypatch.setattr(GPT, "forward", slow)
    shown = cli(*command)
    assert shown.out == quiet.out
    # Not for every pass: some take a few milliseconds.
    assert "minigpt: loading run: " in shown.err and "minigpt: evaluating run (" in shown.err
    line = r"minigpt: (loading run: \d\.\d s|evaluating run \(.+\): (\d+%, 0:0\d left|\d\.\d s))"
    assert all(re.fullmatch(line, text) for text in shown.err.splitlines())


@pytest.mark.parametrize("command", ["eval", "sample", "inspect"])
def test_a_slow_load_is_not_silent(
    cli: Cli, tiny_run: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def slow(path: Path, model: torch.nn.Module) -> None:
        time.sleep(0.5)
        load_weights(path, model)

    monkeypatch.setattr(load, "load_weights", slow)
    monkeypatch.setattr(console, "SILENCE_SECONDS", 0.1)
    done = cli(command, "run")
    assert done.code == 0, done.err
    assert len(re.findall(r"^minigpt: loading.*: 0\.\d s$", done.err, re.MULTILINE)) >= 3


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--json"],
        ["--prompt", "the", "--prompt", "fox", "--num-samples", "2"],
        ["--beams", "3"],
        ["--draft", "run"],
        ["--stop", "e"],
    ],
)
def test_sample_shows_progress_on_stderr(
    cli: Cli, tiny_run: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    command = ["sample", "run", "--max-new-tokens", "300", *options]
    quiet = cli(*command)
    assert quiet.code == 0 and "minigpt: " not in quiet.err
    monkeypatch.setattr(console, "SILENCE_SECONDS", 0.005)
    shown = cli(*command)
    assert shown.out == quiet.out
    assert "minigpt: loading: " in shown.err
    n = options[-1] if "--num-samples" in options else "1"
    assert f"minigpt: sample {n} of {n}: " in shown.err or "--stop" in options


def test_text_that_is_seen_has_no_progress_lines_in_it(tiny_run: Path) -> None:
    script = """if True:
        import sys
        from minigpt import console
        from minigpt.cli import main
        console.SILENCE_SECONDS = 0.005
        sys.exit(main(sys.argv[1:]))
    """
    command = [sys.executable, "-c", script, "sample", "run", "--max-new-tokens", "300"]
    pipe = subprocess.PIPE
    apart = subprocess.run(command, stdout=pipe, stderr=pipe, text=True, check=True)
    together = subprocess.run(command, stdout=pipe, stderr=subprocess.STDOUT, text=True, check=True)
    assert "minigpt: sample 1 of 1: " in apart.stderr
    shown = re.sub(r"^(minigpt: loading: .*\n)+", "", together.stdout)
    assert shown == apart.stdout


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (["inspect", "run"], "computing and plotting: "),
        (["doctor", "--table", "objective"], "checking: "),
        (["data", "data=text", "data.path=text.txt"], "text as "),
        (["data", "--shards", "big", "data=text", "data.path=text.txt"], "encoding, "),
        (["bench", "attention", "--lengths", "8,16", "--repeats", "3"], "measuring: 50%, 0:"),
    ],
)
@pytest.mark.usefixtures("impatient")
def test_other_commands_show_progress(
    cli: Cli, tiny_run: Path, command: list[str], shown: str
) -> None:
    if "data" in command:
        Path("text.txt").write_text("".join(f"line {n} of the text\n" for n in range(100_000)))
    outcome = cli(*command)
    assert outcome.code == 0, outcome.err
    assert f"minigpt: {shown}" in outcome.err
    assert "minigpt: " not in outcome.out


def test_a_sweep_shows_progress_between_jobs(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "SILENCE_SECONDS", 0.1)
    often = ["trainer.max_steps=600", "trainer.log_every=10", "trainer.checkpoint_every=null"]
    done = cli("train", "-m", *TINY, *RARELY, *often, "seed=1,2", "hydra.sweep.dir=sweep")
    assert done.code == 0, done.err
    assert re.search(r"^1 running, 1 waiting  0:\d\d left$", done.out, re.MULTILINE)
    ends = re.findall(r"finished  val loss [\d.]+ nats/token  ", done.out)
    assert len(ends) == 2


@pytest.mark.parametrize("command", ["eval", "sample", "inspect"])
def test_threads(cli: Cli, tiny_run: Path, command: str) -> None:
    try:
        assert cli(command, "run", "--threads", "2").code == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    for value in ("0", "-1", "100000", "many"):
        refused = cli(command, "run", "--threads", value)
        assert refused.code == 2 and refused.out == ""
        assert "--threads" in refused.err and len(refused.err.splitlines()) == 1
