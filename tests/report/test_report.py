"""`minigpt report` on runs made by hand and trained: what it says, and what it warns of."""

from __future__ import annotations

import csv
import io
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minigpt.report.comparison import compare
from minigpt.report.evaluations import Evaluations, by_position
from minigpt.report.plots import learning
from minigpt.report.results import leaderboard, mark
from minigpt.report.statistics import Interval
from minigpt.report.tables import Column, Table, to_csv, to_latex, to_markdown, to_plain, to_rich
from tests.conftest import TINY, Cli
from tests.report.made import POSITIONS, config, labels, make_run, make_sweep, warned

# ---- what is warned of ----


def test_missing_seeds_steps_and_several_runs_of_a_seed(tmp_path: Path) -> None:
    make_sweep(tmp_path, POSITIONS)
    (tmp_path / "alibi_seed=3" / "result.json").unlink()
    make_run(
        tmp_path / "again",
        config("rope", seed=2),
        loss=9.0,
        manifest={"started": "2026-11-26T00:00:00+00:00"},
    )
    make_run(tmp_path / "long", config("learned", seed=1), loss=1.0, status="interrupted")
    found = compare([str(tmp_path)], [], None)
    assert warned(found, "positional=alibi: without seed 3")
    assert warned(found, "1 run did not finish", "no result.json", "alibi_seed=3")
    assert warned(found, "interrupted at step 40", "long")
    assert warned(found, "positional=rope: seed 2 occurs 2 times: used the newest", "again, not ")
    assert found.designs[1].seeds("val_loss")[2] == 9.0
    # An unfinished run does not take the place of a finished one.
    assert found.designs[0].seeds("val_loss")[1] != 1.0
    difference = found.differences["positional=alibi"]
    assert difference.interval.n == 2


def test_failed_jobs_and_those_that_never_began(tmp_path: Path) -> None:
    make_sweep(tmp_path, POSITIONS)
    early = tmp_path / "broken"
    early.mkdir()
    (early / "result.json").write_text('{"status": "failed", "error": "model.n_head=7: no"}')
    jobs = [{"overrides": [], "path": p} for p in ("rope_seed=1", "broken", "waiting")]
    (tmp_path / "sweep.json").write_text(json.dumps({"name": None, "match": None, "jobs": jobs}))
    found = compare([str(tmp_path)], [], None)
    assert warned(found, "failed: model.n_head=7: no", "broken")
    assert warned(found, "not started", "waiting")
    assert labels(found)[0] == "positional=rope"  # the sweep's first


def test_circumstances_that_differ(tmp_path: Path) -> None:
    make_run(tmp_path / "a", config(seed=1))
    make_run(
        tmp_path / "b",
        config(seed=2, trainer__max_steps=40),
        manifest={
            "commit": "b" * 40 + "+changes",
            "device": "cuda",
            "platform": "Windows",
            "python": "3.12.1",
            "versions": {"torch": "2.14.0"},
        },
        result={"steps": 30},
    )
    found = compare([str(tmp_path)], [], None)
    for what in ("devices", "machines", "commits", "Python versions", "torch versions"):
        assert warned(found, f"{what} differ: ")
    assert warned(found, "steps differ: 30", "40")
    assert warned(found, "1 run of code with changes")


def test_tokenizers_are_compared_by_bits_per_byte(tmp_path: Path) -> None:
    make_sweep(tmp_path, {"char": {}, "bpe": {"tokenizer__name": "bpe"}})
    found = compare([str(tmp_path)], [], None)
    assert labels(found) == ["tokenizer=char", "tokenizer=bpe"]
    assert found.measure.key == "val_bits_per_byte"
    assert any("bits per byte only" in note for note in found.notes)
    heads = leaderboard(found).head
    assert "bits a byte" in heads and not {"val loss", "perplexity", "train loss"} & {*heads}
    difference = found.differences["tokenizer=bpe"].interval.mean
    assert difference == pytest.approx(0.1 / math.log(2), abs=0.01)


def test_other_texts_are_not_comparable(tmp_path: Path) -> None:
    make_sweep(tmp_path, {"rope": {}})
    for seed in (1, 2, 3):
        make_run(
            tmp_path / f"o{seed}",
            config(seed=seed),
            loss=1.0 + seed / 100,
            manifest={"data_sha256": "f" * 64},
        )
    found = compare([str(tmp_path)], [], None)
    assert warned(found, "losses are not comparable", "ffffffff")
    assert len(found.designs) == 2 and not found.best
    assert "data.text=ffffffff" in labels(found)


