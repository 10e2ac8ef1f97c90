"""The verdict of a report: who beats whom, who does not differ, and what is not tested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from statsmodels.stats.power import TTestPower

from minigpt.report.comparison import Comparison, compare
from minigpt.report.hierarchical import MixedDifference
from minigpt.report.statistics import ALPHA, POWER, Interval
from minigpt.report.verdict import verdict
from tests.report.synthetic import config, make_run

SEEDS = (0.0, 0.01, -0.01, 0.02, 0.005)  # what a seed adds to the loss of every design
NOISE = {  # what it adds to one design; means are 0
    "a": (0.001, -0.001, 0.0, 0.001, -0.001),
    "b": (-0.001, 0.0, 0.001, -0.001, 0.001),
    "c": (0.0, 0.001, -0.001, -0.001, 0.001),
}


def losses(mean: float, noise: str = "a", scale: float = 1.0) -> list[float]:
    return [mean + s + scale * n for s, n in zip(SEEDS, NOISE[noise], strict=True)]


def compared(
    folder: Path, designs: Mapping[str, Sequence[float | None]], plan: float | None = None
) -> Comparison:
    """Compare designs by their losses with seeds from 1; None is a seed that is missing."""
    for place, (name, values) in enumerate(designs.items()):
        for seed, loss in enumerate(values, 1):
            start = {"started": f"2026-11-25T{10 + place}:00:{seed:02d}"}
            if loss is not None:
                settings = config("rope", seed, model__positional__name=name)
                make_run(folder / f"{name}_{seed}", settings, loss, manifest=start)
    return compare([str(folder)], plan=plan)


def test_one_design(tmp_path: Path) -> None:
    found = verdict(compared(tmp_path, {"rope": losses(1.5)}))
    assert found == (
        "One design, so nothing to compare: model=rope, validation loss 1.505 ± 0.014 nats/token "
        "(5 seeds)."
    )


def test_no_finished_run(tmp_path: Path) -> None:
    make_run(tmp_path / "one", config(), status="failed")
    assert verdict(compare([str(tmp_path)])) == "No run has finished, so there is no verdict yet."


def test_one_seed(tmp_path: Path) -> None:
    found = verdict(compared(tmp_path, {"learned": [1.6], "rope": [1.5]}))
    assert found == (
        "rope has the lowest validation loss, 1.5000 nats/token (1 seed), but one seed cannot show "
        "a difference: train several, as seed=1,2,3."
    )


def test_no_shared_seeds(tmp_path: Path) -> None:
    designs = {"learned": [1.6, 1.61, None], "rope": [None, 1.5, 1.52]}
    found = verdict(compared(tmp_path, designs))
    assert found.endswith("but no two designs share 2 seeds, so no difference is tested.")
    assert found.startswith("rope has the lowest validation loss, 1.51")


def test_the_better_of_two(tmp_path: Path) -> None:
    designs = {"learned": losses(1.55, "b"), "rope": losses(1.5)}
    assert verdict(compared(tmp_path, designs)) == "rope beats learned (by 0.050 nats/token)."


def test_all_tie_and_the_seeds_that_would_tell(tmp_path: Path) -> None:
    designs = {name: losses(1.5, noise) for name, noise in (("x", "a"), ("y", "b"), ("z", "c"))}
    designs["z"] = losses(1.501, "c")
    comparison = compared(tmp_path, designs)
    found = verdict(comparison)
    assert found.startswith("5 seeds show no significant difference between ")
    more, effect = int(found.split("(")[1].split()[0]), float(found.split()[-2])
    pairs = comparison.pairs.values()
    largest = max(pairs, key=lambda pair: abs(pair.interval.mean))
    assert largest.deviation is not None and effect == pytest.approx(0.001)
    size, power = effect / largest.deviation, TTestPower().power
    alpha = ALPHA / len(pairs)  # of the strictest of Holm's tests
    assert power(size, 5 + more, alpha) >= POWER > power(size, 4 + more, alpha)


def test_a_tie_with_a_plan_and_with_equivalence(tmp_path: Path) -> None:
    designs = {"x": losses(1.5, "a"), "y": losses(1.5001, "b")}
    found = verdict(compared(tmp_path, designs, plan=0.001))
    assert found.endswith(" more would detect 0.0010 nats/token).")
    assert verdict(compare([str(tmp_path)], plan=0.1)).endswith(
        "(they would detect 0.10 nats/token)."
    )
    found = verdict(compare([str(tmp_path)], equivalent=0.01))
    assert found == "x and y are equivalent within 0.01 nats/token (5 seeds)."
    found = verdict(compare([str(tmp_path)], equivalent=0.0001))
    assert found.startswith("5 seeds show no significant difference between x and y (")


def test_a_difference_too_small_to_plan_for(tmp_path: Path) -> None:
    designs = {"x": losses(1.5, "a"), "y": losses(1.5 + 1e-6, "b")}
    comparison = compared(tmp_path, designs)
    (pair,) = comparison.pairs.values()
    effect = pair.minimum_detectable_effect
    assert effect is not None
    assert verdict(comparison).endswith(f"x and y (they would detect {effect:.4f} nats/token).")


def test_equal_losses(tmp_path: Path) -> None:
    designs = {"x": losses(1.5), "y": losses(1.5)}
    assert verdict(compared(tmp_path, designs)) == (
        "5 seeds show no significant difference between x and y."
    )


def test_a_tie_beats_the_rest(tmp_path: Path) -> None:
    """As in the words of the documentation: two designs beat a third, and do not differ."""
    designs = {
        "learned": losses(1.55, "c"),
        "rope": losses(1.5, "a"),
        "alibi": losses(1.501, "b"),
    }
    found = verdict(compared(tmp_path, designs))
    assert found.startswith(
        "rope and alibi beat learned (by 0.049 to 0.050 nats/token); 5 seeds show no significant "
        "difference between rope and alibi ("
    )
    assert found.endswith(" more would detect 0.0010 nats/token).")


def test_a_chain(tmp_path: Path) -> None:
    designs = {"x": losses(1.5, "a"), "y": losses(1.6, "b"), "z": losses(1.8, "c")}
    found = verdict(compared(tmp_path, designs))
    assert found == "x beats y (by 0.10 nats/token), which beats z (by 0.20)."


def test_a_long_chain_names_the_end_together(tmp_path: Path) -> None:
    noises = "abcabcabc"
    designs = {f"d{n}": losses(1.5 + n / 10, noise) for n, noise in enumerate(noises)}
    assert verdict(compared(tmp_path, designs)) == (
        "d0 beats d1 (by 0.10 nats/token), which beats d2 (by 0.10), which beats d3, d4, d5 and 3 "
        "others (by 0.10 to 0.60)."
    )


def test_significance_that_is_not_transitive(tmp_path: Path) -> None:
    """The first beats the third; the second differs significantly from neither."""
    designs = {
        "x": losses(1.5, "a"),
        "y": losses(1.504, "b", scale=5),
        "z": losses(1.508, "c"),
    }
    comparison = compared(tmp_path, designs)
    significant = {pair: test.significant for pair, test in comparison.pairs.items()}
    assert [names for names, known in significant.items() if known] == [
        ("positional=x", "positional=z")
    ]
    assert verdict(comparison) == (
        "x beats z, the only significant difference between x, y and z with 5 seeds."
    )


def test_a_tangle_is_told_from_the_best(tmp_path: Path) -> None:
    """Each beats all but its neighbour, so no tier is above another."""
    noise = (0.001, -0.0012, 0.0009, 0.0, -0.0007)
    designs = {
        name: [1.5 + 0.002 * n + s + e for s, e in zip(SEEDS, np.roll(noise, n), strict=True)]
        for n, name in enumerate("pqrstu")
    }
    comparison = compared(tmp_path, designs)
    beats = {
        (a.partition("=")[2], b.partition("=")[2])
        for (a, b), pair in comparison.pairs.items()
        if pair.significant
    }
    best = {b for a, b in beats if a == "p"}
    assert best and best != {*"qrstu"} and ("q", "r") not in beats
    found = verdict(comparison)
    begin = "p, the best mean of these 6 designs, beats "
    assert found.startswith(begin)
    assert found.endswith(f"({len(beats)} of their 15 differences are significant).")
    wins, _, equal = found.partition(", but does not differ significantly from ")
    assert all((name in wins.removeprefix(begin)) == (name in best) for name in "qrstu")
    assert all((name in equal.split(" with ")[0]) == (name not in best) for name in "qrstu")


def test_a_design_with_too_few_seeds_is_not_tested(tmp_path: Path) -> None:
    designs = {"x": losses(1.5, "a"), "y": losses(1.6, "b"), "z": [1.0]}
    assert verdict(compared(tmp_path, designs)) == (
        "x beats y (by 0.10 nats/token); z is not tested, for want of 2 seeds shared with another "
        "design."
    )


def test_designs_of_other_seeds_that_beat_the_same(tmp_path: Path) -> None:
    def some(values: list[float], *seeds: int) -> list[float | None]:
        return [loss if seed in seeds else None for seed, loss in enumerate(values, 1)]

    designs = {
        "x": some([1.5, 1.511, 1.0, 1.0], 1, 2),
        "y": some([1.0, 1.0, 1.6, 1.609], 3, 4),
        "z": [9.0, 9.01, 9.02, 9.03],
    }
    assert verdict(compared(tmp_path, designs)) == (
        "x and y beat z (by 7.4 to 7.5 nats/token); x and y are not compared, for want of 2 shared "
        "seeds."
    )


def test_a_pair_that_is_not_tested_is_no_tie(tmp_path: Path) -> None:
    first, second = losses(1.5, "a"), losses(1.5, "b")
    designs = {
        "x": [*first[:2], None, None],
        "y": [None, None, *second[2:4]],
        "z": losses(1.5, "c"),
    }
    found = verdict(compared(tmp_path, designs))
    assert "2 seeds show no significant difference between " in found
    assert ", where they share 2 seeds" in found


def test_the_lowest_mean_over_other_seeds_beats_nobody(tmp_path: Path) -> None:
    """The second has the lower mean, since it lacks a hard seed; where both ran it loses."""
    designs = {"x": [2.0, 2.1, 2.05, 9.0], "y": [2.101, 2.2, 2.1505, None]}
    comparison = compared(tmp_path, designs)
    assert comparison.ranked[0].label == "positional=y"
    found = verdict(comparison)
    assert found == "x beats y, the only significant difference between y and x with 3 seeds."


def test_other_texts(tmp_path: Path) -> None:
    for seed in (1, 2):
        make_run(tmp_path / f"a{seed}", config(seed=seed), 1.5 + seed / 100)
        other = {"data_sha256": "f" * 64}
        make_run(tmp_path / f"b{seed}", config(seed=seed), 1.0 + seed / 100, manifest=other)
    comparison = compare([str(tmp_path)])
    assert verdict(comparison).startswith("The runs used different texts or splits, so no design")
    first, second = comparison.labels
    difference = MixedDifference(Interval(-0.1, 0.01, 4), 0.001, 0.01, 0.01, 8, p_holm=0.001)
    shorter = {label: comparison.short[label] for label in (first, second)}
    over = replace(comparison, mixed={second: difference})
    begin = "Over several texts or sizes (mixed model): "
    assert verdict(over) == f"{begin}{shorter[second]} beats {shorter[first]}."
    unsure = replace(comparison, mixed={second: replace(difference, p_holm=0.2)})
    end = f"{shorter[second]} does not differ significantly from {shorter[first]}."
    assert verdict(unsure) == begin + end


def test_runs_that_have_not_ended(tmp_path: Path) -> None:
    make_run(tmp_path / "more", config("alibi", 1), status=None)
    found = verdict(compared(tmp_path, {"x": losses(1.5, "a"), "y": losses(1.6, "b")}))
    assert found == "x beats y (by 0.10 nats/token). Some runs have not ended."
