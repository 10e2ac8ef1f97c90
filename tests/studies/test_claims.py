"""The posts' claims: verdicts on runs with given losses, and the whole program on small runs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from minigpt.files import write_json
from minigpt.report.runs import find_runs
from minigpt.report.statistics import Interval, minus
from studies.claims import claims, measured, verdicts
from studies.claims.claims import CLAIMS
from studies.claims.evidence import BASE, POSTS, TUNED, Evidence, NotTrained, is_complete
from studies.claims.page import draw, page
from studies.claims.readme import END, README, ROWS, START, results_table
from studies.claims.run import HERE, keep
from studies.claims.run import judge as judge_all
from studies.claims.trainings import BACKENDS, CACHE, TRAININGS
from studies.claims.verdicts import (
    FAILS,
    HOLDS,
    PARTLY,
    UNDECIDED,
    UNSUPPORTED,
    Effect,
    Finding,
)
from studies.written import with_part
from tests.report.synthetic import config, make_run
from tests.studies.program import SMALL, run

WOBBLE = (0.001, -0.001, 0.002, -0.002, 0.0)
SCHEMES = (*claims.INPUT_ONLY, *claims.INSIDE)
Losses = Mapping[str, Sequence[float]]


def at(level: float, spread: float = 1.0) -> list[float]:
    """Return five losses around a level; a spread of 100 hides differences between levels."""
    return [level + 0.1 * seed + spread * w for seed, w in enumerate(WOBBLE)]


def train(
    folder: Path,
    losses: Losses,
    changes: Mapping[str, Mapping[str, Any]],
    results: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Write a finished sweep with a run for each design and loss; the n-th loss is of seed n."""
    jobs = []
    for name, values in losses.items():
        for seed, loss in enumerate(values, 1):
            settings = config(seed=seed)
            for key, value in (BASE | dict(changes[name])).items():
                place = settings
                *parents, last = key.split(".")
                for parent in parents:
                    place = place.setdefault(parent, {})
                place[last] = value
            path = folder / f"{name}_{seed}".replace(" ", "_")
            extra = {"test_loss": loss, "test_bits_per_byte": loss / math.log(2)}
            result = extra | dict((results or {}).get(name, {}))
            make_run(path, settings, loss, manifest={"vocabulary": 65}, result=result)
            jobs.append({"overrides": [], "path": path.name})
    write_json(folder / "sweep.json", {"jobs": jobs})


def judge(claim: str, results: Path, setting: str = POSTS) -> Finding:
    finding = CLAIMS[claim].judge(Evidence(results, setting, CLAIMS[claim].trainings[setting]))
    assert finding.reason
    return finding


def schemes(folder: Path, losses: Losses, results: Any = None) -> None:
    changes = {name: {"model.positional.name": name} for name in losses}
    train(folder / "posts" / "positional", losses, changes, results)


# ---- signs and verdicts ----


@pytest.mark.parametrize(
    ("losses", "sign"),
    [
        (at(1.0), "below"),
        (at(3.0), "above"),
        (at(2.0, 2.0), "equivalent"),
        (at(2.02, 2.0), "slightly above"),
        (at(1.98, 2.0), "slightly below"),
        (at(2.0, 100.0), UNDECIDED),
        ([1.0], UNDECIDED),
    ],
)
def test_signs(losses: list[float], sign: str) -> None:
    seeds = [dict(enumerate(values)) for values in (losses, at(2.0))]
    (effect,) = verdicts.effects_of({"x": minus(*seeds)})
    assert effect.sign == sign
    assert (effect.interval.half is None) == (len(losses) == 1)


def test_equivalence_is_tosts() -> None:
    """A difference of 0.015 with little noise is both significant and equivalent."""
    difference = {seed: 0.015 + w for seed, w in enumerate(WOBBLE)}
    (effect,) = verdicts.effects_of({"x": difference})
    assert effect.p is not None and effect.p < 0.05
    assert effect.p_tost is not None and effect.p_tost < 0.05 and effect.sign == "equivalent"
    (narrower,) = verdicts.effects_of({"x": difference}, tolerance=0.005)
    assert narrower.sign == "above"


