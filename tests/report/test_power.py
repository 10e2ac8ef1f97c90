"""`minigpt report --equivalent` and `--plan`: columns, tables and refusals."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_paired

from minigpt.report.comparison import compare
from minigpt.report.results import differences, plan
from tests.conftest import Cli
from tests.report.synthetic import config, make_run

# Validation losses by seed. Rope is close to learned, alibi far from it and noisy.
LOSSES = {
    "learned": [1.500, 1.510, 1.520, 1.530],
    "rope": [1.503, 1.508, 1.521, 1.530],
    "alibi": [1.600, 1.640, 1.590, 1.660],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, losses in LOSSES.items():
        for seed, loss in enumerate(losses, 1):
            start = {"started": f"2026-11-25T1{[*LOSSES].index(name)}:0{seed}"}
            make_run(tmp_path / f"{name}_{seed}", config(name, seed), loss, manifest=start)
    return tmp_path


def by_seed(name: str) -> list[float]:
    """Return the differences of a design to learned."""
    return [a - b for a, b in zip(LOSSES[name], LOSSES["learned"], strict=True)]


def test_equivalence_is_a_column_of_the_differences(cli: Cli, folder: Path) -> None:
    done = cli("report", str(folder), "--equivalent", "0.01")
    assert done.code == 0, done.err
    assert "equivalent within 0.01" in done.out and "90% confidence interval" in done.out
    with (folder / "report_differences.csv").open() as file:
        rows = {row["design"].partition("=")[2]: row for row in csv.DictReader(file)}
    assert (rows["rope"]["significant"], rows["rope"]["equivalent"]) == ("no", "yes")
    assert (rows["alibi"]["significant"], rows["alibi"]["equivalent"]) == ("yes", "no")
    for name, row in rows.items():
        losses, base = np.asarray(LOSSES[name]), np.asarray(LOSSES["learned"])
        expected, *_ = ttost_paired(losses, base, -0.01, 0.01)
        assert float(row["p_tost"]) == pytest.approx(expected)
    assert float(rows["rope"]["p_tost_holm"]) == pytest.approx(2 * float(rows["rope"]["p_tost"]))
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "equivalent within 0.01" in page
    without = differences(compare([str(folder)]))
    assert [column.key for column in without.columns][-1] == "significant"


def test_the_plan_says_how_many_seeds_detect_a_difference(cli: Cli, folder: Path) -> None:
    done = cli("report", str(folder), "--plan", "0.01")
    assert done.code == 0, done.err
    assert "Seeds to detect 0.01 nats/token" in done.out and "power of 80%" in done.out
    table = plan(compare([str(folder)], plan=0.01))
    found = {str(row[0]).partition("=")[2]: row[1:] for row in table.rows}
    assert found.keys() == {"rope", "alibi"}
    for name, (seeds, deviation, needed) in found.items():
        assert isinstance(needed, int)
        expected = stats.tstd(by_seed(name))
        size = 0.01 / expected
        assert seeds == 4 and deviation == pytest.approx(expected)
        power = TTestPower().power
        assert power(size, needed, 0.05) >= 0.8 > power(size, needed - 1, 0.05)
    assert (folder / "report_plan.csv").exists()
    assert "Seeds to detect 0.01" in (folder / "report.html").read_text(encoding="utf-8")
    assert plan(compare([str(folder)])).rows == []


def test_a_design_with_one_shared_seed_has_an_empty_plan(folder: Path) -> None:
    for seed in (2, 3, 4):
        (folder / f"alibi_{seed}" / "result.json").unlink()
    comparison = compare([str(folder)], plan=0.01, equivalent=0.01)
    (alibi,) = [row for row in plan(comparison).rows if "alibi" in str(row[0])]
    assert alibi[1:] == [1, None, None]
    (alibi,) = [row for row in differences(comparison).texts() if "alibi" in row[0]]
    assert alibi[-3:] == ["", "", ""]


@pytest.mark.parametrize("option", ["--plan", "--equivalent"])
def test_fewer_than_two_shared_seeds_are_refused(cli: Cli, tmp_path: Path, option: str) -> None:
    make_run(tmp_path / "learned", config("learned", 1))
    make_run(tmp_path / "rope", config("rope", 1))
    make_run(tmp_path / "rope_2", config("rope", 2))
    refused = cli("report", str(tmp_path), option, "0.01")
    assert refused.code == 2 and refused.err == (
        f"minigpt: {option}=0.01: needs 2 seeds of finished runs that a design shares with the "
        "baseline positional=learned, and there is at most 1; train more, such as seed=1,2,3\n"
    )
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf"])
def test_a_margin_must_be_above_0(cli: Cli, folder: Path, value: str) -> None:
    refused = cli("report", str(folder), f"--plan={value}")
    assert refused.code == 2 and "must be a number above 0, such as 0.01" in refused.err
    assert refused.err.count("\n") == 1


def test_live_reports_have_a_plan(cli: Cli, folder: Path) -> None:
    (folder / "sweep.json").write_text(json.dumps({"match": None, "jobs": []}))
    done = cli("report", str(folder), "--live", "--every", "0.1", "--plan", "0.01")
    assert done.code == 0 and "Seeds to detect 0.01" in done.out
