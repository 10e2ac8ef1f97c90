"""Grouping of runs into designs, their labels, and how users name them."""

from __future__ import annotations

from pathlib import Path

import pytest

from minigpt.report.comparison import compare
from minigpt.report.designs import short_labels
from tests.conftest import Cli
from tests.report.synthetic import POSITIONS, config, labels, make_run, make_sweep, warned


def test_designs_are_labelled_by_what_differs(tmp_path: Path) -> None:
    found = compare([str(make_sweep(tmp_path / "a", POSITIONS))], [], None)
    assert labels(found) == ["positional=learned", "positional=rope", "positional=alibi"]
    assert found.seeds == [1, 2, 3] and found.warnings == [] and found.notes == []
    assert found.baseline is not None and found.baseline.label == "positional=learned"

    rates = {f"lr{n}": {"optimizer__lr": n * 1e-3} for n in (1, 2)}
    assert labels(compare([str(make_sweep(tmp_path / "b", rates))], [], None)) == [
        "optimizer.lr=0.001",
        "optimizer.lr=0.002",
    ]
    close = {f"lr{n}": {"optimizer__lr": rate} for n, rate in enumerate((0.001, 0.0010000001))}
    assert labels(compare([str(make_sweep(tmp_path / "f", close))], [], None)) == [
        "optimizer.lr=0.001",
        "optimizer.lr=0.0010000001",
    ]
    grid = {
        f"{p}{n}": {"positional": p, "model__norm__placement": n}
        for p in ("rope", "alibi")
        for n in ("pre", "post")
    }
    found = compare([str(make_sweep(tmp_path / "c", grid))], [], None)
    assert labels(found)[0] == "positional=rope norm=pre" and len(found.designs) == 4
    assert warned(found, "several choices differ", "rope norm=pre and positional=alibi norm=p")

    presets = {
        "gpt2": {"positional": "learned", "model__name": "gpt2", "model__n_layer": 4},
        "llama": {"positional": "rope", "model__name": "llama", "model__norm__kind": "rmsnorm"},
    }
    found = compare([str(make_sweep(tmp_path / "d", presets))], [], None)
    assert labels(found) == ["model=gpt2", "model=llama"]
    assert warned(found, "several choices", "model.n_layer", "model.norm.kind", "positional")

    options = {
        "learned": {"positional": "learned"},
        "near": {"positional": "rope", "model__positional__base": 500.0},
        "far": {"positional": "rope"},
    }
    assert labels(compare([str(make_sweep(tmp_path / "e", options))], [], None)) == [
        "positional=learned",
        "positional=rope model.positional.base=500",
        "positional=rope model.positional.base=10000",
    ]


def test_names_paths_and_threads_do_not_make_a_design(tmp_path: Path) -> None:
    for seed in (1, 2):
        settings = config(
            seed=seed, name=f"n{seed}", data__dir=f"/x{seed}", trainer__threads=seed, tags=[seed]
        )
        make_run(tmp_path / str(seed), settings)
    assert [d.by_seed.keys() for d in compare([str(tmp_path)], [], None).designs] == [{1, 2}]


def test_backends_are_not_counted_as_choices(tmp_path: Path) -> None:
    designs = {
        "rope": {"positional": "rope"},
        "alibi": {"positional": "alibi", "model__backend__name": "sdpa"},
    }
    found = compare([str(make_sweep(tmp_path, designs))], [], None)
    assert labels(found) == ["positional=rope", "positional=alibi"]
    assert not warned(found, "several choices")