def test_what_was_matched(tmp_path: Path) -> None:
    for positional, steps in (("rope", 40), ("alibi", 60)):
        for seed in (1, 2):
            change = {"trainer.max_steps": [40, steps]} if steps != 40 else {}
            make_run(
                tmp_path / f"{positional}{seed}",
                config(positional, seed=seed, trainer__max_steps=steps),
                manifest={
                    "match": {"what": "flops", "reference": ["model=rope"], "changed": change}
                },
            )
    found = compare([str(tmp_path)], [], None)
    assert sorted(labels(found)) == ["positional=alibi", "positional=rope"]
    assert not warned(found, "more than one thing") and not warned(found, "steps differ")
    note = "".join(found.notes)
    assert "Matched across the designs: flops. Reference: model=rope." in note
    assert "positional=alibi trainer.max_steps from 40 to 60" in note


def test_one_seed_says_so(tmp_path: Path, cli: Cli) -> None:
    folder = make_sweep(tmp_path / "one", POSITIONS, seeds=(1,))
    found = compare([str(folder)], [], None)
    assert any("One seed gives no interval" in note for note in found.notes)
    assert [mark(found, design) for design in found.designs] == ["", "", ""]
    done = cli("report", str(folder))
    assert done.code == 0 and "One seed gives no interval" in done.out
    assert "1.5100 ±" not in done.out and "1.51" in done.out


def test_broken_files_are_told_and_do_not_stop(tmp_path: Path, cli: Cli) -> None:
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


def test_no_star_beside_a_design_without_numbers(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path, POSITIONS)
    for result in folder.glob("rope*/result.json"):
        result.unlink()
    found = compare([str(folder)], [], None)
    marks = {design.label: mark(found, design) for design in found.designs}
    assert marks == {"positional=learned": "≈", "positional=rope": "", "positional=alibi": ""}
    for result in folder.glob("alibi*/result.json"):
        result.unlink()
    found = compare([str(folder)], [], None)
    assert {mark(found, design) for design in found.designs} == {""}


def test_groups_of_other_designs_and_seeds(tmp_path: Path) -> None:
    for positional, norm, seed in (
        *(("learned", "pre", 1), ("learned", "pre", 2), ("learned", "post", 1)),
        *(("rope", "pre", 1), ("rope", "pre", 2)),
    ):
        settings = config(positional, seed, model__norm__placement=norm)
        make_run(tmp_path / f"{positional}_{norm}_{seed}", settings, 1.5 + seed / 10)
    found = compare([str(tmp_path)], ["positional"], None)
    assert warned(found, "positional=learned: of seeds 2 not every design of the group is there")
    assert warned(found, "more than positional differs between groups")
    even = compare([str(tmp_path)], ["norm"], None)
    assert warned(even, "more than norm differs between groups")


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
    rows = by_position(found.designs[0], Evaluations("last"), 8)
    assert [row[0] for row in rows] == pytest.approx([3.01, 3.02])  # 1.5 + 1 / 1, 1 more in half


def test_a_match_of_some_runs_silences_no_warning(tmp_path: Path) -> None:
    for name, steps, match in (
        ("learned", 40, {"what": "flops", "changed": {"trainer.max_steps": [40, 41]}}),
        ("rope", 4000, None),
    ):
        manifest = {} if match is None else {"match": match}
        settings = config(name, trainer__max_steps=steps)
        make_run(tmp_path / name, settings, manifest=manifest)
    found = compare([str(tmp_path)], [], None)
    assert warned(found, "steps differ") and warned(found, "more than one thing differs")
    assert warned(found, "designs are matched in different ways: flops (1 run); nothing (1 run)")


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


