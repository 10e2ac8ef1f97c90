"""Runs of several objectives: separate results, and no comparison of their losses."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from minigpt.cli import main
from minigpt.loss_of import NOT_COMPARED
from minigpt.report.comparison import compare
from minigpt.report.continuing import continuing, shared_lines
from minigpt.report.listing import list_runs
from minigpt.report.runs import CONTINUATION, read_run
from minigpt.report.statistics import Interval, paired_p
from minigpt.report.verdict import verdict
from minigpt.report.wandb_report import build
from tests.conftest import TEXT, TINY, Cli
from tests.report.synthetic import config, make_run

NAMES = ("causal", "prefix", "masked")
HEADINGS = [
    "objective=causal: losses of every next token",
    "objective=prefix: losses of the second half of each window, given the first",
    "objective=masked: losses of masked tokens",
]
QUIET = ["trainer.sample_every=null" if "sample_every" in o else o for o in TINY]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, prepared_data: Path) -> Path:
    """Train two seeds of two learning rates for each objective. Tests must not change them."""
    folder = tmp_path_factory.mktemp("objectives")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setenv("MINIGPT_DATA", str(prepared_data))
        for number, (name, lr, seed) in enumerate(product(NAMES, ("0.01", "0.02"), (1, 2))):
            own = [f"objective={name}", f"optimizer.lr={lr}", f"seed={seed}"]
            arguments = ["train", *QUIET, *own, f"hydra.run.dir=runs/{number:02}_{name}"]
            patched.setattr(sys, "argv", ["minigpt", *arguments])
            assert main(arguments) == 0
    return folder / "runs"


@pytest.fixture
def runs(workdir: Path, trained: Path) -> Path:
    """Copy the runs to `runs` in the working directory."""
    return shutil.copytree(trained, Path("runs"))


def only(runs: Path, *names: str) -> Path:
    """Remove the runs of other objectives."""
    for path in [*runs.iterdir()]:
        if path.name.partition("_")[2] not in names:
            shutil.rmtree(path)
    return runs


def test_report_has_a_part_for_each_objective(cli: Cli, runs: Path) -> None:
    done = cli("report", "runs", "--equivalent", "1", "--plan", "0.1")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == NOT_COMPARED and done.out.count(NOT_COMPARED) == 1
    assert [line for line in lines if line.startswith("objective=")] == HEADINGS
    groups = compare(["runs"], equivalent=1.0, plan=0.1).groups
    for heading, group in zip(HEADINGS, groups, strict=True):
        assert lines[lines.index(heading) + 1] == verdict(group)
    for name in NAMES:
        for title in ("Leaderboard", "Differences to optimizer.lr=0.01"):
            assert any(line == f"{title}, {name}" for line in lines), title
    summary = "4 of 4 runs finished, 2 designs; seeds: 1, 2; baseline: optimizer.lr=0.01; "
    assert lines.count(f"{summary}ranked by validation loss (nats/token)") == 3
    for name in NAMES:
        with Path(f"runs/report_differences_{name}.csv").open() as file:
            (row,) = csv.DictReader(file)
        results = [read_run(path) for path in sorted(runs.glob(f"*_{name}"))]
        low1, low2, high1, high2 = (run.result["val_loss"] for run in results)
        assert row["design"] == "optimizer.lr=0.02"
        assert float(row["difference"]) == pytest.approx(((high1 - low1) + (high2 - low2)) / 2)
        assert float(row["p_holm"]) == pytest.approx(paired_p([high1 - low1, high2 - low2]))


def test_page_and_tables_of_several_objectives(cli: Cli, runs: Path) -> None:
    assert cli("report", "runs").code == 0
    page = Path("runs/report.html").read_text()
    verdicts = [line for line in page.splitlines() if line.startswith('<p class="verdict">')]
    assert [f"<b>{name}:</b> " in line for name, line in zip(NAMES, verdicts, strict=True)] == [
        True
    ] * 3
    assert page.index(verdicts[2]) < page.index(f">{HEADINGS[0]}</h2>")
    for name, heading in zip(NAMES, HEADINGS, strict=True):
        assert page.count(f">{heading}</h2>") == 1
        for what in ("leaderboard", "differences", "runs"):
            assert page.count(f'<section id="{what}_{name}">') == 1
        assert page.count(f'id="plot-learning_val_loss_{name}"') == 1
    assert page.count('<section id="continuing">') == 1 and page.count(NOT_COMPARED) == 1
    data = page.partition('id="plots">')[2].partition("</script>")[0]
    plots = json.loads(data)
    learning = {name: plot for name, plot in plots.items() if name.startswith("learning_val_loss")}
    assert [*learning] == [f"learning_val_loss_{name}" for name in NAMES]
    assert all(len(plot["figure"]["data"]) == 4 for plot in learning.values())  # two designs
    latex, text = Path("runs/report.tex").read_text(), Path("runs/report.md").read_text()
    labels = [line for line in latex.splitlines() if "\\label" in line]
    assert len({*labels}) == len(labels)
    assert text.count("# objective=") == 3 and text.count("## Leaderboard") == 3


def test_live_report_has_a_line_for_each_objective(cli: Cli, runs: Path) -> None:
    done = cli("report", "runs", "--live", "--every", "0.1")
    assert done.code == 0, done.err
    for line, name in zip(done.out.splitlines(), NAMES, strict=False):
        assert line.startswith(f"{name}: 4 of 4 runs finished, 2 designs")


def test_continuing_text_compares_causal_and_prefix(runs: Path) -> None:
    comparison = compare(["runs"])
    table = continuing(comparison)
    objectives = [row[1] for row in table.rows]
    assert sorted(map(str, objectives)) == ["causal", "causal", "prefix", "prefix"]
    means = [row[2].mean for row in table.rows if isinstance(row[2], Interval)]
    assert means == sorted(means) and len(means) == 4
    by_design: dict[tuple[Any, Any], dict[int, float]] = {}
    for path in runs.iterdir():
        run = read_run(path)
        value = run.number(CONTINUATION)
        key = (run.config["optimizer.lr"], run.config["objective.name"])
        assert (value is None) == (key[1] == "masked")
        if value is not None and run.seed is not None:
            by_design.setdefault(key, {})[run.seed] = value
        if key[1] == "prefix":
            assert value == run.result["val_bits_per_byte"]
    base = by_design[0.01, "causal"]
    for row in table.rows:
        own = by_design[float(str(row[0]).removeprefix("optimizer.lr=")), row[1]]
        if own == base:
            assert row[3:] == [None] * 5
            continue
        assert isinstance(row[3], Interval) and row[4] == 2
        assert row[3].mean == pytest.approx(sum(own[s] - base[s] for s in (1, 2)) / 2)
        assert row[5] == pytest.approx(paired_p([own[s] - base[s] for s in (1, 2)]))


@pytest.mark.parametrize(
    "change", [{"model__block_size": 16}, {"tokenizer__name": "bpe"}, {"data__name": "text"}]
)
def test_continuing_text_of_other_tokens_is_not_compared(
    workdir: Path, change: dict[str, Any]
) -> None:
    for (name, own), seed in product((("causal", {}), ("prefix", change)), (1, 2)):
        settings = config(seed=seed, **own)
        settings["objective"] = {"name": name}
        make_run(workdir / "runs" / f"{name}_{seed}", settings, result={CONTINUATION: 1.0 + seed})
    comparison = compare(["runs"])
    assert len(comparison.groups) == 2 and not continuing(comparison).rows
    assert shared_lines(comparison)[1].startswith("Continuing text is not compared: ")


def test_baseline_of_each_objective(cli: Cli, runs: Path) -> None:
    comparison = compare(["runs"], baseline="0.02")
    labels = [g.baseline and g.baseline.label for g in comparison.groups]
    assert labels == ["optimizer.lr=0.02"] * 3
    shutil.rmtree("runs/02_causal")
    shutil.rmtree("runs/03_causal")
    comparison = compare(["runs"], baseline="optimizer.lr=0.02")  # which no causal run has
    labels = [g.baseline and g.baseline.label for g in comparison.groups]
    assert labels == ["model=rope", "optimizer.lr=0.02", "optimizer.lr=0.02"]
    refused = cli("report", "runs", "--baseline", "lr=3")
    assert refused.code == 2 and "--baseline=lr=3: no such design" in refused.err


def test_one_objective_alone(cli: Cli, runs: Path) -> None:
    only(runs, "masked")
    done = cli("report", "runs")
    assert done.out.splitlines()[0] == HEADINGS[2] and NOT_COMPARED not in done.out
    assert Path("runs/report_leaderboard.csv").exists() and "\nLeaderboard\n" in done.out
    assert cli("runs", "runs").out.splitlines()[0] == HEADINGS[2]
    assert cli("report", "runs", "--by", "optimizer.lr").code == 0


@pytest.mark.parametrize("options", [["--by", "optimizer.lr"], ["--by", "objective"], ["--fit"]])
def test_options_over_all_designs_are_refused(cli: Cli, runs: Path, options: list[str]) -> None:
    refused = cli("report", "runs", *options)
    assert refused.code == 2 and refused.err.count("\n") == 1
    assert NOT_COMPARED in refused.err and "objective=causal, prefix, masked" in refused.err


def test_tests_need_seeds_of_some_objective(cli: Cli, runs: Path) -> None:
    for path in [*runs.iterdir()]:
        if read_run(path).seed == 2:
            shutil.rmtree(path)
    refused = cli("report", "runs", "--plan", "0.1")
    assert refused.code == 2 and "needs 2 seeds" in refused.err


def test_runs_are_listed_by_objective(cli: Cli, runs: Path) -> None:
    lines = cli("runs", "runs").out.splitlines()
    assert sorted(line for line in lines if line.startswith("objective=")) == sorted(HEADINGS)
    assert lines[-2:] == [NOT_COMPARED, "12 of 12 runs"]
    for table in list_runs([Path("runs")], [], [], 0).tables():
        name = table.title.partition(":")[0].removeprefix("objective=")
        assert len(table.rows) == 4 and all(str(row[0]).endswith(name) for row in table.rows)
        assert {row[1] for row in table.rows} == {"rope"}
    by_name = {row["name"]: row for row in json.loads(cli("runs", "runs", "--json").out)}
    assert "objective" not in by_name["runs/00_causal"]
    assert by_name["runs/08_masked"]["objective"]["name"] == "masked"
    assert by_name["runs/08_masked"]["loss_of"] == "masked tokens"


def test_masks_of_other_sizes_are_other_objectives(workdir: Path) -> None:
    for fraction, seed in product((0.3, 0.15), (1, 2)):
        settings = config(seed=seed)
        settings["objective"] = {"name": "masked", "fraction": fraction, "span": 1}
        make_run(workdir / "runs" / f"{seed}_{fraction}", settings)
    groups = compare(["runs"]).groups
    assert [g.objective for g in groups] == ["masked fraction=0.3", "masked fraction=0.15"]
    assert [g.suffix for g in groups] == ["_masked_fraction_0.3", "_masked_fraction_0.15"]
    assert [len(g.designs) for g in groups] == [1, 1]


def test_runs_without_an_objective_are_causal(workdir: Path) -> None:
    """Earlier versions wrote none. A teacher is part of the design only."""
    make_run(workdir / "runs" / "old", config(seed=1))
    settings = config(seed=1)
    settings["objective"] = {"name": "causal", "teacher": "x", "temperature": 2.0, "weight": 0.5}
    make_run(workdir / "runs" / "new", settings)
    (comparison,) = compare(["runs"]).groups
    assert comparison.heading == "" and len(comparison.designs) == 2


def test_wandb_report_has_panels_for_each_objective(runs: Path) -> None:
    comparison = compare(["runs"])
    for number, run in enumerate(run for g in comparison.groups for run in g.collection.runs):
        run.manifest["tracker_id"] = f"id{number}"
    report = build(comparison, "entity", "project", "title", online=False)
    blocks: list[Any] = report.blocks
    headings = [block.text for block in blocks if type(block).__name__ == "H1"]
    assert headings == HEADINGS
    grids = [block for block in blocks if type(block).__name__ == "PanelGrid"]
    ids = [grid.runsets[0].filters for grid in grids]
    assert [[f'"id{n}"' in text for n in (0, 4, 8)] for text in ids] == [
        [True, False, False],
        [False, True, False],
        [False, False, True],
    ]
    for run in comparison.collection.runs:
        del run.manifest["tracker_id"]
    blocks = build(comparison, "entity", "project", "title", online=False).blocks
    assert sum(type(block).__name__ == "PanelGrid" for block in blocks) == 2


def test_sweep_over_objectives_lists_them_apart(cli: Cli) -> None:
    arguments = ("objective=causal,masked", "trainer.eval_every=12", "hydra.sweep.dir=sweep")
    done = cli("train", "-m", *QUIET, *arguments)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert "Jobs, objective=causal" in lines and "Jobs, objective=masked" in lines
    assert NOT_COMPARED in lines
    ends = {line.split()[1]: line for line in lines if "  finished  val loss" in line}
    assert "nats/token (masked tokens)" in ends["objective=masked"]
    assert "(" not in ends["objective=causal"]


@pytest.mark.parametrize(
    ("command", "overrides"),
    [
        ("compare", ["objective=causal,masked"]),
        ("compare", ["objective=masked", "objective.fraction=0.15,0.3"]),
        ("compare", ["objective=masked", "ffn=gelu,swiglu", "--space", "objective.span=1,2"]),
        ("tune", ["objective=causal,prefix"]),
        ("tune", ["objective=denoise", "objective.span=2,3"]),
    ],
)
def test_searches_over_objectives_are_refused(cli: Cli, command: str, overrides: list[str]) -> None:
    if command == "tune":
        pytest.importorskip("ray")
    refused = cli(command, *QUIET, *overrides)
    assert refused.code == 2, refused.out
    assert refused.err.count("\n") == 1 and NOT_COMPARED in refused.err
    assert not Path("runs").exists()


# ---- minigpt eval ----


@pytest.mark.parametrize(
    "options", [["--contexts", "4"], ["--by-position"], ["--random-batches", "2"]]
)
@pytest.mark.parametrize("run", ["04_prefix", "08_masked"])
def test_eval_refuses_options_of_causal_models(
    cli: Cli, runs: Path, run: str, options: list[str]
) -> None:
    refused = cli("eval", f"runs/{run}", *options)
    assert refused.code == 2 and refused.err.count("\n") == 1
    assert f"{options[0]}: needs a loss of every token" in refused.err
    assert not Path(f"runs/{run}/eval.json").exists()


def test_eval_says_which_tokens_and_takes_lengths(cli: Cli, runs: Path) -> None:
    for run, loss_of in (("04_prefix", "the second half of each"), ("08_masked", "masked tokens")):
        done = cli("eval", f"runs/{run}", "--lengths", "4,8,16")
        assert done.code == 0, done.err
        assert f"\nlosses of {loss_of}" in done.out
        entry = json.loads(Path(f"runs/{run}/eval.json").read_text())["best"]
        assert loss_of in entry["loss_of"] and [*entry["lengths"]] == ["4", "8", "16"]
        assert loss_of in Path(f"runs/{run}/eval/best.html").read_text()
    done = cli("eval", "runs/00_causal", "--lengths", "4", "--contexts", "4", "--by-position")
    assert done.code == 0, done.err
    assert (
        "losses of" not in done.out
        and "loss_of" not in Path("runs/00_causal/eval.json").read_text()
    )
    comparison = compare(["runs"])
    tables = cli("report", "runs").out
    assert tables.count("Loss by length of the windows, ") == len(comparison.groups)


def test_eval_of_denoise_has_no_longer_windows(cli: Cli) -> None:
    assert cli("train", *QUIET, "objective=denoise", "hydra.run.dir=run").code == 0
    refused = cli("eval", "run", "--lengths", "4,16")
    assert refused.code == 2 and refused.err.count("\n") == 1
    assert "--lengths=16: objective=denoise has sentinels for windows of up to 8" in refused.err
    assert cli("eval", "run", "--lengths", "4,8").code == 0