@pytest.mark.parametrize(
    ("long", "short"),
    [
        (["positional=rope", "positional=alibi"], ["rope", "alibi"]),
        (["optimizer.lr=0.01", "optimizer.lr=0.1"], ["lr=0.01", "lr=0.1"]),
        (["norm=pre optimizer.lr=1", "norm=post optimizer.lr=1"], ["pre", "post"]),
        (["model.bias=true", "model.bias=false"], ["bias=true", "bias=false"]),
        (["embedding=tied ffn=gelu", "embedding=untied ffn=relu"], ["tied gelu", "untied relu"]),
        (["norm=x norm.a=1", "norm=x model.a=1"], ["norm=x norm.a=1", "norm=x model.a=1"]),
        (['a.b="\\n" x', "plain"], ['b="\\n" x', "plain"]),
        (["model=rope"], ["rope"]),
        (["model=01_bigram", "model=2d"], ["01_bigram", "2d"]),
        (["e=1e-3", "e=inf", "e=none"], ["e=1e-3", "e=inf", "e=none"]),
        ([], []),
        (
            ["m=g p=a e=4", "m=g p=b e=4", "m=g p=c e=4", "m=g p=a e=9", "m=b p=a e=4"],
            ["a", "b", "c", "a e=9", "b a"],
        ),
    ],
)
def test_short_labels_are_unique(long: list[str], short: list[str]) -> None:
    assert short_labels(long) == dict(zip(long, short, strict=True))


def test_by_groups_designs_and_warns_of_differences_inside(tmp_path: Path) -> None:
    grid = {
        f"{p}{n}": {"positional": p, "model__norm__placement": n}
        for p in ("rope", "alibi")
        for n in ("pre", "post")
    }
    folder = str(make_sweep(tmp_path, grid))
    found = compare([folder], ["positional"], "alibi")
    assert labels(found) == ["positional=rope", "positional=alibi"]
    assert found.baseline is not None and found.baseline.label == "positional=alibi"
    assert warned(found, "positional=rope", "the group has 2 designs", "norm")
    rope = found.designs[0]
    assert len(rope.runs) == 6 and len(rope.seeds("val_loss")) == 3
    seeds = [run.number("val_loss") for run in rope.by_seed[2]]
    assert rope.seeds("val_loss")[2] == pytest.approx(sum(map(float, filter(None, seeds))) / 2)
    found = compare([folder], ["norm", "positional"], None)
    assert labels(found)[0] == "norm=pre positional=rope" and not found.warnings[1:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("nowhere", "DIR=nowhere: no such folder"),
        ("empty", "contains no run"),
        (
            "made --by modle",
            "--by=modle: no such config group or key in these runs. Did you mean mo",
        ),
        (
            "made --by model",
            "model.name is rope in every run; the runs differ in ",
        ),
        ("made --by seed", "--by=seed: designs are averaged over seeds"),
        ("made --baseline ropee", "--baseline=ropee: no such design. Did you mean rope"),
        ("made --out report.pdf", "--out=report.pdf: the page is HTML; name it report.html"),
        ("made --every 0", "--every=0: must be above 0 and at most a day"),
        ("made --every 3", "--every: is an option of --live and --serve"),
        ("made --every nan", "--every=nan: must be above 0 and at most a day"),
        ("empty/../made/rope_seed=1/config.yaml", "config.yaml: is a file; give the folder"),
        ("made --wandb minigpt", "--wandb=minigpt: not ENTITY/PROJECT"),
        ("latest", "latest: no run under"),
        ("", "DIR: missing; give a folder, such as latest, or --serve"),
    ],
)
def test_mistakes_are_one_line(cli: Cli, workdir: Path, arguments: str, message: str) -> None:
    make_sweep(workdir / "made", POSITIONS, seeds=(1,))
    (workdir / "empty").mkdir()
    done = cli("report", *arguments.split())
    assert done.code == 2 and message in done.err and done.err.count("\n") == 1


def test_a_design_is_named_by_label_or_value(tmp_path: Path) -> None:
    folder = str(make_sweep(tmp_path, POSITIONS))
    for name in ("rope", "positional=rope"):
        found = compare([folder], [], name)
        assert found.baseline is not None and found.baseline.label == "positional=rope"
        assert set(found.differences) == {"positional=learned", "positional=alibi"}