def effects(*signs: str) -> list[Effect]:
    not_above = {"equivalent", "below", "slightly below"}
    return [Effect("x", Interval(0, 0, 5), 0.0, 0.0, sign, sign in not_above) for sign in signs]


@pytest.mark.parametrize(
    ("signs", "no_worse", "better"),
    [
        (["below", "slightly below"], HOLDS, HOLDS),
        (["equivalent", "below"], HOLDS, PARTLY),
        (["equivalent", "above"], FAILS, FAILS),
        (["equivalent", "slightly above"], UNDECIDED, UNSUPPORTED),
        (["slightly above"], UNDECIDED, UNSUPPORTED),
        (["below", UNDECIDED], UNDECIDED, UNDECIDED),
        ([], UNDECIDED, UNDECIDED),
    ],
)
def test_verdicts(signs: list[str], no_worse: str, better: str) -> None:
    assert verdicts.no_worse(effects(*signs)) == no_worse
    assert verdicts.better(effects(*signs)) == better


def test_not_worse_is_a_one_sided_test() -> None:
    """As scipy's ttest_1samp(d, 0.02, alternative="less"); not equivalent, for d may be far below.

    Of two such effects each is tested alone, since both must hold.
    """
    wide = {seed: -0.006 + 20 * w for seed, w in enumerate((-0.001, 0.001, 0.0013, -0.0013, 0))}
    found = verdicts.effects_of({"one": wide, "other": wide})
    expected = float(stats.ttest_1samp([*wide.values()], 0.02, alternative="less")[1])  # pyright: ignore
    assert verdicts.above_p([-d for d in wide.values()], -0.02) == pytest.approx(expected)
    assert 0.025 < expected < 0.05  # so Holm's correction would lose it
    assert [effect.sign for effect in found] == [UNDECIDED] * 2
    assert verdicts.no_worse(found) == HOLDS and verdicts.better(found) == UNDECIDED


def test_beyond_the_tolerance_is_corrected_for_the_family() -> None:
    """One of many differences is beyond the tolerance only by a corrected one-sided test."""
    difference = {seed: 0.032 + 6 * w for seed, w in enumerate(WOBBLE)}
    alone, *family = (
        verdicts.effects_of({str(n): difference for n in range(size)}) for size in (1, 30)
    )
    assert alone[0].sign == "above" and family[0][0].sign == "slightly above"
    expected = stats.ttest_1samp([*difference.values()], 0.02, alternative="greater")[1]
    assert verdicts.beyond_p([*difference.values()], 0.02) == pytest.approx(expected)
    assert verdicts.beyond_p([-d for d in difference.values()], 0.02) == pytest.approx(expected)


def test_settings_that_disagree() -> None:
    assert verdicts.overall({"(a)": HOLDS, "(b)": HOLDS}) == HOLDS
    disagree = verdicts.overall({"(a)": FAILS, "(b)": HOLDS})
    assert disagree == "depends on the setting: does not hold in (a), holds in (b)"
    assert verdicts.overall({"(a)": UNDECIDED, "(b)": HOLDS}) == "undecided in (a), holds in (b)"


# ---- claims ----


@pytest.mark.parametrize(
    ("alibi", "expected"),
    [(at(1.9, 2), HOLDS), (at(2.0, 2), PARTLY), (at(2.3, 2), FAILS), (at(1.9, 99), UNDECIDED)],
)
def test_inside_blocks(tmp_path: Path, alibi: list[float], expected: str) -> None:
    losses = {name: at(1.8, 1 + 0.1 * n) for n, name in enumerate(SCHEMES)}
    schemes(tmp_path, losses | {"learned": at(2.0), "sinusoidal": at(2.1), "alibi": alibi})
    assert judge("inside_blocks", tmp_path).verdict == expected


