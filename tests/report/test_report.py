"""`minigpt report`: what it prints and writes."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from minigpt.report.comparison import compare
from minigpt.report.evaluations import by_position
from minigpt.report.plots import against, forest, learning, pareto, plots
from minigpt.report.results import leaderboard
from minigpt.report.statistics import Interval
from tests.conftest import TINY, Cli
from tests.report.synthetic import POSITIONS, config, make_run, make_sweep


def test_a_pipe_gets_plain_lines_and_files(cli: Cli, tmp_path: Path) -> None:
    folder = make_sweep(tmp_path / "sweep", POSITIONS)
    done = cli("report", str(folder), "--baseline", "rope", "--out", "out/page.html")
    assert done.code == 0, done.err
    assert done.out.splitlines()[0] == (
        "learned beats rope (by 0.099 nats/token), which beats alibi (by 0.10)."
    )
    assert "9 of 9 runs finished, 3 designs; seeds: 1, 2, 3; baseline: positional=rope" in done.out
    assert not {"│", "┃", "\x1b"} & {*done.out}
    first = next(line for line in done.out.splitlines() if line.startswith("positional=learned "))
    assert "★" in first and " ± " in first
    files = {path.name for path in Path("out").iterdir()}
    names = ("leaderboard", "differences", "lengths", "configs", "runs", "versions")
    assert files == {"page.html", "page.md", "page.tex", *(f"page_{name}.csv" for name in names)}
    rows = list(csv.DictReader(Path("out/page_leaderboard.csv").read_text().splitlines()))
    assert rows[0]["design"] == "positional=learned" and rows[0]["runs"] == "3"
    assert rows[0]["flops_per_token"] == "6000" and float(rows[0]["val_loss_half_interval"]) > 0
    lengths = list(csv.DictReader(Path("out/page_lengths.csv").read_text().splitlines()))
    assert lengths[0]["at_16"] and not lengths[0]["at_32"]
    runs = list(csv.DictReader(Path("out/page_runs.csv").read_text().splitlines()))
    assert runs[0]["command"] == "minigpt train seed=1" and runs[0]["commit"] == "a" * 40
    assert "\\toprule" in Path("out/page.tex").read_text()
    assert "## Leaderboard" in Path("out/page.md").read_text()


def test_the_page_has_losses_of_exact_contexts(cli: Cli, tmp_path: Path) -> None:
    folder = make_sweep(tmp_path / "sweep", POSITIONS)
    for file in folder.rglob("eval.json"):
        entries = json.loads(file.read_text())
        entries["last"]["contexts"] = entries["last"]["lengths"]
        file.write_text(json.dumps(entries))
    assert cli("report", str(folder), "--out", "page.html").code == 0
    page = Path("page.html").read_text()
    assert '<section id="lengths">' in page and '<section id="contexts">' in page


def test_a_terminal_gets_tables(tmp_path: Path) -> None:
    from rich.console import Console

    from minigpt.report.show import show

    found = compare([str(make_sweep(tmp_path, POSITIONS))], [], None)
    console = Console(width=100, force_terminal=True, record=True, file=io.StringIO())
    show(found, console)
    text = console.export_text()
    assert "┃" in text and "Leaderboard" in text and "positional=alibi" in text


def test_bands_are_over_seeds_not_over_runs_of_a_group(tmp_path: Path) -> None:
    for norm, more in (("pre", 0.0), ("post", 1.0)):
        for seed in (1, 2):
            for positional in ("rope", "alibi"):
                settings = config(positional, seed, model__norm__placement=norm)
                folder = tmp_path / f"{positional}_{norm}_{seed}"
                make_run(folder, settings, 1.5 + more + seed / 100, evaluated=True)
    found = compare([str(tmp_path)], ["positional"], None)
    plot, table = learning(found, "val_loss"), found.designs[0].interval("val_loss")
    assert plot is not None and table is not None and table.n == 2
    traces = plot.figure.to_plotly_json()["data"]
    outline = [*next(trace["y"] for trace in traces if trace.get("fill"))]  # there and back
    assert (outline[3] - outline[4]) / 2 == pytest.approx(table.half, abs=1e-5)
    rows = by_position(found.designs[0], "last", 8)
    assert [row[0] for row in rows] == pytest.approx([3.01, 3.02])  # 1.5 + 1 / 1, 1 more in half


def test_real_runs_from_sweep_to_report(cli: Cli, workdir: Path) -> None:
    swept = cli("train", "-m", "positional=rope,alibi", "seed=1,2", *TINY)
    assert swept.code == 0, swept.err
    runs = [path.parent for path in Path("runs").rglob("result.json")]
    done = cli("report", "latest")
    assert done.code == 0, done.err
    assert "4 of 4 runs finished, 2 designs; seeds: 1, 2; baseline: positional=rope" in done.out
    assert "several choices" not in done.out
    page = runs[0].parent / "report.html"
    assert page.is_file() and "positional=alibi" in page.read_text(encoding="utf-8")
    losses = [
        json.loads((run / "result.json").read_text())["val_loss"]
        for run in runs
        if "alibi" in (run / "config.yaml").read_text()
    ]
    rows = csv.DictReader((runs[0].parent / "report_leaderboard.csv").read_text().splitlines())
    alibi = next(row for row in rows if row["design"] == "positional=alibi")
    assert float(alibi["val_loss"]) == pytest.approx(sum(losses) / 2)
    one = cli("report", str(runs[0]), "--out", "one.html")
    assert one.code == 0 and "One seed gives no confidence interval" in one.out


def test_neither_help_nor_a_report_imports_torch(tmp_path: Path) -> None:
    make_sweep(tmp_path, POSITIONS, seeds=(1,))
    code = (
        "import sys; from minigpt.cli import main; main(sys.argv[1:]);"
        "print([m for m in ('torch', 'omegaconf', 'scipy', 'plotly') if m in sys.modules])"
    )
    for arguments, loaded in (
        (["--help"], "[]"),
        (["runs", str(tmp_path)], "[]"),
        (["report", str(tmp_path)], "['plotly']"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == loaded


def test_the_shell_completes_sweeps_and_runs(
    cli: Cli, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_sweep(workdir / "runs" / "sweep", {"rope": {}}, seeds=(1,))
    monkeypatch.setenv("COMP_LINE", "minigpt report runs/s")
    assert cli("-sc", "query=bash").out.split() == ["runs/sweep", "runs/sweep/rope_seed=1"]
    monkeypatch.setenv("COMP_LINE", "minigpt repo")
    assert cli("-sc", "query=bash").out.split() == ["report"]


def test_active_parameters_where_they_are_fewer(tmp_path: Path) -> None:
    make_run(tmp_path / "dense", config(positional="alibi"))
    columns = leaderboard(compare([str(tmp_path)], [], None)).columns
    assert "parameters_active" not in [column.key for column in columns]
    counts = {"parameters": {"total": 1000, "active": 400, "positional": 0}}
    make_run(tmp_path / "routed", config(), result=counts)
    table = leaderboard(compare([str(tmp_path)], [], None))
    place = [column.key for column in table.columns].index("parameters_active")
    assert {row[0]: row[place] for row in table.rows} == {
        "positional=alibi": None,
        "positional=rope": 400,
    }


def test_times_are_medians_with_ranges_and_axes_start_at_zero(tmp_path: Path) -> None:
    """One slow run of three: an interval of the mean would reach below 0."""
    for seed, seconds in ((1, 4.0), (2, 400.0), (3, 5.0)):
        measured = {"seconds": seconds, "tokens_per_second": 80000 / seconds}
        make_run(tmp_path / str(seed), config(seed=seed), 1.5 + seed / 100, result=measured)
    comparison = compare([str(tmp_path)])
    table = leaderboard(comparison)
    (texts,) = table.texts()
    assert texts[table.head.index("tokens/s")] == "16,000 (200 to 20,000)"
    assert "±" in texts[table.head.index("val loss")]
    make_run(tmp_path / "other", config("alibi"), 1.6, result={"seconds": 7.0})
    comparison = compare([str(tmp_path)])
    by_name = {plot.name: plot for plot in plots(comparison, None)}
    _, point, _ = by_name["time"].figure.to_plotly_json()["data"]
    assert point["x"] == [5.0]
    assert (point["error_x"]["arrayminus"], point["error_x"]["array"]) == ([1.0], [395.0])
    for name, plot in by_name.items():
        figure = plot.figure.to_plotly_json()
        if name != "forest":
            assert figure["layout"]["xaxis"]["rangemode"] == "nonnegative"
            assert all(min(trace["x"], default=0) >= 0 for trace in figure["data"])
    (seconds_of_curve,) = (c for c in by_name["learning_val_loss"].choices if c.name == "seconds")
    assert seconds_of_curve.x[1][0] == pytest.approx(1.02)  # the median of 1.01, 1.02, 1.03


def test_bands_and_bars_of_losses_end_at_zero(tmp_path: Path) -> None:
    """Two seeds that disagree have an interval that reaches below 0, which no loss does."""
    for seed, loss in ((1, 0.5), (2, 2.0)):
        for n, name in enumerate(("rope", "alibi")):
            cost = {"flops_per_token": 6000 + n}
            make_run(tmp_path / f"{name}{seed}", config(name, seed), loss + n / 10, result=cost)
    comparison = compare([str(tmp_path)])
    half = comparison.designs[0].interval("val_loss")
    assert half is not None and half.low < 0
    curve, costs = learning(comparison, "val_loss"), against(comparison, "flops")
    assert curve is not None and costs is not None
    bands = [t for t in curve.figure.to_plotly_json()["data"] if t.get("fill")]
    assert bands and all(min(band["y"]) == 0 for band in bands)
    for point in costs.figure.to_plotly_json()["data"][1:]:
        assert point["error_y"]["arrayminus"] == point["y"]
        assert point["error_y"]["array"][0] > point["y"][0]


def test_the_forest_has_paired_differences_by_rank(tmp_path: Path) -> None:
    make_sweep(tmp_path, POSITIONS)
    comparison = compare([str(tmp_path)], baseline="rope")
    plot = forest(comparison)
    assert plot is not None and [c.name for c in plot.choices] == ["minus rope", "minus learned"]
    rows = [comparison.differences.get(design.label) for design in comparison.ranked]
    for row, x, y in zip(rows, plot.choices[0].x, plot.choices[0].y, strict=True):
        interval = Interval(0.0, 0.0, 3) if row is None else row.interval
        assert x == pytest.approx([interval.low, interval.mean, interval.high], abs=1e-6)
        assert len({*y}) == 1
    assert [y[0] for y in plot.choices[1].y] == [0, -1, -2]  # the lowest loss is on top
    layout = plot.figure.to_plotly_json()["layout"]
    assert layout["yaxis"]["ticktext"] == ["learned", "rope", "alibi"]
    first = forest(compare([str(tmp_path)]))
    assert first is not None and [c.name for c in first.choices] == ["minus learned"]
    one = make_run(tmp_path / "one" / "run", config())
    assert forest(compare([str(one)])) is None


def test_the_pareto_line() -> None:
    points = {"a": (1.0, 2.0), "b": (2.0, 2.1), "c": (3.0, 1.5), "d": (3.0, 1.6), "e": (9.0, 1.5)}
    assert pareto(points) == ["a", "c"]


def test_designs_off_the_pareto_line_are_open(tmp_path: Path) -> None:
    for name, loss, flops in (("learned", 1.5, 1), ("rope", 1.6, 2), ("alibi", 1.4, 3)):
        make_run(tmp_path / name, config(name), loss, result={"flops_per_token": flops})
    comparison = compare([str(tmp_path)])
    plot = against(comparison, "flops")
    assert plot is not None
    line, *points = plot.figure.to_plotly_json()["data"]
    assert line["y"] == [1.5, 1.4] and line["x"] == [40 * 4 * 8, 3 * 40 * 4 * 8]
    symbols = {p["name"].partition("=")[2]: p["marker"]["symbol"] for p in points}
    assert {name: symbol.endswith("-open") for name, symbol in symbols.items()} == {
        "learned": False,
        "rope": True,
        "alibi": False,
    }
    assert against(comparison, "parameters") is None  # the same for all
