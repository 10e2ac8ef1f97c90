"""`minigpt compare`, through the command line: the search, the fresh seeds and the report."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from minigpt.files import read_json, write_json
from tests.conftest import TINY, Cli

DESIGNS = ["compare", *TINY, "trainer.sample_every=null", "positional=learned,rope"]
ONE_SEED = ["--budget=2", "--seeds=2", "--search-seeds=1", "--dir=all"]
SMALL = [*DESIGNS, "--budget=3", "--seeds=2", "--search-seeds=1", "--dir=all"]


def rows(name: str, folder: str = "all") -> list[dict[str, str]]:
    """Return a table of the report."""
    with Path(folder, f"report_{name}.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def manifest(run: Path) -> dict[str, Any]:
    """Return a run's manifest."""
    return json.loads((run / "manifest.json").read_text())


def losses(folder: str) -> dict[str, tuple[float, float]]:
    """Return validation and test loss of every run."""
    results = {
        path.parent: json.loads(path.read_text()) for path in Path(folder).rglob("result.json")
    }
    return {
        f"{run.parent.name}/{run.name}": (result["val_loss"], result["test_loss"])
        for run, result in results.items()
    }


def test_every_design_is_searched_alike_and_compared_on_fresh_seeds(cli: Cli) -> None:
    done = cli(*SMALL)
    assert done.code == 0, done.err
    assert "space      optimizer.lr: 0.002, 0.004, 0.008" in done.out
    # 12 steps want more than three times the configured learning rate.
    assert "widened    for every design: a best value of optimizer.lr is an edge" in done.out
    saved = json.loads(Path("all/compare.json").read_text())
    spaces = [[trial["values"] for trial in design["trials"]] for design in saved["designs"]]
    assert spaces[0] == spaces[1] and len(spaces[0]) == 5
    for design in saved["designs"]:
        best = min(design["trials"], key=lambda trial: trial["val_loss"])
        assert design["chosen"] == best["values"]

    # The same settings and seeds, but nothing that chose is part of the result.
    seeds = {p: {manifest(r)["resolved"].get("seed", r.name) for r in Path("all", p).iterdir()
                 if r.is_dir()} for p in ("search", "final")}  # fmt: skip
    assert len(seeds["final"]) == 4 and len(seeds["search"]) == 10
    for run in Path("all/final").iterdir():
        if run.is_dir():
            chosen = {tuple(design["chosen"].items()) for design in saved["designs"]}
            assert tuple(manifest(run)["tuned"].items()) in chosen
    configs = "".join(path.read_text() for path in Path("all").rglob("config.yaml"))
    assert configs.count("seed: 1001\n") == 10
    assert configs.count("seed: 1\n") == configs.count("seed: 2\n") == 2
    assert configs.count("test_fraction: 0.5") == 14

    assert "ranked by test loss (nats/token)" in done.out
    assert "Each design has its own optimizer.lr and optimizer.weight_decay" in done.out
    assert "several choices differ" not in done.out
    assert {row["design"] for row in rows("leaderboard")} == {
        "positional=learned",
        "positional=rope",
    }
    by_design = {row["design"]: row for row in rows("chosen")}
    for design in saved["designs"]:
        row = by_design[design["label"]]
        assert float(row["optimizer.lr"]) == design["chosen"]["optimizer.lr"]
        assert row["trials"] == "5" and row["diverged"] == "0"
    page = Path("all/report.html").read_text()
    assert "Chosen by the search" in page and '"sensitivity"' in page

    # A report of the folder leaves the search out, and the page of the comparison as it is.
    reported = cli("report", "all")
    assert reported.code == 0 and "4 of 4 runs finished, 2 designs; seeds: 1, 2" in reported.out
    assert "Left out are the runs that chose these values: all/search" in reported.out
    assert Path("all/final/report.html").is_file()
    assert Path("all/report.html").read_text() == page
    assert "10 of 10 runs finished" in cli("report", "all/search").out

    # The same command trains nothing again; another comparison needs another folder.
    before = {path: path.stat().st_mtime_ns for path in Path("all").rglob("result.json")}
    again = cli(*SMALL)
    assert again.code == 0
    assert before == {path: path.stat().st_mtime_ns for path in Path("all").rglob("result.json")}
    other = cli(*DESIGNS, "--budget=4", "--seeds=2", "--dir=all")
    assert other.code == 2 and "contains a comparison with other options" in other.err

    # Seeds can be added: the search and the first ones stay.
    more = cli(*[word.replace("--seeds=2", "--seeds=3") for word in SMALL])
    assert more.code == 0 and "6 of 6 runs finished, 2 designs; seeds: 1, 2, 3" in more.out
    now = {path: path.stat().st_mtime_ns for path in Path("all").rglob("result.json")}
    assert len(now) == len(before) + 2 and before.items() <= now.items()
    removed = cli("rm", "--yes", "all")
    assert removed.code == 0 and "comparison with all its runs, 16" in removed.out
    assert not Path("all").exists()