@pytest.mark.parametrize(
    ("alibi", "rope", "expected"),
    [(at(2.0, 2), at(2.0, 3), HOLDS), (at(2.0), at(2.5), FAILS), (at(2.0), at(2.0, 99), UNDECIDED)],
)
def test_alike(tmp_path: Path, alibi: list[float], rope: list[float], expected: str) -> None:
    schemes(tmp_path, {"relative_bias": at(2.0), "alibi": alibi, "rope": rope})
    assert judge("alike", tmp_path).verdict == expected


@pytest.mark.parametrize(
    ("alibi", "rope", "expected"), [(0, 8, HOLDS), (0, 0, HOLDS), (8, 0, FAILS), (0, 65, FAILS)]
)
def test_parameters(tmp_path: Path, alibi: int, rope: int, expected: str) -> None:
    counts = dict.fromkeys(SCHEMES, 64) | {"alibi": alibi, "rope": rope}
    results = {name: {"parameters": {"positional": n}} for name, n in counts.items()}
    schemes(tmp_path, dict.fromkeys(counts, at(2.0)), results)
    assert judge("parameters", tmp_path).verdict == expected


GROWN = {name: at(0.5) for name in claims.BEYOND} | {"alibi": at(0.0, 0.5)}


@pytest.mark.parametrize(
    ("grown", "expected"),
    [
        (GROWN, HOLDS),
        (GROWN | {"alibi": at(0.3)}, FAILS),
        (GROWN | {"alibi": at(0.0, 99)}, UNDECIDED),
        (GROWN | {"t5": at(0.0, 0.5)}, PARTLY),
        (dict.fromkeys(GROWN, at(0.0, 0.5)), FAILS),
    ],
)
def test_beyond(tmp_path: Path, grown: dict[str, list[float]], expected: str) -> None:
    """`grown`: by how much losses differ at contexts beyond the block of 32."""
    inside = {name: at(2.0) for name in grown if name != "kerple"}
    schemes(tmp_path, inside)
    kerple = {"kerple": {"model.positional.name": "kerple"}}
    train(tmp_path / "posts" / "kerple", {"kerple": at(2.0)}, kerple)
    for name, more in grown.items():
        folder = tmp_path / "posts" / ("kerple" if name == "kerple" else "positional")
        for seed, (loss, by) in enumerate(zip(at(2.0), more, strict=True), 1):
            contexts = {
                str(n): {"loss": loss + (by - 0.1 * (seed - 1)) * (n > 32)}
                for n in (32, *claims.LONGER)
            }
            write_json(folder / f"{name}_{seed}" / "eval.json", {"last": {"contexts": contexts}})
    assert judge("beyond", tmp_path).verdict == expected


@pytest.mark.parametrize(("learned", "expected"), [(1.5, FAILS), (2.0, HOLDS), (2.5, HOLDS)])
def test_learned_sinusoidal(tmp_path: Path, learned: float, expected: str) -> None:
    schemes(tmp_path, {"learned": at(learned), "sinusoidal": at(2.0, 2)})
    assert judge("learned_sinusoidal", tmp_path).verdict == expected


@pytest.mark.parametrize(
    ("bigram", "expected"),
    [(at(2.5), HOLDS), (at(2.05), FAILS), (at(1.5), FAILS), (at(2.5, 999), UNDECIDED)],
)
def test_bigram(tmp_path: Path, bigram: list[float], expected: str) -> None:
    schemes(tmp_path, {"rope": at(2.0, 2), "learned": at(1.9, 3)})
    own = {"model.name": "bigram", "model.n_layer": 0, "model.embedding.name": "untied"}
    changes = {"bigram": own | {"model.positional.name": "nope"}}
    train(tmp_path / "posts" / "bigram", {"bigram": bigram}, changes)
    assert judge("bigram", tmp_path).verdict == expected


