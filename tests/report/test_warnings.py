"""Warnings and notes of a comparison, and the marks they go with."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from minigpt.report.comparison import compare
from minigpt.report.results import leaderboard, mark
from tests.conftest import Cli
from tests.report.synthetic import POSITIONS, config, labels, make_run, make_sweep, warned


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
    assert warned(found, "positional=alibi: seed 3 is missing")
    assert warned(found, "1 run did not finish", "(killed)", "alibi_seed=3")
    assert warned(found, "interrupted at step 40", "long")
    assert warned(found, "positional=rope: seed 2 has 2 runs: uses the newest", "again, not ")
    assert found.designs[1].seeds("val_loss")[2] == 9.0
    # An unfinished run does not take the place of a finished one.
    assert found.designs[0].seeds("val_loss")[1] != 1.0
    difference = found.differences["positional=alibi"]
    assert difference.interval.n == 2


def test_failed_jobs_and_jobs_not_started(tmp_path: Path) -> None:
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


def test_environments_that_differ(tmp_path: Path) -> None:
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
    assert warned(found, "numbers of steps differ: 30", "40")
    assert warned(found, "1 run used code with uncommitted changes")


def test_tokenizers_are_compared_by_bits_per_byte(tmp_path: Path) -> None:
    make_sweep(tmp_path, {"char": {}, "bpe": {"tokenizer__name": "bpe"}})
    found = compare([str(tmp_path)], [], None)
    assert labels(found) == ["tokenizer=char", "tokenizer=bpe"]
    assert found.measure.key == "val_bits_per_byte"
    assert any("bits/byte only" in note for note in found.notes)
    heads = leaderboard(found).head
    assert "bits/byte" in heads and not {"val loss", "perplexity", "train loss"} & {*heads}
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


def test_matched_designs(tmp_path: Path) -> None:
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
    assert not warned(found, "several choices") and not warned(found, "steps differ")
    note = "".join(found.notes)
    assert "Matched across the designs: flops. Reference: model=rope." in note
    assert "positional=alibi trainer.max_steps from 40 to 60" in note


def test_a_match_of_some_runs_hides_no_warning(tmp_path: Path) -> None:
    for name, steps, match in (
        ("learned", 40, {"what": "flops", "changed": {"trainer.max_steps": [40, 41]}}),
        ("rope", 4000, None),
    ):
        manifest = {} if match is None else {"match": match}
        settings = config(name, trainer__max_steps=steps)
        make_run(tmp_path / name, settings, manifest=manifest)
    found = compare([str(tmp_path)], [], None)
    assert warned(found, "steps differ") and warned(found, "several choices differ")
    assert warned(found, "sweep.match differs between runs: flops (1 run); null (1 run)")


def test_runs_stopped_by_patience_are_ranked_by_their_best_loss(tmp_path: Path) -> None:
    make_run(tmp_path / "rope", config("rope"), 1.5)
    early = {"steps": 30, "best_val_loss": 1.4, "best_step": 10}
    make_run(tmp_path / "alibi", config("alibi"), 1.6, result=early)
    comparison = compare([str(tmp_path)])
    ranked = [
        (d.label, *map(d.interval, ("val_loss", "val_bits_per_byte"))) for d in comparison.ranked
    ]
    assert [label for label, *_ in ranked] == ["positional=alibi", "positional=rope"]
    (_, loss, bits), _ = ranked
    assert loss and bits and loss.mean == 1.4
    assert bits.mean == pytest.approx(1.4 / math.log(2))
    (note,) = [line for line in comparison.notes if "trainer.patience" in line]
    assert note.startswith(
        "trainer.patience stopped 1 run early, ranked by the validation loss of the best checkpoint"
    )
    assert "alibi" in note and "rope" not in note


def test_losses_of_averaged_weights_are_named(tmp_path: Path) -> None:
    for name, weights in (("rope", "ema"), ("alibi", "raw")):
        make_run(tmp_path / name, config(name), result={"weights": weights})
    (note,) = [line for line in compare([str(tmp_path)]).notes if "optimizer.ema" in line]
    assert "of the averaged ones in 1 run (" in note and "rope" in note and "alibi" not in note


def test_one_seed_has_no_interval(tmp_path: Path, cli: Cli) -> None:
    folder = make_sweep(tmp_path / "one", POSITIONS, seeds=(1,))
    found = compare([str(folder)], [], None)
    assert any("One seed gives no confidence interval" in note for note in found.notes)
    assert [mark(found, design) for design in found.designs] == ["", "", ""]
    done = cli("report", str(folder))
    assert done.code == 0 and "One seed gives no confidence interval" in done.out
    assert "1.5100 ±" not in done.out and "1.51" in done.out


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


def test_groups_with_different_designs_and_seeds(tmp_path: Path) -> None:
    for positional, norm, seed in (
        *(("learned", "pre", 1), ("learned", "pre", 2), ("learned", "post", 1)),
        *(("rope", "pre", 1), ("rope", "pre", 2)),
    ):
        settings = config(positional, seed, model__norm__placement=norm)
        make_run(tmp_path / f"{positional}_{norm}_{seed}", settings, 1.5 + seed / 10)
    found = compare([str(tmp_path)], ["positional"], None)
    assert warned(found, "positional=learned: some designs of the group have no run with seed 2")
    assert warned(found, "groups differ in more than positional")
    even = compare([str(tmp_path)], ["norm"], None)
    assert warned(even, "groups differ in more than norm")