def test_other_programs_configs_are_no_runs(tmp_path: Path) -> None:
    make_sweep(tmp_path, POSITIONS)
    for folder in ("other", ".hydra"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.yaml").write_text("hydra: {}\n")
    assert len(compare([str(tmp_path), str(tmp_path / "rope_seed=1")], [], None).found.runs) == 9


# ---- forms ----

HARD = Table(
    "hard",
    "A & B",
    [Column("design", "design"), Column("loss", "loss_%"), Column("n", "n")],
    [["a|b_c & 50% <x> #1 ~{}\\^", Interval(1234.56789, 0.0123, 3), 12345], ["b", None, None]],
    "Note_1.",
)


def test_markdown_latex_csv_and_lines_show_what_is_there() -> None:
    markdown = to_markdown(HARD).splitlines()
    assert markdown[0] == "## A &amp; B" and markdown[3] == "| --- | ---: | ---: |"
    assert markdown[4].startswith(
        "| a\\|b\\_c &amp; 50% \\<x\\> \\#1 \\~{}\\\\^ | 1,234.568 ± 0.012 |"
    )
    latex = to_latex(HARD)
    for text in (
        r"a\textbar{}b\_c \& 50\% \textless{}x\textgreater{} \#1 \textasciitilde{}\{\}",
        r"\textbackslash{}\textasciicircum{} & 1,234.568 $\pm$ 0.012 & 12,345 \\",
        r"\begin{tabular}{lrr}",
        r"loss\_\%",
        r"\caption{A \& B. Note\_1.}",
    ):
        assert text in latex
    rows = list(csv.reader(to_csv(HARD).splitlines()))
    assert rows[0] == ["design", "loss", "loss_half_interval", "loss_n", "n"]
    assert rows[1] == ["a|b_c & 50% <x> #1 ~{}\\^", "1234.56789", "0.0123", "3", "12345"]
    assert rows[2] == ["b", "", "", "", ""]
    assert to_plain(HARD)[2].endswith("1,234.568 ± 0.012  12,345")


@pytest.mark.parametrize(
    ("half", "text"),
    [(0.00123, "1.5000 ± 0.0012"), (0.0213, "1.500 ± 0.021"), (None, "1.5000"), (50.0, "2 ± 50")],
)
def test_digits_follow_the_interval(half: float | None, text: str) -> None:
    table = Table("t", "t", [Column("a", "a"), Column("b", "b")], [["x", Interval(1.5, half, 2)]])
    assert table.texts()[0][1] == text


def test_terminal_tables_fit_their_width() -> None:
    from rich.console import Console

    columns = [Column("design", "design"), *(Column(f"c{n}", f"column {n}") for n in range(9))]
    table = Table("t", "t", columns, [["[bold]x", *map(float, range(9))]])
    console = Console(width=60, record=True, file=io.StringIO())
    tables = to_rich(table, 60)
    for rich in tables:
        console.print(rich)
    text = console.export_text()
    assert len(tables) > 1 and text.count("[bold]x") == len(tables) and "column 8" in text
    assert max(map(len, text.splitlines())) <= 60


def test_a_pipe_gets_plain_lines_and_files(cli: Cli, tmp_path: Path) -> None:
    folder = make_sweep(tmp_path / "sweep", POSITIONS)
    done = cli("report", str(folder), "--baseline", "rope", "--out", "out/page.html")
    assert done.code == 0, done.err
    assert "9 of 9 runs finished, 3 designs; seeds: 1, 2, 3; baseline: positional=rope" in done.out
    assert not {"│", "┃", "\x1b"} & {*done.out}
    first = next(line for line in done.out.splitlines() if line.startswith("positional=learned "))
    assert "★" in first and " ± " in first
    made = {path.name for path in Path("out").iterdir()}
    names = ("leaderboard", "differences", "lengths", "configs", "runs", "versions")
    assert made == {"page.html", "page.md", "page.tex", *(f"page_{name}.csv" for name in names)}
    rows = list(csv.DictReader(Path("out/page_leaderboard.csv").read_text().splitlines()))
    assert rows[0]["design"] == "positional=learned" and rows[0]["runs"] == "3"
    assert rows[0]["flops_per_token"] == "6000" and float(rows[0]["val_loss_half_interval"]) > 0
    lengths = list(csv.DictReader(Path("out/page_lengths.csv").read_text().splitlines()))
    assert lengths[0]["at_16"] and not lengths[0]["at_32"]
    runs = list(csv.DictReader(Path("out/page_runs.csv").read_text().splitlines()))
    assert runs[0]["command"] == "minigpt train seed=1" and runs[0]["commit"] == "a" * 40
    assert "\\toprule" in Path("out/page.tex").read_text()
    assert "## Leaderboard" in Path("out/page.md").read_text()


def test_a_terminal_gets_tables(tmp_path: Path) -> None:
    from rich.console import Console

    from minigpt.commands.report import show

    found = compare([str(make_sweep(tmp_path, POSITIONS))], [], None)
    console = Console(width=100, force_terminal=True, record=True, file=io.StringIO())
    show(found, console)
    text = console.export_text()
    assert "┃" in text and "Leaderboard" in text and "positional=alibi" in text


# ---- whole runs ----


def test_real_runs_from_sweep_to_report(cli: Cli, workdir: Path) -> None:
    swept = cli("train", "-m", "positional=rope,alibi", "seed=1,2", *TINY)
    assert swept.code == 0, swept.err
    runs = [path.parent for path in Path("runs").rglob("result.json")]
    done = cli("report", "latest")
    assert done.code == 0, done.err
    assert "4 of 4 runs finished, 2 designs; seeds: 1, 2; baseline: positional=rope" in done.out
    assert "more than one thing" not in done.out
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
    assert one.code == 0 and "One seed gives no interval" in one.out


def test_two_hundred_runs_take_seconds(tmp_path: Path) -> None:
    designs = {f"lr{n}": {"optimizer__lr": n * 1e-4} for n in range(1, 68)}
    folder = make_sweep(tmp_path, designs)
    start = time.perf_counter()
    from minigpt.commands.report import main

    main([str(folder)])
    assert time.perf_counter() - start < 15


def test_neither_help_nor_a_report_imports_torch(tmp_path: Path) -> None:
    make_sweep(tmp_path, POSITIONS, seeds=(1,))
    code = (
        "import sys; from minigpt.cli import main; main(sys.argv[1:]);"
        "print([m for m in ('torch', 'omegaconf', 'scipy', 'plotly') if m in sys.modules])"
    )
    for arguments, loaded in (
        (["--help"], "[]"),
        (["report", str(tmp_path)], "['scipy', 'plotly']"),
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