def test_a_design_that_diverges_at_some_rates_is_chosen_at_another(cli: Cli) -> None:
    space = "--space=optimizer.lr=0.004,1e30"
    done = cli(*DESIGNS, space, *ONE_SEED, "optimizer=adamw")
    assert done.code == 0, done.err
    for row in rows("chosen"):
        assert float(row["optimizer.lr"]) == 0.004 and row["diverged"] == "1"
    diverged = [p for p in Path("all/search").rglob("result.json") if "Diverged" not in p.name
                and json.loads(p.read_text()).get("diverged")]  # fmt: skip
    assert len(diverged) == 2
    stamps = [path.stat().st_mtime_ns for path in diverged]
    again = cli(*DESIGNS, space, *ONE_SEED, "optimizer=adamw")
    assert again.code == 0  # a run that diverged would do so again
    assert stamps == [path.stat().st_mtime_ns for path in diverged]


def test_every_rate_diverges(cli: Cli) -> None:
    done = cli(*DESIGNS, "--space=optimizer.lr=1e30,2e30", "--budget=2", "--seeds=2", "--dir=all")
    assert done.code == 1 and "every run diverged" in done.err


def test_without_a_test_split_a_line_says_what_is_reported(cli: Cli) -> None:
    done = cli(*SMALL, "data.test_fraction=0", "--space=optimizer.lr=0.004,0.02")
    assert done.code == 0, done.err
    assert "warning    data.test_fraction=0: the report is of the text that chose" in done.out
    assert "ranked by validation loss (nats/token)" in done.out


