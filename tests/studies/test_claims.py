"""The posts' claims: verdicts on runs with given losses, and the whole program on small runs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minigpt.report.statistics import Interval
from studies.claims import claims
from tests.report.synthetic import config, make_run
from tests.studies.program import SMALL, run

HOLDS, FAILS, UNDECIDED = claims.HOLDS, claims.FAILS, claims.UNDECIDED
WOBBLE = (0.001, -0.001, 0.002, -0.002, 0.0)


def at(level: float, spread: float = 1.0) -> list[float]:
    """Return five losses around a level; a spread of 100 hides differences between levels."""
    return [level + 0.1 * seed + spread * w for seed, w in enumerate(WOBBLE)]


def train(
    folder: Path,
    designs: dict[str, list[float]],
    changes: Callable[[str], dict[str, Any]],
    results: dict[str, dict[str, Any]] | None = None,
) -> None:
    """Write a run for each design and loss; the n-th loss is that of seed n."""
    for name, losses in designs.items():
        for seed, loss in enumerate(losses, 1):
            make_run(
                folder / f"{name}_{seed}",
                config(seed=seed, **changes(name)),
                loss,
                manifest={"vocabulary": 65},
                result=(results or {}).get(name),
            )


def positional(name: str) -> dict[str, Any]:
    return {"positional": name}


def verdict(claim: str, folder: Path) -> str:
    finding = claims.CLAIMS[claim](folder)
    assert finding.reason and all(table.rows for table in finding.tables)
    return finding.verdict


# ---- signs ----


@pytest.mark.parametrize(
    ("losses", "sign"),
    [
        (at(1.0), "below"),
        (at(3.0), "above"),
        (at(2.0, 2.0), "equivalent"),
        (at(2.02, 2.0), "slightly above"),
        (at(1.98, 2.0), "slightly below"),
        (at(2.0, 100.0), "undecided"),
        ([1.0], "undecided"),
    ],
)
def test_signs(losses: list[float], sign: str) -> None:
    seeds = [dict(enumerate(values)) for values in (losses, at(2.0))]
    table, signs = claims.judge("t", "t", {"x": claims.minus(*seeds)})
    assert signs == [sign]
    shown = table.rows[0][1]
    assert isinstance(shown, Interval) and (shown.half is None) == (len(losses) == 1)


def test_a_tolerance_is_in_its_unit() -> None:
    effect = {"x": claims.minus(dict(enumerate(at(2.024, 2.0))), dict(enumerate(at(2.0))))}
    assert claims.judge("t", "t", effect)[1] == ["above"]
    assert claims.judge("t", "t", effect, claims.BITS_TOLERANCE)[1] == ["equivalent"]


@pytest.mark.parametrize(
    ("signs", "expected"),
    [
        (["equivalent", "below", "slightly below"], HOLDS),
        (["equivalent", "above"], FAILS),
        (["equivalent", "slightly above"], UNDECIDED),
        (["equivalent", "undecided"], UNDECIDED),
        ([], UNDECIDED),
    ],
)
def test_no_worse(signs: list[str], expected: str) -> None:
    assert claims.no_worse(signs) == expected


# ---- claims ----


@pytest.mark.parametrize(
    ("designs", "expected"),
    [
        ({"learned": 2.0, "sinusoidal": 2.1, "rope": 1.8, "alibi": 1.9}, HOLDS),
        ({"learned": 2.0, "sinusoidal": 2.1, "rope": 1.8, "alibi": 2.0}, FAILS),  # alike
        ({"learned": 2.0, "sinusoidal": 2.1, "rope": 1.8, "alibi": 2.3}, FAILS),
        ({"learned": 2.0, "sinusoidal": 2.1}, UNDECIDED),
    ],
)
def test_inside_blocks(tmp_path: Path, designs: dict[str, float], expected: str) -> None:
    losses = {n: at(level, 1 + spread) for spread, (n, level) in enumerate(designs.items())}
    train(tmp_path / "positional", losses, positional)
    if expected == UNDECIDED:
        assert claims.inside_blocks(tmp_path).verdict == UNDECIDED
    else:
        assert verdict("inside_blocks", tmp_path) == expected


@pytest.mark.parametrize(
    ("alibi", "rope", "expected"),
    [(at(2.0, 2), at(2.0, 3), HOLDS), (at(2.0), at(2.5), FAILS), (at(2.0), at(2.0, 99), UNDECIDED)],
)
def test_alike(tmp_path: Path, alibi: list[float], rope: list[float], expected: str) -> None:
    losses = {"relative_bias": at(2.0), "alibi": alibi, "rope": rope}
    train(tmp_path / "positional", losses, positional)
    assert verdict("alike", tmp_path) == expected


@pytest.mark.parametrize(
    ("counts", "expected"),
    [({"alibi": 0, "rope": 8, "learned": 64}, HOLDS), ({"alibi": 0, "rope": 0}, FAILS)],
)
def test_parameters(tmp_path: Path, counts: dict[str, int], expected: str) -> None:
    results = {name: {"parameters": {"positional": n}} for name, n in counts.items()}
    train(tmp_path / "positional", dict.fromkeys(counts, at(2.0)), positional, results)
    assert verdict("parameters", tmp_path) == expected


ALIBI_BEST = {"alibi": at(0.0), "rope": at(0.5), "sinusoidal": at(0.4), "t5": at(0.3)}


@pytest.mark.parametrize(
    ("grown", "expected"),
    [
        (ALIBI_BEST, HOLDS),
        ({**ALIBI_BEST, "alibi": at(0.3)}, FAILS),
        ({**ALIBI_BEST, "alibi": at(0.0, 99)}, UNDECIDED),
        ({**ALIBI_BEST, "t5": at(0.0)}, FAILS),
        ({**ALIBI_BEST, "t5": at(0.0, 99)}, UNDECIDED),
    ],
)
def test_beyond(tmp_path: Path, grown: dict[str, list[float]], expected: str) -> None:
    """`grown`: by how much losses differ at lengths beyond the block of 8."""
    train(tmp_path / "positional", dict.fromkeys(grown, at(2.0)), positional)
    for name, more in grown.items():
        for seed, (loss, by) in enumerate(zip(at(2.0), more, strict=True), 1):
            lengths = {
                str(n): {"loss": loss + (by - 0.1 * seed + 0.1) * (n > 8)} for n in (8, 16, 32, 64)
            }
            text = json.dumps({"last": {"lengths": lengths}})
            (tmp_path / "positional" / f"{name}_{seed}" / "eval.json").write_text(text)
    assert verdict("beyond", tmp_path) == expected


@pytest.mark.parametrize(("learned", "expected"), [(1.5, FAILS), (2.0, HOLDS), (2.5, HOLDS)])
def test_learned_sinusoidal(tmp_path: Path, learned: float, expected: str) -> None:
    losses = {"learned": at(learned), "sinusoidal": at(2.0, 2)}
    train(tmp_path / "positional", losses, positional)
    assert verdict("learned_sinusoidal", tmp_path) == expected


@pytest.mark.parametrize(("tied", "expected"), [(1.5, HOLDS), (2.0, HOLDS), (2.5, FAILS)])
def test_tying(tmp_path: Path, tied: float, expected: str) -> None:
    losses = {"tied": at(tied), "untied": at(2.0, 2)}
    results = {"tied": {"parameters": {"total": 9}}, "untied": {"parameters": {"total": 12}}}
    train(tmp_path / "tying", losses, lambda n: {"model__embedding": {"name": n}}, results)
    assert verdict("tying", tmp_path) == expected


@pytest.mark.parametrize(
    ("post", "post_high", "expected"), [(2.2, 2.9, HOLDS), (2.2, 2.4, FAILS), (1.8, 2.9, FAILS)]
)
def test_norm(tmp_path: Path, post: float, post_high: float, expected: str) -> None:
    """Pre-norm: 2 at the low rate, 2.2 at the high one."""
    losses = {
        "pre 0.004": at(2.0),
        "pre 0.016": at(2.2, 2),
        "post 0.004": at(post, 3),
        "post 0.016": at(post_high, 4),
    }

    def changes(name: str) -> dict[str, Any]:
        placement, rate = name.split()
        return {"model__norm__placement": placement, "optimizer__lr": float(rate)}

    train(tmp_path / "norm", losses, changes)
    assert verdict("norm", tmp_path) == expected


@pytest.mark.parametrize(("bpe", "expected"), [(2.5, HOLDS), (2.0, FAILS), (1.5, FAILS)])
def test_tokenizer(tmp_path: Path, bpe: float, expected: str) -> None:
    losses = {"char": at(2.0), "bpe": at(bpe, 2), "gpt2": at(3.0, 3)}
    train(tmp_path / "tokenizer", losses, lambda n: {"tokenizer": {"name": n}})
    assert verdict("tokenizer", tmp_path) == expected


@pytest.mark.parametrize(
    ("bigram", "expected"),
    [(at(2.5), HOLDS), (at(2.05), FAILS), (at(1.5), FAILS), (at(2.5, 999), UNDECIDED)],
)
def test_bigram(tmp_path: Path, bigram: list[float], expected: str) -> None:
    train(tmp_path / "positional", {"rope": at(2.0, 2), "alibi": at(1.9, 3)}, positional)
    train(tmp_path / "bigram", {"bigram": bigram}, lambda n: {"model__name": n})
    assert verdict("bigram", tmp_path) == expected


@pytest.mark.parametrize(("one", "expected"), [(1.5, HOLDS), (2.0, HOLDS), (2.5, FAILS)])
def test_heads(tmp_path: Path, one: float, expected: str) -> None:
    losses = {"8": at(2.0), "1": at(one, 2)}
    train(tmp_path / "heads", losses, lambda n: {"model__n_kv_head": int(n), "model__n_head": 8})
    assert verdict("heads", tmp_path) == expected


@pytest.mark.parametrize(
    ("best", "trained", "expected"), [(2.0, 100, HOLDS), (2.5, 100, FAILS), (2.0, 400, FAILS)]
)
def test_early_stopping(tmp_path: Path, best: float, trained: int, expected: str) -> None:
    for scheduler, level, steps in (("asha", best, trained), ("none", 2.0, 400)):
        for seed, value in enumerate(at(level, len(scheduler)), 1):
            folder = tmp_path / "early_stopping" / f"{scheduler}_{seed}"
            folder.mkdir(parents=True)
            saving = {"steps_trained": steps + seed % 2, "steps_in_full": 400}
            about = {"status": "finished", "max_steps": 50, "trials": [{}] * 8}
            search = about | {"best": {"value": value}, "saving": saving}
            (folder / "tune.json").write_text(json.dumps(search))
    assert verdict("early_stopping", tmp_path) == expected


# ---- runs that cannot be judged ----


def test_runs_of_other_options_are_refused(tmp_path: Path) -> None:
    losses = {"learned": at(2.0), "sinusoidal": at(2.0, 2)}
    train(tmp_path / "positional", losses, positional)
    train(
        tmp_path / "positional" / "more",
        {"learned": at(2.0)},
        lambda n: {**positional(n), "trainer__max_steps": 60},
    )
    with pytest.raises(
        ValueError, match=r"runs of learned differ in trainer.max_steps; use another"
    ):
        claims.learned_sinusoidal(tmp_path)


def test_a_diverged_run_counts_as_guessing(tmp_path: Path) -> None:
    train(tmp_path / "positional", {"sinusoidal": at(2.0), "learned": at(1.9)}, positional)
    diverged = tmp_path / "positional" / "learned_5" / "result.json"
    diverged.write_text(json.dumps({"status": "failed", "seed": 5, "diverged": True}))
    seeds = claims.Runs(tmp_path / "positional", "model.positional.name").losses("learned")
    assert seeds[5] == math.log(65) and len(seeds) == 5
    assert claims.learned_sinusoidal(tmp_path).verdict == UNDECIDED
    train(
        tmp_path / "tokenizer",
        {n: at(2.0) for n in ("char", "bpe", "gpt2")},
        lambda n: {"tokenizer": {"name": n}},
    )
    (tmp_path / "tokenizer" / "bpe_1" / "result.json").write_text(diverged.read_text())
    with pytest.raises(ValueError, match="bpe_1: diverged, so its bits/byte are unknown"):
        claims.tokenizer(tmp_path)


def test_a_newer_run_takes_the_place_of_one_that_did_not_finish(tmp_path: Path) -> None:
    losses = {"learned": at(2.0), "sinusoidal": at(2.0, 2)}
    train(tmp_path / "positional", losses, positional)
    settings = config(seed=3, positional="learned")
    make_run(
        tmp_path / "positional" / "old",
        settings,
        status="interrupted",
        manifest={"started": "2026-11-24"},
    )
    assert claims.learned_sinusoidal(tmp_path).verdict == HOLDS


# ---- the script ----


def test_backends_are_measured_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("LENGTHS", (16, 32)), ("TOKENS", 64), ("REPEATS", 2)):
        monkeypatch.setattr(claims, name, value)
    finding = claims.backend(Path())
    assert finding.verdict in (claims.HOLDS, claims.FAILS)
    assert [row[0] for row in finding.tables[0].rows] == ["16", "32"]
    for _, ratio, *megabytes in finding.tables[0].rows:
        assert isinstance(ratio, Interval) and ratio.mean > 0
        assert all(isinstance(number, float) and number > 0 for number in megabytes)


@pytest.mark.slow
def test_claims(workdir: Path) -> None:
    program, basic = "studies/claims/run.py", ["--launcher", "basic", "--claims"]
    small = [*SMALL, "seed=1,2", "trainer.max_steps=2", "model.n_head=8"]
    page = ["--folder", "out", "--out", "docs/page.md"]
    done = run(program, *page, *basic, "norm,heads", *small)
    assert done.returncode == 0, done.stderr
    text = Path("docs/page.md").read_text(encoding="utf-8")
    for name in ("norm", "heads"):
        assert f"\n## {name}\n" in text and f"{name}: " in done.stdout
    assert text.count("| pre, lr 0.016 |") == 1 and text.count("| 4 minus 8 heads |") == 1
    assert "seeds 1, 2." in text and "±" in text

    # One seed of two rates, one of which diverges: no interval, and no run is left out.
    diverging = [*SMALL, "trainer.max_steps=2", "optimizer.lr=1e-3,1e30", "seed=1"]
    done = run(program, "--folder", "one", *basic, "norm", *diverging)
    assert done.returncode == 0, done.stderr
    assert "undecided. Diverged: 1 of 1 runs of pre at 1e+30, 1 of 1" in done.stdout
    text = Path("one/claims.md").read_text(encoding="utf-8")
    vocabulary = json.loads(next(Path("one").rglob("manifest.json")).read_text())["vocabulary"]
    guess = f"{math.log(vocabulary):.4f}"
    assert f"| pre, lr 1e+30 | {guess} |" in text and "| difference at the high rate minus" in text

    next(Path("one").rglob("result.json")).unlink()
    for name, why in (
        ("norm", "killed; run studies/claims/run.py again"),
        ("heads", "DIR=one/heads: no such folder."),
        ("norm,nrom", "--claims=nrom: not one of inside_blocks, "),
    ):
        refused = run(program, "--folder", "one", "--judge", "--claims", name)
        assert refused.returncode == 2 and why in refused.stderr, refused.stderr
        assert refused.stderr.count("\n") == 1


@pytest.mark.slow
def test_only_missing_evaluations_run_again(workdir: Path) -> None:
    program, chosen = "studies/claims/run.py", ["--folder", "out", "--launcher", "basic"]
    chosen += ["--claims", "beyond"]
    small = [*SMALL, "model.block_size=8", "trainer.max_steps=2", "seed=1"]
    schemes = "positional=alibi,rope,sinusoidal,t5,learned"
    done = run(program, *chosen, *small, schemes)
    assert done.returncode == 0, done.stderr
    files = Path("out").rglob("eval.json")
    assert sorted(file.parent.name.partition("=")[2] for file in files) == sorted(
        ["alibi", "rope", "sinusoidal", "t5"]
    )
    again = run(program, *chosen, *small, schemes)
    assert again.returncode == 0 and again.stdout.count("already evaluated") == 4, again.stderr
    assert "beyond: undecided. " in again.stdout
