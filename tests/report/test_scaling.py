"""`minigpt report --fit`: which runs each law is fitted to, its tables and page, and refusals."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import yaml

from minigpt.commands.report import main
from minigpt.config.groups import config_directory
from minigpt.errors import UserError
from minigpt.report.comparison import compare
from minigpt.report.power_law import PowerLaw
from minigpt.report.scaling import VALUES, Scaling, fit_scaling
from minigpt.report.scaling_page import compute_optimal, extra, notes
from tests.conftest import Cli
from tests.report.synthetic import config, make_run

WIDTHS, STEPS, PARTS = (16, 32, 64, 128), (125, 250, 500, 1000), (0.125, 0.25, 0.5, 1.0)
TOKENS_PER_STEP, TRAIN = 4 * 8, 4000
TRUE = PowerLaw(1.2, {"N": (20.0, 0.42), "D": (40.0, 0.5), "U": (3.0, 0.4)})
NOISE = (0.002, -0.001, -0.001)  # of the seeds: their mean is on the law


def add_run(
    folder: Path,
    width: int = 64,
    steps: int = 500,
    part: float = 1.0,
    seed: int = 1,
    loss: float | None = None,
    **result: object,
) -> Path:
    """Write a run of this size, length and part of the text, whose loss is that of TRUE."""
    n, d, u = 24 * width**2, steps * TOKENS_PER_STEP, int(TRAIN * part)
    changes = {"model__n_embd": width, "trainer__max_steps": steps, "data__fraction": part}
    by_law = TRUE.loss({"N": n, "D": d, "U": u}) + NOISE[seed - 1]
    parameters = {"total": n + 130 * width, "active": n + 130 * width, "non_embedding": n}
    return make_run(
        folder / f"{width}_{steps}_{part}_{seed}",
        config("rope", seed, **changes),
        by_law if loss is None else loss,
        manifest={"tokens": {"train": u, "val": 400}, "vocabulary": 65},
        result={"parameters": parameters, "flops_per_token": 6 * n + 390 * width, **result},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every size and length on the whole text; every part of it at the largest size and length."""
    folder = tmp_path_factory.mktemp("scaling")
    designs = [*product(WIDTHS, STEPS, [1.0]), *product([128], [1000], PARTS[:-1])]
    for (width, steps, part), seed in product(designs, (1, 2, 3)):
        add_run(folder, width, steps, part, seed)
    return folder


@pytest.fixture(scope="module")
def scaling(folder: Path) -> Scaling:
    return fit_scaling(compare([str(folder)]))


def test_each_law_is_fitted_where_all_else_is_equal(scaling: Scaling) -> None:
    n, d, u = 24 * 128**2, 1000 * TOKENS_PER_STEP, TRAIN
    expected = {
        "L(N)": (4, {"D": d, "U": u}),
        "L(D)": (4, {"N": n, "U": u}),
        "L(U)": (4, {"N": n, "D": d}),
        "L(N, D)": (16, {"U": u}),
    }
    found = {law: (len(fit.points), part.fixed) for law, (fit, part) in scaling.fits.items()}
    n_frontier, fixed = found.pop("L(C)")
    assert found == expected and fixed == {"U": u} and 4 <= n_frontier < 16
    assert scaling.missing == [] and scaling.left_out == {} and len(scaling.points) == 19


def test_the_law_of_the_runs_is_recovered(scaling: Scaling) -> None:
    terms = TRUE.terms

    def lost(**fixed: float) -> float:
        """Return the loss that fixed axes leave in E."""
        return TRUE.irreducible + sum(terms[a][0] * x ** -terms[a][1] for a, x in fixed.items())

    for law, (fit, part) in scaling.fits.items():
        if law == "L(C)":
            continue
        irreducible = fit.estimate(lambda law: law.irreducible)
        assert irreducible.low <= lost(**part.fixed) <= irreducible.high, law
        for axis in fit.axes:
            exponent = fit.estimate(lambda law, axis=axis: law.terms[axis][1])
            assert exponent.low <= terms[axis][1] <= exponent.high, (law, axis)
        assert abs(fit.residual(fit.worst)) < 1e-3


def test_the_frontier_is_every_loss_that_fewer_flops_do_not_reach(scaling: Scaling) -> None:
    fit, _ = scaling.fits["L(C)"]
    whole = [point for point in scaling.points if point.x["U"] == TRAIN]
    expected = {
        p.label
        for p in whole
        if not any(o.x["C"] <= p.x["C"] and o.mean < p.mean for o in whole if o is not p)
    }
    assert {point.label for point in fit.points} == expected


