"""`minigpt eval` of several runs, and estimates of a loss from random batches."""

from __future__ import annotations

import csv
import json
import re
import statistics
from pathlib import Path

import pytest
import torch

from minigpt.config.compose import composed_config
from minigpt.data.tokens import Split
from minigpt.evaluate.loss import evaluate, random_batch_losses
from minigpt.model import GPT
from minigpt.runtime import Runtime
from tests.conftest import TINY, Cli

CPU = Runtime("cpu", "", "fp32", "")


def test_random_batches_estimate_the_full_pass() -> None:
    tokens = torch.randint(9, (3001,), generator=torch.Generator().manual_seed(0))
    split = Split("val", tokens, target_bytes=3000)
    torch.manual_seed(0)
    small = ["model.n_layer=1", "model.n_head=2", "model.n_embd=8", "model.block_size=8"]
    model = GPT(composed_config(small).model, 9).train()
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(0))
    losses = random_batch_losses(model, split, CPU, 10)
    assert model.training  # the mode is restored
    assert random_batch_losses(model, split, CPU, 10) == losses
    assert random_batch_losses(model, split, CPU, 10, seed=1) != losses
    error = statistics.stdev(losses) / 10**0.5
    full = evaluate(model, split, CPU).loss
    assert 0 < error < 0.02 and abs(statistics.fmean(losses) - full) < 4 * error


def test_random_batches_of_a_run(cli: Cli) -> None:
    assert cli("train", *TINY, "hydra.run.dir=run").code == 0
    done = cli("eval", "run", "--random-batches", "5")
    assert done.code == 0, done.err
    (line,) = (line for line in done.out.splitlines() if line.startswith("20 random batches"))
    assert "20 random batches of 12, 5 estimates: " in line
    numbers = re.search(r"mean ([\d.]+) .* from ([\d.]+) to ([\d.]+)", line)
    assert numbers is not None
    mean, low, high = map(float, numbers.groups())
    assert low <= mean <= high
    assert mean == pytest.approx(
        json.loads(Path("run/eval.json").read_text())["best"]["val_loss"], rel=0.05
    )
    assert cli("eval", "run", "--random-batches", "1").err == (
        "minigpt: --random-batches=1: must be 2 or more\n"
    )


def test_eval_of_a_folder_evaluates_its_finished_runs(cli: Cli) -> None:
    swept = cli("train", "-m", *TINY, "positional=rope,learned", "hydra.sweep.dir=sweep")
    assert swept.code == 0, swept.err
    arguments = ["eval", "sweep", "--checkpoint", "last", "--lengths", "8,16", "--by-position"]
    arguments += ["--contexts", "8,16"]
    first = cli(*arguments)
    assert first.code == 0 and first.out.count("written to sweep/positional=") == 2, first.err
    files = {path: path.read_text() for path in Path("sweep").rglob("eval.json")}
    assert len(files) == 2
    again = cli(*arguments)
    assert again.out.count("(last): already evaluated") == again.out.count("\n") == 2
    nested = ["sweep", "sweep/positional=rope"]  # the second is inside the first
    longer = cli("eval", *nested, "--checkpoint", "last", "--lengths", "4")
    assert longer.code == 0 and longer.out.count("written to") == 2
    assert longer.out.count("already evaluated") == 1
    for path, before in files.items():
        previous, extended = (
            json.loads(text)["last"]["lengths"] for text in (before, path.read_text())
        )
        assert {*previous} == {"8", "16"} and {*extended} == {"4", "8", "16"}
    assert cli("report", "sweep", "--baseline", "rope").code == 0
    rows = csv.DictReader(Path("sweep/report_lengths.csv").read_text().splitlines())
    defined = {row["design"]: [n for n in (4, 8, 16) if row[f"at_{n}"]] for row in rows}
    assert defined == {"positional=rope": [4, 8, 16], "positional=learned": [4, 8]}
    rows = csv.DictReader(Path("sweep/report_contexts.csv").read_text().splitlines())
    exact = {row["design"]: [n for n in (8, 16) if row[f"at_{n}"]] for row in rows}
    assert exact == {"positional=rope": [8, 16], "positional=learned": [8]}
    assert "plot-contexts" in Path("sweep/report.html").read_text()
    half = cli("eval", "sweep/positional=rope", "--contexts", "99999999")
    assert half.code == 2 and "--contexts=99999999: the val split has only" in half.err
    Path("sweep/positional=rope/result.json").write_text('{"status": "failed"}')
    assert "rope" not in cli("eval", "sweep").out
    Path("sweep/positional=learned/result.json").unlink()
    refused = cli("eval", "sweep")
    assert refused.code == 2 and "RUN=sweep: no run in this folder has finished" in refused.err