@pytest.mark.parametrize(("tied", "expected"), [(1.5, HOLDS), (2.0, HOLDS), (2.5, FAILS)])
def test_tying(tmp_path: Path, tied: float, expected: str) -> None:
    schemes(tmp_path, {"learned": at(tied)}, {"learned": {"parameters": {"total": 9}}})
    results = {name: {"parameters": {"total": 12}} for name in ("char", "tied", "untied")}
    untied = {"model.embedding.name": "untied"}
    train(tmp_path / "posts" / "untied", {"char": at(2.0, 2)}, {"char": untied}, results)
    bpe = {"tied": {"tokenizer.name": "bpe"}, "untied": {"tokenizer.name": "bpe"} | untied}
    losses = {"tied": at(tied, 3), "untied": at(2.0, 4)}
    train(tmp_path / "posts" / "bpe", losses, bpe, results)
    finding = judge("tying", tmp_path)
    assert finding.verdict == expected and finding.tables[0].rows[0] == ["char", 9, 12]


@pytest.mark.parametrize(
    ("deep", "expected"), [(2.9, HOLDS), (2.0, PARTLY), (1.5, FAILS), (math.nan, HOLDS)]
)
def test_norm(tmp_path: Path, deep: float, expected: str) -> None:
    """Post-norm is 0.5 worse, but `deep` at 8 layers and the high rate; nan: it diverges there."""
    base = {"trainer.max_steps": 5000, "optimizer.lr": 1e-3, "model.positional.name": "learned"}
    train(tmp_path / "posts" / "positional", {"learned": at(2.0)}, {"learned": base})
    post = {"post": base | {"model.norm.placement": "post"}}
    train(tmp_path / "posts" / "post_norm", {"post": at(2.5, 2)}, post)
    changes, losses = {}, {}
    for number, (depth, rate) in enumerate([(4, 1e-3), (4, 4e-3), (8, 1e-3), (8, 4e-3)]):
        for placement in ("pre", "post"):
            name = f"{placement} {depth} {rate}"
            own = {"model.n_layer": depth, "optimizer.lr": rate}
            changes[name] = own | {"model.norm.placement": placement, "trainer.max_steps": 500}
            level = 2.0 if placement == "pre" else 2.5
            losses[name] = at(level, number + (placement == "post"))
    losses["post 8 0.004"] = at(2.0 if math.isnan(deep) else deep, 5)
    train(tmp_path / "posts" / "norm_grid", losses, changes)
    if math.isnan(deep):
        for seed in range(1, 6):
            file = tmp_path / "posts" / "norm_grid" / f"post_8_0.004_{seed}" / "result.json"
            write_json(file, {"status": "failed", "seed": seed, "diverged": True})
    finding = judge("norm", tmp_path)
    assert finding.verdict == expected and len(finding.effects) == 5
    if math.isnan(deep):
        assert finding.effects[-1].interval.mean == pytest.approx(2.2 - math.log(65), abs=0.01)


