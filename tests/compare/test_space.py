"""The grid of a comparison: its axes, its edges, and how it is widened."""

from __future__ import annotations

from typing import Any

import pytest

from minigpt.compare.options import CompareOptions
from minigpt.compare.search import DesignPoint, DesignSearch, Trial, points, probes
from minigpt.compare.space import DECAY, DECAYS, LR, Axis, axes_of, grid
from minigpt.compare.tuning import domain, nearest
from minigpt.config.compose import composed_config
from minigpt.config.overrides import parse_values
from minigpt.errors import UserError


def values(space: list[str], budget: int) -> dict[str, list[object]]:
    """Return the values of each axis for AdamW's configured options."""
    config = composed_config(["optimizer.lr=0.004", "optimizer.weight_decay=0.3"])
    return {axis.key: axis.values(config) for axis in axes_of(space, budget)}


def test_the_default_space_is_the_learning_rate_then_weight_decay() -> None:
    assert values([], 3) == {LR: [0.002, 0.004, 0.008], DECAY: [0.3]}
    assert values([], 5) == {LR: [0.001, 0.002, 0.004, 0.008, 0.016], DECAY: [0.3]}
    assert values([], 6) == {LR: [0.002, 0.004, 0.008], DECAY: [0.3, 1.2]}
    assert values([], 8) == {LR: [0.002, 0.004, 0.008, 0.016], DECAY: [0.3, 1.2]}


def test_a_given_space_replaces_or_adds_axes() -> None:
    assert values([f"{LR}=0.02,0.01", f"{DECAY}=0,0.1"], 4) == {
        LR: [0.01, 0.02],  # numbers in ascending order
        DECAY: [0, 0.1],
    }
    beta = values(["optimizer.beta2=0.95,0.99"], 6)
    assert beta == {LR: [0.002, 0.004, 0.008], DECAY: [0.3], "optimizer.beta2": [0.95, 0.99]}
    log = values([f"{LR}=tag(log,interval(1e-3,1e-1))"], 5)
    assert log[LR] == [0.001, 0.003162, 0.01, 0.03162, 0.1]
    linear = values(["model.dropout=interval(0.0,0.2)"], 9)
    assert linear == {LR: [0.002, 0.004, 0.008], "model.dropout": [0, 0.1, 0.2], DECAY: [0.3]}
    whole = values(["model.n_head=int(interval(1,4))"], 12)
    assert whole["model.n_head"] == [1, 2, 4]


@pytest.mark.parametrize("budget", range(3, 40))
def test_a_grid_stays_within_the_budget(budget: int) -> None:
    for space, smallest in (
        ([], 3),
        (["optimizer.beta2=0.9,0.99"], 6),
        (["model.dropout=interval(0.0,0.2)"], 9),
    ):
        if budget < smallest:
            with pytest.raises(UserError, match=rf"--budget={budget}: needs {smallest} or more"):
                axes_of(space, budget)
        else:
            assert smallest <= len(grid(axes_of(space, budget))) <= budget


@pytest.mark.parametrize(
    ("space", "budget", "message"),
    [
        ([], 2, "--budget=2: needs 3 or more for 3 values of optimizer.lr"),
        ([f"{LR}=0.1"], 8, "has one value"),
        ([f"{LR}=0.1,0.1"], 8, "contains a value twice"),
        ([f"{LR}=0.1,0.2", f"{LR}=0.3,0.4"], 8, "gives a key twice"),
        ([LR], 8, "write KEY=VALUE,VALUE"),
        (["seed=1,2"], 8, "is the same for all designs"),
        (["data.train_fraction=0.8,0.9"], 8, "is the same for all designs"),
        (["tokenizer=char,bpe"], 8, "is the same for all designs"),
        (["hydra.job.num=1,2"], 8, "is the same for all designs"),
        ([f"{LR}=interval(2,1)"], 8, "the second bound must be above the first"),
        ([f"{LR}=tag(log,interval(0,1))"], 8, f"--space {LR}=tag(log,interval(0,1)): log needs"),
        ([f"{LR}=tag(lgo,interval(1,2))"], 8, "no such tag: lgo; use log or int"),
        (["optimizer.beta2=" + ",".join(f"0.{n}" for n in range(1, 10))], 8, "needs 27 or more"),
    ],
)
def test_wrong_spaces_are_refused(space: list[str], budget: int, message: str) -> None:
    with pytest.raises(UserError) as caught:
        axes_of(space, budget)
    assert message in str(caught.value)


def test_multiples_of_zero_are_refused() -> None:
    config = composed_config(["optimizer.weight_decay=0"])
    with pytest.raises(UserError, match=r"weight_decay=0.*cannot be multiplied.*--space"):
        axes_of([], 3)[1].values(config)