def test_the_optimum_says_where_it_leaves_the_runs(scaling: Scaling) -> None:
    table = compute_optimal(scaling)
    assert table is not None and scaling.joint is not None
    keys = [column.key for column in table.columns]
    rows = [dict(zip(keys, row, strict=True)) for row in table.rows]
    assert float(str(rows[-1]["flops"])) > 9 * float(str(rows[-2]["flops"]))
    assert str(rows[-1]["within"]).startswith("no: ")
    assert any(row["within"] == "yes" for row in rows)
    a, b = scaling.joint.law.optimal_exponents
    assert a + b == pytest.approx(1) and f"N grows as C^{a:.2f} (" in table.note


def test_the_order_of_runs_changes_nothing(folder: Path, scaling: Scaling) -> None:
    comparison = compare([str(folder)])
    backwards = fit_scaling(replace(comparison, designs=comparison.designs[::-1]))
    for law, (fit, _) in scaling.fits.items():
        assert backwards.fits[law][0].law == fit.law
        assert backwards.fits[law][0].samples == fit.samples


def test_the_report_has_laws_optimum_residuals_and_plots(cli: Cli, folder: Path) -> None:
    done = cli("report", str(folder), "--fit", "--out", "fit.html")
    assert done.code == 0, done.err
    for words in ("Scaling laws", "L(N, D)", "Compute-optimal size and length"):
        assert words in done.out
    assert "Runs read the training split up to 64.0 times" in done.out
    assert "\nResiduals" not in done.out  # as long as there are runs: on the page only
    with Path("fit_laws.csv").open() as file:
        rows = {row["law"]: row for row in csv.DictReader(file)}
    joint = rows["L(N, D)"]
    assert float(joint["exponent_low"]) <= 0.42 <= float(joint["exponent_high"])
    assert float(joint["exponent_d_low"]) <= 0.5 <= float(joint["exponent_d_high"])
    assert rows["L(N)"]["exponent_d"] == ""
    with Path("fit_residuals.csv").open() as file:
        residuals = [row for row in csv.DictReader(file) if row["law"] == "L(N, D)"]
    sizes = [abs(float(row["residual"])) for row in residuals]
    assert len(sizes) == 16 and sizes == sorted(sizes, reverse=True)
    assert float(residuals[0]["measured"]) - float(residuals[0]["fitted"]) == pytest.approx(
        float(residuals[0]["residual"])
    )
    page = Path("fit.html").read_text(encoding="utf-8")
    for plot in ("laws", "sizes_d", "residuals"):
        assert f'id="plot-{plot}"' in page
    for label in ("measured", "fitted law", "D = 32,000", "measured = fitted"):
        assert f'data-design="{label}"' in page
    assert "## Residuals" in Path("fit.md").read_text(encoding="utf-8")
    plain = cli("report", str(folder), "--out", "plain.html")
    assert "Scaling laws" not in plain.out and not Path("plain_laws.csv").exists()


def test_runs_that_do_not_count_are_left_out_and_said(tmp_path: Path) -> None:
    for width, seed in product(WIDTHS, (1, 2)):
        add_run(tmp_path, width, seed=seed)
    add_run(tmp_path, 256, loss=4.2)  # above ln 65
    add_run(tmp_path, 512, loss=0.1, status="failed")
    (add_run(tmp_path, 1024, loss=0.1) / "result.json").unlink()
    stopped = add_run(tmp_path, 2048, loss=0.1)
    result = json.loads((stopped / "result.json").read_text())
    (stopped / "result.json").write_text(json.dumps(result | {"steps": 100}))
    add_run(tmp_path, 4096, loss=0.1, parameters={"total": 65 * 65, "non_embedding": 0})
    scaling = fit_scaling(compare([str(tmp_path)]))
    assert [*scaling.fits] == ["L(N)"] and len(scaling.points) == 4
    assert scaling.left_out == {
        "failed": 1,
        "killed": 1,
        "no better than guessing": 1,
        "stopped by trainer.patience": 1,
        "without parameters besides embeddings": 1,
    }
    assert scaling.others == []
    lines = notes(scaling)
    assert lines[0].startswith("The laws use no runs that are: 1 failed, 1 killed")
    assert (
        "No L(D): needs 4 values of D, and there is 1 at N = 393,216 at U = 4,000; vary "
        "trainer.max_steps or trainer.batch_size." in lines
    )
    assert any(line.startswith("No L(C)") for line in lines)
    assert [table.name for table in extra(scaling).tables] == ["laws", "residuals"]


