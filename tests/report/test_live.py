"""`minigpt report --live`, and reports that are saved in W&B."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from minigpt.report.comparison import compare
from minigpt.report.results import unended
from tests.conftest import Cli
from tests.report.synthetic import POSITIONS, config, make_run, make_sweep


def _sweep_json(folder: Path, *paths: str) -> None:
    jobs = [{"overrides": [], "path": path} for path in paths]
    (folder / "sweep.json").write_text(json.dumps({"match": None, "jobs": jobs}))


def test_live_ends_with_the_last_job(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path, {"rope": {}, "alibi": {"positional": "alibi"}}, seeds=(1, 2))
    _sweep_json(folder, *(f"{p}_seed={s}" for p in ("rope", "alibi") for s in (1, 2)))
    last = folder / "alibi_seed=2" / "result.json"
    content = last.read_text()
    last.unlink()
    command = [sys.executable, "-m", "minigpt.cli", "report", str(folder), "--live", "--every"]
    live = subprocess.Popen([*command, "0.1"], stdout=subprocess.PIPE, text=True)
    page = folder / "report.html"
    try:
        deadline = time.time() + 30
        while not page.exists() and time.time() < deadline:
            time.sleep(0.05)
        assert 'http-equiv="refresh" content="0.1"' in page.read_text(encoding="utf-8")
        assert live.poll() is None
        last.write_text(content)
        out, _ = live.communicate(timeout=30)
    finally:
        live.kill()
    assert live.returncode == 0 and "3 of 4 runs finished" in out and "4 of 4 runs" in out
    assert 'http-equiv="refresh"' not in page.read_text(encoding="utf-8")


def test_live_shows_progress_of_runs(tmp_path: Path) -> None:
    make_sweep(tmp_path, {"rope": {}}, seeds=(1, 2))
    (tmp_path / "rope_seed=2" / "result.json").unlink()
    table = unended(compare([str(tmp_path)], [], None))
    assert table.texts() == [["rope_seed=2", "killed", "40", "40", "2.0210", "2.0210"]]


def test_live_ends_at_ctrl_c_with_a_last_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from minigpt.commands import report
    from minigpt.report import show

    folder = make_sweep(tmp_path, {"rope": {}}, seeds=(1, 2))
    _sweep_json(folder, "rope_seed=1", "rope_seed=2", "never")

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(show.time, "sleep", interrupt)
    report.main([str(folder), "--live"])
    assert "not started" in capsys.readouterr().out
    assert 'http-equiv="refresh"' not in (folder / "report.html").read_text(encoding="utf-8")


def test_wandb_without_network_leaves_a_spec(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = make_sweep(tmp_path / "sweep", POSITIONS)
    done = cli("report", str(folder), "--wandb", "me/mine")
    assert done.code == 0, done.err
    said = [line for line in done.out.splitlines() if line.startswith("W&B")]
    assert len(said) == 1 and "not saved: WANDB_MODE=offline" in said[0]
    text = (folder / "report_wandb.json").read_text()
    spec = json.loads(text)
    assert spec["project"]["name"] == "mine" and spec["project"]["entityName"] == "me"
    (grid,) = [b for b in spec["spec"]["blocks"] if b["type"] == "panel-grid"]
    (runset,) = grid["metadata"]["runSets"]
    assert [key["name"] for key in runset["grouping"]] == ["model.value.positional.name"]
    assert all(f'"id{seed}"' in text for seed in (1, 2, 3))
    panels = grid["metadata"]["panelBankSectionConfig"]["panels"]
    lines = [p["config"] for p in panels if p["viewType"] == "Run History Line Plot"]
    assert {m for line in lines for m in line["metrics"]} == {"val_loss", "train_loss"}
    assert all(line["groupAgg"] == "mean" and line["groupArea"] == "stddev" for line in lines)
    assert {line.get("xAxis") for line in lines} == {"step", "tokens", "seconds"}
    points = [p["config"] for p in panels if p["viewType"] == "Scatter Plot"]
    costs = {"flops_per_token", "parameters.total", "seconds"}
    assert {point["xAxis"] for point in points} == {f"summary:{cost}" for cost in costs}
    assert {point["yAxis"] for point in points} == {"summary:val_loss.last"}
    (table,) = [b for b in spec["spec"]["blocks"] if b["type"] == "markdown-block"]
    assert "| positional=learned | 1.5" in table["content"]


MANY = ("optimizer__lr", "optimizer__beta1", "trainer__batch_size")
MANY += ("model__n_embd", "model__n_layer", "model__dropout")


@pytest.mark.parametrize("designs", [{"a": {}}, {"a": {}, "b": dict.fromkeys(MANY, 3)}])
def test_wandb_groups_by_design_where_few_keys_do_not_suffice(
    designs: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    from minigpt.report.wandb_report import build

    found = compare([str(make_sweep(tmp_path, designs))], [], None)
    spec = build(found, "me", "mine", "t", online=False)._to_model().model_dump_json(by_alias=True)
    (grid,) = [b for b in json.loads(spec)["spec"]["blocks"] if b["type"] == "panel-grid"]
    (runset,) = grid["metadata"]["runSets"]
    assert [key["name"] for key in runset["grouping"]] == ["design.value"]


def test_wandb_without_an_answer_times_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from minigpt.report import wandb_report

    found = compare([str(make_sweep(tmp_path, POSITIONS))], [], None)
    monkeypatch.setattr(wandb_report, "_why_not_online", lambda: None)
    monkeypatch.setattr(wandb_report, "_save", lambda *_: time.sleep(5))
    monkeypatch.setattr(wandb_report, "SAVE_SECONDS", 0.05)
    line = wandb_report.save_report(found, "me", "mine", "t", tmp_path / "spec.json")
    assert "no answer in 0.05 s" in line and (tmp_path / "spec.json").is_file()


@pytest.mark.parametrize("shape", ["runs", "search"])
def test_live_ends_without_a_list_of_jobs(tmp_path: Path, shape: str) -> None:
    folder = make_sweep(tmp_path, {"rope": {}}, seeds=(1, 2))
    unfinished = folder / "rope_seed=2" / "result.json"
    content = unfinished.read_text()
    unfinished.unlink()
    if shape == "search":
        (folder / "tune.json").write_text('{"status": "running"}')
    assert not compare([str(folder)], [], None).collection.has_ended
    unfinished.write_text(content)
    assert compare([str(folder)], [], None).collection.has_ended == (shape == "runs")
    if shape == "search":
        (folder / "tune.json").write_text('{"status": "finished"}')
        assert compare([str(folder)], [], None).collection.has_ended


def test_latest_of_a_search_is_its_folder(workdir: Path) -> None:
    folder = make_sweep(workdir / "runs" / "search", {"rope": {}}, seeds=(1, 2))
    assert len(compare(["latest"], [], None).collection.runs) == 1
    (folder / "tune.json").write_text('{"status": "finished"}')
    assert len(compare(["latest"], [], None).collection.runs) == 2


def test_latest_is_resolved_once(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from minigpt.commands import report
    from minigpt.report import show

    folder = make_sweep(workdir / "runs" / "sweep", {"rope": {}}, seeds=(1, 2))
    _sweep_json(folder, "rope_seed=1", "rope_seed=2", "never")
    turns = iter(range(3))

    def begin_another(_: float) -> None:
        if next(turns) == 2:
            raise KeyboardInterrupt
        if not (workdir / "runs" / "lone").exists():
            make_run(workdir / "runs" / "lone", config(seed=9))

    monkeypatch.setattr(show.time, "sleep", begin_another)
    report.main(["latest", "--live"])
    said = capsys.readouterr().out
    assert "2 of 2 runs finished" in said and "1 of 1" not in said
    assert not (workdir / "runs" / "lone" / "report.html").exists()
