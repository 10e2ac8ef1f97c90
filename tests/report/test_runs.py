"""Broken, foreign and many run directories."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest

from minigpt.report.comparison import compare
from tests.conftest import Cli
from tests.report.synthetic import POSITIONS, make_sweep, warned


def test_broken_files_are_warnings(tmp_path: Path, cli: Cli) -> None:
    make_sweep(tmp_path / "runs", POSITIONS)
    with (tmp_path / "runs/rope_seed=1/metrics.jsonl").open("a") as file:
        file.write('{"step": 50, "train_lo')
    (tmp_path / "runs/rope_seed=2/result.json").write_text('{"status": "fini')
    (tmp_path / "runs/rope_seed=3/config.yaml").write_text("a: [b\n")
    (tmp_path / "runs/alibi_seed=1/manifest.json").unlink()
    (tmp_path / "runs/alibi_seed=2/metrics.jsonl").write_text('{"step": 10, "val_loss": NaN}\n')
    (tmp_path / "runs/alibi_seed=2/eval.json").write_text("[]")
    (tmp_path / "runs/alibi_seed=3/samples.txt").unlink()
    result = tmp_path / "runs/learned_seed=1/result.json"
    values = json.loads(result.read_text())
    result.write_text(json.dumps(values | {"val_loss": math.nan, "tokens_per_second": None}))
    found = compare([str(tmp_path)], [], None)
    assert warned(found, "rope_seed=2/result.json: broken JSON")
    assert warned(found, "rope_seed=3/config.yaml: not readable YAML")
    assert warned(found, "alibi_seed=2/eval.json: broken JSON")
    assert warned(found, "finished without a validation loss", "learned_seed=1")
    assert cli("report", str(tmp_path)).code == 0


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("manifest.json", {"versions": 3, "characters": [1], "match": "flops"}),
        ("result.json", {"val_loss": 10**400}),
        ("sweep.json", {"match": ["flops"], "jobs": [{"path": "rope_seed=1"}]}),
        ("eval.json", {"last": {"lengths": {"²": {"loss": 1.0}, "8": {"loss": 10**400}}}}),
    ],
)
def test_wrong_types_in_files_do_not_stop_a_report(
    tmp_path: Path, cli: Cli, file: str, changes: dict[str, object]
) -> None:
    folder = make_sweep(tmp_path / "s", POSITIONS, seeds=(1, 2))
    path = (folder if file == "sweep.json" else folder / "rope_seed=1") / file
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | changes))
    done = cli("report", str(folder))
    assert done.code == 0, done.err


def test_configs_of_other_programs_are_ignored(tmp_path: Path) -> None:
    make_sweep(tmp_path, POSITIONS)
    for folder in ("other", ".hydra"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.yaml").write_text("hydra: {}\n")
    assert (
        len(compare([str(tmp_path), str(tmp_path / "rope_seed=1")], [], None).collection.runs) == 9
    )


def test_two_hundred_runs_take_seconds(tmp_path: Path) -> None:
    designs = {f"lr{n}": {"optimizer__lr": n * 1e-4} for n in range(1, 68)}
    folder = make_sweep(tmp_path, designs)
    start = time.perf_counter()
    from minigpt.commands.report import main

    main([str(folder)])
    assert time.perf_counter() - start < 15