@pytest.mark.parametrize(("one", "expected"), [(1.5, HOLDS), (2.0, HOLDS), (2.5, FAILS)])
def test_heads(tmp_path: Path, one: float, expected: str) -> None:
    results = {"x": {"parameters": {"total": 9}}}
    for n, expansion, level in ((None, 4.0, 2.0), (4, 4.5, 2.0), (2, 4.75, 2.0), (1, 4.875, one)):
        folder = "positional" if n is None else f"heads_{n}"
        own = {"model.n_kv_head": n, "model.ffn.expansion": expansion, "model.n_head": 8}
        losses = {"x": at(level, 1 + expansion)}
        train(tmp_path / "posts" / folder, losses, {"x": own | {"model.n_embd": 64}}, results)
    finding = judge("heads", tmp_path)
    assert finding.verdict == expected
    bytes_per_token = [row[2] for row in finding.tables[0].rows]
    assert bytes_per_token == [2 * 4 * 64 * 4 // share for share in (1, 2, 4, 8)]


@pytest.mark.parametrize(("bpe", "expected"), [(3.5, HOLDS), (2.0, FAILS)])
def test_tuned_tokenizers(tmp_path: Path, bpe: float, expected: str) -> None:
    names = ("char", "bpe", "gpt2")
    for what in ("bytes", "flops", "steps"):
        losses = {"char": at(3.0), "bpe": at(bpe, 2)} | (
            {"gpt2": at(3.5, 3)} if what == "flops" else {}
        )
        changes = {name: {"tokenizer.name": name} for name in names}
        train(tmp_path / "tuned" / f"tokenizer_{what}", losses, changes)
    finding = judge("tokenizer", tmp_path, TUNED)
    assert finding.verdict == expected and len(finding.effects) == 3


def test_tokenizers_are_compared_at_equal_amounts_of_one_curve(tmp_path: Path) -> None:
    """Bits/byte fall by 1 in 100 steps; char, bpe and gpt2 read 1, 2 and 4 bytes per token.

    Characters and byte pairs train for 200 steps, evaluated at 0, 100 and 200; gpt2 for 20,
    evaluated at 10 and 20.
    """
    bytes_per_token = {"char": 1, "bpe": 2, "gpt2": 4, "long_char": 1}
    for name, n_bytes in bytes_per_token.items():
        folder = tmp_path / "posts" / {"char": "positional"}.get(name, name)
        is_long = name == "long_char"
        own = {"tokenizer.name": "char" if is_long else name, "model.embedding.name": "tied"}
        own |= {"model.block_size": 96} if is_long else {}
        steps = (10, 20) if name == "gpt2" else (50, 100, 200)
        result = {"steps": steps[-1], "flops_per_token": n_bytes}
        train(folder, {name: [2.0, 2.1]}, {name: own}, {name: result})
        for seed in (1, 2):
            path = folder / f"{name}_{seed}"
            manifest = json.loads((path / "manifest.json").read_text())
            counts = {"characters": {"train": 1000}, "tokens": {"train": 1000 // n_bytes}}
            write_json(path / "manifest.json", manifest | counts)
            lines = [{"step": s, "val_bits_per_byte": 5 - s / 100} for s in steps]
            (path / "metrics.jsonl").write_text("".join(f"{json.dumps(x)}\n" for x in lines))
    (table,) = judge("tokenizer", tmp_path).tables
    values = {
        (row[0], row[1], row[3]): [x.mean for x in row if isinstance(x, Interval)]
        for row in table.rows
    }
    expected: dict[tuple[Any, ...], list[float]] = {
        ("bytes", "char", "bpe"): [3.0, 4.0],  # 200 and 100 steps
        ("bytes", "char", "gpt2"): [5 - 0.8, 5 - 0.2],  # 80 and 20 steps
        ("bytes", claims.LONG, "bpe"): [5 - 4 / 3, 3.0],  # 133 and 200 steps
        ("steps", "char", "bpe"): [3.0, 3.0],  # not gpt2: 20 steps are before char's first
    }
    expected |= {("FLOPs", *row[1:]): bits for row, bits in expected.items() if row[0] == "bytes"}
    expected["steps", claims.LONG, "bpe"] = [3.0, 3.0]
    assert values.keys() == expected.keys()
    for row, bits in expected.items():
        assert values[row] == pytest.approx(bits)


@pytest.mark.parametrize(
    ("best", "trained", "expected"), [(2.0, 100, HOLDS), (2.5, 100, FAILS), (2.0, 400, FAILS)]
)
def test_early_stopping(tmp_path: Path, best: float, trained: int, expected: str) -> None:
    for scheduler, level, steps in (("asha", best, trained), ("none", 2.0, 400)):
        for seed, value in enumerate(at(level), 1):
            saving = {"steps_trained": steps + seed % 2, "steps_in_full": 400}
            search = {"status": "finished", "best": {"value": value}, "saving": saving}
            write_json(tmp_path / "searches" / f"{scheduler}_{seed}" / "tune.json", search)
    finding = judge("early_stopping", tmp_path, TUNED)
    assert finding.verdict == expected
    # Five of five: (1 - p)^5 = 0.05 at the one-sided bound p.
    assert ("at most 45%" in finding.reason) == (best == 2.0)
    assert len(finding.effects) == (best != 2.0)


# ---- runs that cannot be judged ----


def test_what_is_not_trained_has_no_verdict(tmp_path: Path) -> None:
    with pytest.raises(NotTrained, match=r"posts/positional: not trained; use --train posts/posit"):
        judge("alike", tmp_path)
    schemes(tmp_path, {"alibi": at(2.0), "rope": at(2.0)})
    with pytest.raises(ValueError, match=r"0 designs with model.positional.name=relative_bias"):
        judge("alike", tmp_path)
    (tmp_path / "posts" / "positional" / "alibi_1" / "result.json").unlink()
    assert not is_complete(tmp_path / "posts" / "positional")


def test_only_diverged_runs_count_as_guessing(tmp_path: Path) -> None:
    schemes(tmp_path, {"sinusoidal": at(2.0), "learned": at(1.9)})
    file = tmp_path / "posts" / "positional" / "learned_5" / "result.json"
    write_json(file, {"status": "failed", "seed": 5, "diverged": True})
    evidence = Evidence(tmp_path, POSTS, ["posts/positional"])
    assert evidence.losses({})[5] == math.log(65) and len(evidence.losses({})) == 5
    with pytest.raises(ValueError, match="learned_5: failed, and cannot be judged"):
        evidence.losses({}, bits=True)
    write_json(file, {"status": "failed", "seed": 5})
    with pytest.raises(ValueError, match="learned_5: failed, and cannot be judged"):
        Evidence(tmp_path, POSTS, ["posts/positional"]).losses({})


# ---- the page and the program ----


def test_every_training_decides_a_claim() -> None:
    used = {name for claim in CLAIMS.values() for own in claim.trainings.values() for name in own}
    assert used == {*TRAININGS, *measured.MEASUREMENTS}


def test_page(tmp_path: Path) -> None:
    schemes(tmp_path / "results", {name: at(2.0, n) for n, name in enumerate(SCHEMES, 1)})
    known = judge("learned_sinusoidal", tmp_path / "results")
    findings = {"learned_sinusoidal": {POSTS: known, TUNED: "tuned/positional: not trained"}}
    draw(findings, tmp_path)
    text = page(findings, tmp_path / "results")
    assert "| holds | not trained yet |" in text
    assert "![Differences](plots/learned_sinusoidal.svg)" in text
    assert "    minigpt train -m experiment=claims/posts positional=learned,sinusoidal," in text
    drawn = (tmp_path / "plots" / "learned_sinusoidal.svg").read_bytes()
    draw(findings, tmp_path)
    assert (tmp_path / "plots" / "learned_sinusoidal.svg").read_bytes() == drawn


def test_the_page_and_the_readme_show_the_committed_results() -> None:
    """`python -m studies.claims.run` would change neither."""
    results = HERE / "results"
    table = results_table(results)
    text = README.read_text(encoding="utf-8")
    assert with_part(text, START, END, table) == text and table.count("\n") == 1 + len(ROWS)
    assert page(judge_all(results), results) == (HERE / "results.md").read_text(encoding="utf-8")


def test_backends_are_measured_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("LENGTHS", (16, 32)), ("TOKENS", 64), ("REPEATS", 2)):
        monkeypatch.setattr(measured, name, value)
    measured.measure(BACKENDS, tmp_path / BACKENDS)
    finding = judge("backend", tmp_path)
    rows = finding.tables[0].rows
    assert [row[:2] for row in rows] == [
        [precision, length] for precision in ("fp32", "bf16") for length in ("16", "32")
    ]
    for _, _, ratio, _, *megabytes in rows:
        assert isinstance(ratio, Interval) and ratio.mean > 0
        assert all(isinstance(number, float) and number > 0 for number in megabytes)


def test_decoding_is_measured_by_key_value_heads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = ["experiment=claims/posts", "model.n_layer=1", "model.n_embd=64"]
    for name, value in (("LARGE", large), ("CONTEXTS", (8, 16)), ("DECODED", 3), ("REPEATS", 2)):
        monkeypatch.setattr(measured, name, value)
    measured.measure(CACHE, tmp_path / CACHE)
    rows = judge("cache", tmp_path).tables[0].rows
    assert [row[:2] for row in rows] == [[n, heads] for n in ("8", "16") for heads in "421"]
    cached = [row[4] for row in rows]
    assert cached == [2 * 4 * 8 * n * heads * 8 / 1e6 for n in (8, 16) for heads in (4, 2, 1)]


@pytest.mark.parametrize(("fast", "expected"), [(0.5, HOLDS), (1.0, FAILS), (0.0, PARTLY)])
def test_cache(tmp_path: Path, fast: float, expected: str) -> None:
    """`fast`: time of fewer heads over 8 at the longer context; 0: only of one head."""
    slow = [1.0, 1.01, 0.99]
    quick = [fast * s for s in slow] if fast else slow
    long = {"8": slow, "4": quick, "2": quick, "1": quick if fast else [0.5 * s for s in slow]}
    size = dict.fromkeys(long, 1000)
    rows = [
        {"context": 8, "seconds": dict.fromkeys(long, slow), "cache_bytes": size},
        {"context": 16, "seconds": long, "cache_bytes": size},
    ]
    facts = {"parameters": 9, "batch": 2, "device": "cpu", "repeats": 3, "rows": rows}
    (tmp_path / CACHE).mkdir(parents=True)
    write_json(tmp_path / CACHE / "measured.json", facts)
    assert judge("cache", tmp_path).verdict == expected


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_training_is_kept_without_weights(workdir: Path) -> None:
    program, out = "studies.claims.run", ["--out", "out", "--runs", "runs"]
    small = [
        *SMALL,
        "model.block_size=8",
        "trainer.max_steps=2",
        "seed=1,2",
        "data.train_fraction=0.5",
    ]
    done = run(program, *out, "--train", "posts/kerple", *small, "hydra/launcher=basic")
    assert done.returncode == 0, done.stderr
    assert "alike, posts: posts/positional: not trained" in done.stdout
    kept = Path("out/results/posts/kerple")
    assert not [*kept.rglob("*.safetensors")] and [*Path("runs").rglob("*.safetensors")]
    names = {path.name for path in kept.rglob("*") if path.is_file()}
    assert names == {
        *("config.yaml", "manifest.json", "result.json", "metrics.jsonl", "sweep.json"),
        "eval.json",
    }
    assert "not trained yet" in Path("out/results.md").read_text(encoding="utf-8")
    runs = find_runs([str(kept)]).runs
    assert [r.finished for r in runs] == [True, True] and not any(r.problems for r in runs)
    assert all(len(run.evaluations["last"]["contexts"]) == 4 for run in runs)
    again = run(program, *out, "--train", "posts/kerple", *small)
    assert again.returncode == 0 and "positional=kerple" not in again.stdout
    refused = run(program, *out, "--train", "posts/kerpel")
    assert refused.returncode == 2 and "--train=posts/kerpel: not one of" in refused.stderr


def test_paths_of_the_machine_are_not_kept(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    schemes(folder, {"rope": [2.0]})
    file = folder / "posts" / "positional" / "rope_1" / "manifest.json"
    manifest = json.loads(file.read_text())
    resolved = {"data.dir": "/home/me/data", "trainer.threads": 1}
    write_json(file, manifest | {"resolved": resolved})
    keep(folder / "posts" / "positional", tmp_path / "kept")
    kept = json.loads((tmp_path / "kept" / "rope_1" / "manifest.json").read_text())
    assert kept["resolved"] == {"trainer.threads": 1}