def test_only_an_interval_widens_and_only_beyond_its_edges() -> None:
    (lr, decay) = axes_of([], 8)
    assert lr.points == (0.5, 1, 2, 4)
    assert lr.widened(set()) == lr and lr.widened({None}) == lr
    assert lr.widened({"highest"}).points == (0.5, 1, 2, 4, 8, 16)
    assert lr.widened({"lowest", None}).points == (0.125, 0.25, 0.5, 1, 2, 4)
    assert lr.widened({"lowest", "highest"}).points == (0.125, 0.25, 0.5, 1, 2, 4, 8, 16)
    listed = Axis(LR, (1.0, 2.0, 3.0))
    assert listed.widened({"lowest"}) == listed
    assert [listed.edge(i) for i in range(3)] == ["lowest", None, "highest"]
    assert [decay.edge(i) for i in range(2)] == ["lowest", "highest"]
    assert Axis("ffn", ("a", "b", "c")).edge(0) is None
    (log, _) = axes_of([f"{LR}=tag(log,interval(1e-3,1e-1))"], 3)
    assert log.widened({"highest"}).points == pytest.approx((1e-3, 1e-2, 1e-1, 1, 10))


def test_the_best_trial_is_that_of_the_lowest_loss_and_divergence_is_the_worst() -> None:
    axes = [Axis(LR, (1.0, 2.0, 3.0)), Axis(DECAY, (0.1, 0.2))]
    config = composed_config([])
    grid_of_design = points(axes, config)
    assert [point.values for point in grid_of_design[:3]] == [
        {LR: 1.0, DECAY: 0.1},
        {LR: 1.0, DECAY: 0.2},
        {LR: 2.0, DECAY: 0.1},
    ]
    assert grid_of_design[1].overrides == [f"{LR}=1.0", f"{DECAY}=0.2"]
    assert len(probes(axes, config)) == 4

    def search(*losses: float) -> DesignSearch:
        pairs = zip(grid_of_design, losses, strict=True)
        return DesignSearch("rope", [], axes, [Trial(p, loss, 1.0) for p, loss in pairs])

    inside = search(9, 9, 1.5, 1.4, float("inf"), 9)
    assert inside.best is not None and inside.best.point.values == {LR: 2.0, DECAY: 0.2}
    assert inside.edges == {DECAY: "highest"}  # the best of two values is at an edge
    assert search(9, 9, 2, 2, float("inf"), 1).edges == {LR: "highest", DECAY: "highest"}
    assert search(1, 9, 2, 2, float("inf"), 9).edges == {LR: "lowest", DECAY: "lowest"}
    none = search(*[float("inf")] * 6)
    assert none.best is None and none.edges == {}
    assert isinstance(grid_of_design[0], DesignPoint)


def test_a_large_budget_fills_the_range_of_learning_rates() -> None:
    (narrow, _), (wide, _) = axes_of([], 18), axes_of([], 200)
    assert max(narrow.points) / min(narrow.points) == 2.0**8 and len(narrow.points) == 9
    assert max(wide.points) / min(wide.points) == pytest.approx(2.0**8) and len(wide.points) == 100
    assert wide.widened({"highest"}).points[:100] == wide.points


WRONG = [{"seeds": 1}, {"seeds": 1001}, {"budget": 0}, {"budget": 5000}, {"search_seeds": 0}]


@pytest.mark.parametrize("options", WRONG)
def test_wrong_numbers_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"--(seeds|budget|search-seeds)="):
        CompareOptions(**options)


# ---- for a search without a grid ----


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optimizer.lr=tag(log,interval(1e-3,8e-3))", "tag(log,interval(0.001,0.008))"),
        ("optimizer.lr=interval(0.1,0.4)", "interval(0.1,0.4)"),
        ("optimizer.beta2=0.95,0.99", "0.95,0.99"),
        ("trainer.batch_size=int(interval(4,32))", "tag(int,interval(4,32))"),
    ],
)
def test_axes_in_the_syntax_of_tune(text: str, expected: str) -> None:
    config = composed_config([])
    key = text.partition("=")[0]
    axis = next(axis for axis in axes_of([text], None) if axis.key == key)
    assert domain(axis, axis.values(config)) == expected
    assert parse_values(f"{key}={expected}")[1] is not None


def test_the_default_space_without_a_grid() -> None:
    lr, decay = axes_of([], None)
    assert lr.points == (0.5, 1.0, 2.0, 4.0) and decay.points == DECAYS
    assert domain(lr, [1e-3, 2e-3, 4e-3]) == "tag(log,interval(0.001,0.004))"
    assert domain(lr, [1e-3]) == "0.001"


def test_the_nearest_value_of_an_axis() -> None:
    values = [0.001, 0.002, 0.004]
    assert [nearest(values, x) for x in (0.001, 0.0014, 0.0015, 0.0028, 0.0029)] == [0, 0, 1, 1, 2]
    assert nearest([0.0, 1.0], 0.4) == 0 and nearest(["a", "b"], "b") == 1
