"""The Python API: `load_run`, `runs` and the examples of docs/api.md."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from minigpt import load_run, runs
from minigpt.api import LoadedRun
from minigpt.cli import main
from minigpt.errors import UserError
from minigpt.extras import install
from tests.conftest import TEXT, TINY, Cli

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a working directory with a text and one finished run below runs/."""
    folder = tmp_path_factory.mktemp("api")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MINIGPT_DATA", str(folder / "data"))
        arguments = ["train", *TINY, "hydra.run.dir=runs/rope"]
        patch.setattr(sys, "argv", ["minigpt", *arguments])
        assert main(arguments) == 0
    return folder


@pytest.fixture
def folder(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to the working directory of the trained run. Return it."""
    monkeypatch.chdir(trained)
    monkeypatch.setenv("MINIGPT_DATA", str(trained / "data"))
    return trained


@pytest.fixture
def run(folder: Path) -> LoadedRun:
    """Load the trained run."""
    return load_run("runs/rope", device="cpu")


@pytest.mark.usefixtures("folder")
def test_examples_of_api_md_run() -> None:
    code = re.findall(r"```python\n(.*?)```", (DOCS / "api.md").read_text(), re.DOTALL)
    assert len(code) == 6
    exec(compile("\n".join(code), "api.md", "exec"), {})


def test_import_does_not_import_torch() -> None:
    check = "import minigpt, sys; assert 'torch' not in sys.modules and minigpt.__version__"
    subprocess.run([sys.executable, "-c", check], check=True)
    with pytest.raises(AttributeError, match="no attribute 'load_rum'"):
        _ = sys.modules["minigpt"].load_rum


# --- load_run


def test_load_run_defaults_to_the_newest_run(run: LoadedRun) -> None:
    newest = load_run()
    assert newest.run.path == run.run.path and newest.checkpoint == "best"
    assert not newest.model.training and newest.config == run.config


def test_logits_equal_the_forward_pass(run: LoadedRun) -> None:
    logits = run.logits("Line 1")
    tokens = torch.tensor([run.tokenizer.encode("Line 1")])
    assert logits.shape == (6, run.tokenizer.n_vocab) and not logits.requires_grad
    torch.testing.assert_close(logits, run.model(tokens)[0].detach())


def test_generate_equals_minigpt_sample(run: LoadedRun, capfd: pytest.CaptureFixture[str]) -> None:
    text = run.generate("Line", max_tokens=20, temperature=0.8, top_k=9, seed=3)
    arguments = ["--prompt", "Line", "--max-new-tokens", "20", "--temperature", "0.8"]
    capfd.readouterr()
    assert main(["sample", "runs/rope", *arguments, "--top-k", "9", "--seed", "3"]) == 0
    assert capfd.readouterr().out == f"Line{text}\n"
    assert run.generate("Line", max_tokens=20, seed=1) != run.generate("Line", 20, seed=2)
    stopped = run.generate("Line", max_tokens=20, temperature=0.8, top_k=9, seed=3, stop=text[5:7])
    assert stopped == text.partition(text[5:7])[0]


def test_evaluate_equals_the_result_of_training(run: LoadedRun) -> None:
    result = json.loads(Path("runs/rope/result.json").read_text())
    last = load_run("runs/rope", "last", "cpu")
    assert last.evaluate().loss == result["val_loss"]
    assert last.evaluate("train").loss != result["val_loss"]
    assert len(run.evaluate(length=4).by_position) == 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: load_run("nowhere"), "RUN=nowhere: no such run directory"),
        (lambda run: load_run(device="gpu"), "device=gpu: not one of auto, cpu, cuda, mps"),
        (lambda run: load_run(checkpoint="first"), "checkpoint=first: not one of best, last"),
        (
            lambda run: load_run(changes=["seed=2"]),
            "changes seed=2: a trained run can change only the options",
        ),
        (lambda run: run.logits(""), "text='': must not be empty"),
        (lambda run: run.logits("§"), r"text='§' \(U\+00A7\) at offset 0: not among"),
        (lambda run: run.generate(""), "prompt='': must not be empty"),
        (lambda run: run.generate("a", 0), "max_tokens=0: must be 1 or more"),
        (lambda run: run.generate("a", seed=-1), "seed=-1: must be from 0"),
        (lambda run: run.generate("a", top_k=0), "top_k=0: must be 1 or more"),
        (lambda run: run.generate("a", temperature=-1), "temperature=-1: must be 0 or more"),
        (lambda run: run.generate("a", context=0), 'context=0: must be 1 or more, "all" or None'),
        (lambda run: run.generate("a", stop=""), "stop='': must not be empty"),
        (lambda run: run.evaluate("test"), "split=test: not one of train, val"),
        (lambda run: run.evaluate(length=0), "length=0: must be 1 or more"),
        (lambda run: runs("nowhere"), "DIR=nowhere: no such folder"),
        (lambda run: runs("nowhere/**"), r"runs=nowhere/\*\*: no folder matches this pattern"),
    ],
)
def test_mistakes_raise_one_line(
    run: LoadedRun, call: Callable[[LoadedRun], Any], message: str
) -> None:
    with pytest.raises(UserError, match=f"^{message}") as error:
        call(run)
    assert "\n" not in str(error.value)


# --- runs


def test_runs_lists_results_and_configs(folder: Path) -> None:
    result = json.loads(Path("runs/rope/result.json").read_text())
    for names in ("runs", "runs/**", Path("runs/rope"), ["runs/rope", "runs"], "latest"):
        (row,) = runs(names).to_dict("records")
        assert Path(row["run"]).name == "rope" and row["status"] == "finished"
        assert row["val_loss"] == result["val_loss"]
        assert row["model.positional.name"] == "rope" and row["problems"] == ""


def test_runs_of_a_folder_with_brackets(folder: Path, tmp_path: Path) -> None:
    shutil.copytree("runs/rope", tmp_path / "of [2024]" / "rope")
    (row,) = runs(tmp_path / "of [2024]" / "r*").to_dict("records")
    assert Path(row["run"]).name == "rope"


def test_runs_lists_unfinished_and_broken_runs(folder: Path, tmp_path: Path) -> None:
    for name in ("finished", "running", "broken"):
        shutil.copytree("runs/rope", tmp_path / name)
    (tmp_path / "running" / "result.json").unlink()
    (tmp_path / "broken" / "result.json").write_text("{")
    sweep = {"jobs": [{"path": "running"}, {"path": "missing", "overrides": ["seed=2"]}]}
    (tmp_path / "sweep.json").write_text(json.dumps(sweep))
    rows = {Path(row["run"]).name: row for row in runs(tmp_path).to_dict("records")}
    status = {name: row["status"] for name, row in rows.items()}
    assert status["finished"] == "finished" and status["missing"] == "not started"
    assert status["running"] == "killed"
    assert len(rows) == 4 and "broken JSON" in rows["broken"]["problems"]


def test_runs_without_pandas_raises_one_line(folder: Path) -> None:
    message = re.escape(f"runs: needs pandas; {install('pandas')}")
    with mock.patch.dict(sys.modules, {"pandas": None}), pytest.raises(UserError, match=message):
        runs()


def test_logits_of_other_objectives(cli: Cli) -> None:
    for objective in ("masked", "denoise"):
        arguments = ("train", *TINY, f"objective={objective}", f"hydra.run.dir={objective}")
        assert cli(*arguments).code == 0
    masked = load_run("masked")
    (gap,) = masked.fill("Li[MASK]e", top=3).gaps
    assert len(gap) == 3 and masked.fill("Li_e", mark="_").text == f"Li{gap[0].text}e"
    assert (
        len(masked.tokenizer.encode(load_run("denoise").fill("Li[MASK]e", max_tokens=2).text)) < 6
    )
    assert masked.logits("Line").shape == (4, masked.tokenizer.n_vocab)
    with pytest.raises(ValueError, match="objective=denoise: reads a source beside the text"):
        load_run("denoise").logits("Line")