@pytest.mark.parametrize(("rise", "said"), [(0.05, True), (0.0005, False)])
def test_a_loss_that_rises_again_is_said(tmp_path: Path, rise: float, said: bool) -> None:
    for width, seed in product(WIDTHS, (1, 2)):
        lowest, noise = 1.8 + NOISE[seed - 1], (-0.001, 0.001)[seed - 1]
        at = {64: lowest, 128: lowest + rise + noise}
        add_run(tmp_path, width, seed=seed, loss=at.get(width))
    lines = notes(fit_scaling(compare([str(tmp_path)])))
    assert any("L(N): the loss is lowest at N = 98,304" in line for line in lines) == said


def test_other_options_that_differ_are_said(tmp_path: Path) -> None:
    for width in WIDTHS:
        add_run(tmp_path, width)
    settings = config("learned", model__n_embd=256, optimizer__lr=0.1, data__fraction=1.0)
    sizes = {"tokens": {"train": TRAIN, "val": 400}}
    make_run(tmp_path / "other", settings, manifest=sizes)
    lines = notes(fit_scaling(compare([str(tmp_path)])))
    assert lines[0].startswith("The designs differ in positional, optimizer.lr too")


@pytest.mark.parametrize(
    ("widths", "n_values"),
    [
        (WIDTHS[:3], "3 of N"),
        ((64, 65, 66, 70), "2 of N"),  # too close to tell a law from
        ((64,), "1 of N"),
    ],
)
def test_too_few_values_are_refused_with_the_number_needed(
    cli: Cli, tmp_path: Path, widths: tuple[int, ...], n_values: str
) -> None:
    for width in widths:
        add_run(tmp_path, width)
    done = cli("report", str(tmp_path), "--fit")
    assert done.code == 2 and done.err.count("\n") == 1
    assert "--fit: a law of 3 parameters needs 4 values of N, D or U" in done.err
    assert f"have {n_values} (parameters without embeddings; vary model.n_embd" in done.err
    assert "vary data.fraction" in done.err and not (tmp_path / "report.html").exists()


def test_the_preset_has_values_for_every_law() -> None:
    file = config_directory() / "sweep" / "scaling.yaml"
    params = yaml.safe_load(file.read_text())["hydra"]["sweeper"]["params"]
    values = {key: str(value).split(",") for key, value in params.items()}
    sizes = {
        int(width) ** 2 * int(layers)
        for width, layers in product(values["model.n_embd"], values["model.n_layer"])
    }
    assert len(sizes) == 8
    for key in ("trainer.max_steps", "data.fraction"):
        assert len(values[key]) >= VALUES
    n_runs = math.prod(map(len, values.values()))
    assert n_runs == 384 and f"# {n_runs} runs: {len(sizes)} sizes" in file.read_text()


def test_groups_and_several_texts_are_refused(tmp_path: Path) -> None:
    for width in WIDTHS:
        add_run(tmp_path, width)
    with pytest.raises(UserError, match=r"not the groups of --by=model.n_embd"):
        main([str(tmp_path), "--fit", "--by", "model.n_embd"])
    make_run(tmp_path / "other", config("rope", 2), manifest={"data_sha256": "f" * 64})
    with pytest.raises(UserError, match="different texts or splits"):
        fit_scaling(compare([str(tmp_path)]))


def test_joint_fits_need_sizes_and_lengths_that_vary_independently(tmp_path: Path) -> None:
    for width, steps in zip(WIDTHS, STEPS, strict=True):
        add_run(tmp_path, width, steps)
    scaling = fit_scaling(compare([str(tmp_path)]))
    assert [*scaling.fits] == ["L(C)"] and compute_optimal(scaling) is None
    lack = "needs 6 designs, and there are 4 at U = 4,000; vary N and D independently"
    assert f"no L(N, D): {lack}" in scaling.missing
    for width in WIDTHS[1:]:
        add_run(tmp_path, width, STEPS[0])
    scaling = fit_scaling(compare([str(tmp_path)]))
    assert [*scaling.fits] == ["L(N)", "L(C)", "L(N, D)"]