def test_final_runs_of_earlier_code_are_left_out(cli: Cli) -> None:
    command = [*SMALL, "--space=optimizer.lr=0.004,0.02", "--budget=2"]
    assert cli(*command).code == 0
    for run in Path("all/final").glob("*/manifest.json"):
        write_json(run, read_json(run) | {"code_sha256": "of earlier code"})
    assert cli(*command).code == 0
    assert len([*Path("all/final").glob("*/result.json")]) == 8
    assert {row["runs"] for row in rows("leaderboard")} == {"2"}
    assert len(rows("runs")) == 4


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_preset_names_the_designs_and_its_seeds_are_replaced(cli: Cli) -> None:
    options = [*TINY, "trainer.sample_every=null", "--space=optimizer.lr=1e-3,4e-3"]
    done = cli("compare", "sweep=norm", *options, *ONE_SEED)
    assert done.code == 0, done.err
    assert len(rows("leaderboard")) >= 4 and {row["runs"] for row in rows("leaderboard")} == {"2"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["positional=rope"], "nothing to compare"),
        (["positional=rope,alibi", "seed=1"], "a comparison has its own seeds"),
        (["positional=rope,alibi", "resume=latest"], "makes its own runs"),
        (["positional=rope,alibi", "hydra.sweep.dir=x"], "makes its own runs"),
        (["positional=rope,alibi", "optimizer.lr=0.1"], "optimizer.lr=0.1: is searched"),
        (["positional=rope,ropy"], "ropy"),
        (["positional=rope,alibi", "--space=foo.bar=1,2"], "foo.bar: no such option"),
        (["positional=rope,alibi", "--space=dataset=1,2"], "dataset: no such option"),
        (["positional=rope,alibi", "--space=positional=rope,t5"], "is what the designs differ in"),
        (
            ["model=rope,alibi", "--space=positional=rope,alibi"],
            "model=rope and model=alibi: are the same design with",
        ),
        (
            ["positional=rope,alibi", "--space=model.vocab_multiple=interval(1,3)", "--budget=18"],
            "not a valid integer; for whole numbers write int(interval(LOW, HIGH))",
        ),
        (
            ["positional=rope,alibi", "--space=optimizer.beta1=a,b", "--budget=6"],
            "not a valid float",
        ),
        (["positional=rope,alibi", "--dir=text.txt"], "is a file; name a folder"),
        (["positional=rope,alibi", "--dir=."], "contains other files"),
        (["positional=rope,alibi", "--seeds=many"], "--seeds"),
        (["positional=rope,alibi", "--search=best"], "--search"),
        (["positional=rope,alibi", "--search=tpe", "--search-seeds=2"], "with one seed"),
        (["positional=rope,alibi", "--search=tpe", "trainer.eval_every=null"], "at evaluations"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(
    cli: Cli, arguments: list[str], message: str
) -> None:
    before = {*Path().iterdir()}
    done = cli("compare", *TINY, *arguments)
    assert done.code == 2 and message in done.err, done.err
    assert len(done.err.splitlines()) == 1
    assert {*Path().iterdir()} == before


@pytest.mark.exhaustive
def test_a_search_by_ray_tune(cli: Cli) -> None:
    """Six trials each, some of which ASHA stops; another call trains nothing again."""
    command = [*DESIGNS, "--search=tpe", "--budget=6", "--seeds=2", "--dir=all"]
    command += ["trainer.eval_every=2", "--space=optimizer.lr=interval(0.002,0.05)"]
    program = [sys.executable, "-m", "minigpt.cli", *command]
    done = subprocess.run(program, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "space      optimizer.lr: 0.002, 0.018, 0.034, 0.05, or between" in done.stdout
    saved = json.loads(Path("all/compare.json").read_text())
    by_design = {row["design"]: row for row in rows("chosen")}
    for design in saved["designs"]:
        (folder,) = Path("all/search", design["label"]).iterdir()  # this space has no ratio
        trials = json.loads((folder / "tune.json").read_text())["trials"]
        full = [trial for trial in trials if trial["status"] == "finished"]
        best = min(full, key=lambda trial: trial["value"])
        assert design["chosen"] == best["values"]
        row = by_design[design["label"]]
        assert int(row["trials"]) == len(trials) == 6
        assert int(row["stopped"]) == len(trials) - len(full) > 0
        rates = [trial["values"]["optimizer.lr"] for trial in trials]
        assert len({*rates}) == len(rates)  # proposed, not a grid
    assert {row["runs"] for row in rows("leaderboard")} == {"2"}
    assert '"sensitivity"' in Path("all/report.html").read_text()
    before = {path: path.stat().st_mtime_ns for path in Path("all").rglob("result.json")}
    again = subprocess.run(program, check=False, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert before == {path: path.stat().st_mtime_ns for path in Path("all").rglob("result.json")}
    other = cli(*[option.replace("tpe", "grid") for option in command])
    assert other.code == 2 and "contains a comparison with other options" in other.err


@pytest.mark.exhaustive
def test_a_killed_comparison_ends_equal(cli: Cli) -> None:
    command = [*DESIGNS, "--space=optimizer.lr=0.004,0.02", *ONE_SEED]
    assert cli(*command).code == 0
    expected, table = losses("all"), rows("differences")
    shutil.rmtree("all")
    program = [sys.executable, "-m", "minigpt.cli", *command]
    for n_results, number in ((1, signal.SIGKILL), (5, signal.SIGTERM)):  # in each of its sweeps
        process = subprocess.Popen(program, start_new_session=True)
        while len([*Path("all").rglob("result.json")]) < n_results:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(60) in (-number, 128 + number)
    finished = subprocess.run(program, check=False, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert losses("all") == expected
    assert rows("differences") == table
