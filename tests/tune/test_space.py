"""Parsing of search spaces, and errors before Ray starts."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from ray import tune
from ray.tune.search.sample import Categorical, Domain

from minigpt.errors import UserError
from minigpt.extras import install
from minigpt.run.directory import RunDirectory
from minigpt.tune.options import TuneOptions
from minigpt.tune.proposals import Study
from minigpt.tune.records import TrialRecord, _evaluations, saving, trial_name
from minigpt.tune.space import as_typed, bounds, check_space, parse_space, warmup_warning
from tests.conftest import Cli

SMALL = ["trainer.max_steps=4", "trainer.eval_every=2"]


def domain(override: str) -> Domain:
    """Return the domain of a space with one searched key."""
    return next(iter(parse_space([override]).domains.values()))


@pytest.mark.parametrize(
    ("override", "values"),
    [
        ("model=rope,alibi", ["rope", "alibi"]),
        ("model=choice(rope,alibi)", ["rope", "alibi"]),
        ("model.n_layer=range(2,7,2)", [2, 4, 6]),
        ("model.dropout=range(0,0.3,0.1)", [0.0, 0.1, 0.2]),
        ("model.bias=true,false", [True, False]),
        ("optimizer.grad_clip=null,1.5", [None, 1.5]),
        ("model.attention.layers=[full],[full,chunked]", ["[full]", "[full,chunked]"]),
        ("data.path='a b','c,d'", ["'a b'", "'c,d'"]),
    ],
)
def test_lists_become_categorical_domains(override: str, values: list[object]) -> None:
    searched = domain(override)
    assert isinstance(searched, Categorical)
    assert list(searched.categories) == values


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("interval(1,5)", tune.uniform(1.0, 5.0)),
        ("tag(log,interval(1e-4,1e-2))", tune.loguniform(1e-4, 1e-2)),
        ("int(interval(1,5))", tune.randint(1, 6)),
        ("tag(int,interval(1,5))", tune.randint(1, 6)),
        ("tag(log,int,interval(1,5))", tune.lograndint(1, 6)),
        ("tag(log,int(interval(1,5)))", tune.lograndint(1, 6)),
    ],
)
def test_intervals_become_numeric_domains(value: str, expected: Domain) -> None:
    searched = domain(f"optimizer.lr={value}")
    assert type(searched) is type(expected)
    assert type(searched.get_sampler()) is type(expected.get_sampler())
    assert bounds(searched) == bounds(expected)


def test_integer_intervals_include_both_bounds() -> None:
    assert bounds(domain("model.n_layer=int(interval(1,5))")) == (1, 5)


def test_fixed_overrides_stay_fixed() -> None:
    space = parse_space(["seed=3", "model=rope,alibi", "trainer.sample_prompt=a(b"])
    assert space.fixed == ["seed=3", "trainer.sample_prompt='a(b'"]
    assert space.overrides({"model": "alibi"}) == [*space.fixed, "model=alibi"]
    assert space.fixes("seed") and not space.fixes("model")


@pytest.mark.parametrize("value", [0.1 + 0.2, 1e-05, 3, True, None, "'a b'"])
def test_values_round_trip_exactly(value: object) -> None:
    space = parse_space([f"optimizer.lr={as_typed(value)},7"])
    assert list(getattr(space.domains["optimizer.lr"], "categories")) == [value, 7]  # noqa: B009


def test_grid_contains_every_combination() -> None:
    grid = parse_space(["model=rope,alibi", "seed=range(1,4)"]).grid()
    assert len(grid) == 6
    assert {"model": "alibi", "seed": 3} in grid


def test_is_exhaustive_if_trials_cover_all_combinations() -> None:
    finite = parse_space(["model=rope,alibi", "seed=1,2"])
    for options, exhaustive in (
        (TuneOptions(), True),
        (TuneOptions(trials=3), False),
        (TuneOptions(sampler="grid"), True),
        (TuneOptions(scheduler="pbt"), False),  # two trials may have equal values
    ):
        assert finite.is_exhaustive(options) is exhaustive
    numbers = parse_space(["model.n_layer=int(interval(1,3))", "seed=1,2"])
    assert numbers.is_exhaustive(TuneOptions(trials=6)) and len(numbers.grid()) == 6
    assert not numbers.is_exhaustive(TuneOptions(trials=5))
    endless = parse_space(["model=rope,alibi", "optimizer.lr=interval(1e-3,1e-2)"])
    assert not endless.is_exhaustive(TuneOptions())


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize("status", ["finished", "stopped", "failed"])
@pytest.mark.parametrize(
    ("overrides", "trials"),
    [
        (["optimizer.lr=tag(log,interval(1e-4,1e-1))"], 10),
        (["model=rope,alibi", "seed=1,2,3"], 6),
        (["model.n_layer=int(interval(1,7))"], 7),
    ],
)
def test_a_search_resumed_after_every_trial_repeats_no_values(
    overrides: list[str], trials: int, status: str, sampler: str
) -> None:
    space, ended = parse_space(overrides), list[TrialRecord]()
    for number in range(trials):
        values = Study(space, TuneOptions(sampler=sampler), ended).ask(number).params
        assert values not in [record.values for record in ended]
        name = trial_name(number, values, changing=False)
        ended.append(TrialRecord(name, number, values, status, 4, 4, 1.0, 3.0, {4: 3.0}))


def test_tpe_is_told_of_ended_trials() -> None:
    """Its values after a resume depend on the losses from before it."""
    space, options = parse_space(["optimizer.lr=tag(log,interval(1e-4,1e-1))"]), TuneOptions()

    def proposed(best: int) -> float:
        """Return the median of rates after 31 trials, of which number `best` is the best."""
        ended = [
            TrialRecord(f"{n}", n, {"optimizer.lr": 10 ** (-4 + n / 10)}, status, 4, 4, 1.0, loss)
            for n in range(31)
            for loss, status in [(3.0 + abs(n - best), "finished" if n % 2 else "stopped")]
        ]
        numbers = range(31, 52)
        rates = [Study(space, options, ended).ask(n).params["optimizer.lr"] for n in numbers]
        return sorted(rates)[len(rates) // 2]

    assert proposed(best=7) < 1e-3 < 1e-2 < proposed(best=23)


@pytest.mark.parametrize("resumed", [False, True])
def test_tpe_avoids_values_whose_trials_fail(resumed: bool) -> None:
    """Half of the space diverges, late, after better losses than those of stopped trials."""
    space, options = parse_space(["optimizer.lr=tag(log,interval(1e-4,1e0))"]), TuneOptions()
    study, ended = Study(space, options, []), list[TrialRecord]()
    for number in range(30):
        study = Study(space, options, ended) if resumed else study
        trial = study.ask(number)
        rate = trial.params["optimizer.lr"]
        step, status = (8, "failed") if rate > 1e-2 else (4, ("stopped", "finished")[number % 2])
        loss = 1.0 if status == "failed" else 3 - rate
        study.tell(trial, status, loss, step)
        values = {step: loss}
        ended.append(TrialRecord("", number, trial.params, status, step, step, 1.0, loss, values))
    failed = [record.number for record in ended if record.status == "failed"]
    assert len([number for number in failed if number >= 10]) < 10  # of 20; 20 where ignored


def test_metrics_lines_without_the_metric_are_skipped(tmp_path: Path) -> None:
    lines = ['{"step": 1, "val_loss": 2.0}', "null", "[1]", '{"step": 2, "val_loss": null}', "{"]
    run = RunDirectory(tmp_path)
    run.metrics.write_text("\n".join(lines))
    assert _evaluations(run, "val_loss") == {1: 2.0}


def test_trial_names_are_valid_file_names() -> None:
    name = trial_name(7, {"optimizer.lr": 0.00123456, "model.attention.layers": "[a/b, c]"}, False)
    assert name == "007_lr=0.00123_layers=_a_b_c"
    assert trial_name(7, {"optimizer.lr": 1.0}, changing=True) == "007"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model=rope"], "nothing to search: give a key several values"),
        (["model=rope,alibbi"], "model=alibbi: no such model. Did you mean alibi?"),
        (["optimizer.lrr=1,2"], "optimizer.lrr: no such option or config group. Did you mean"),
        (["optimizer.lr=1,high"], "optimizer.lr=high: not a valid float"),
        (["optimizer.lr=1,-1"], "optimizer.lr=-1.0: must be 0 or more"),
        (["optimizer.lr=interval(-1,1)"], "optimizer.lr=-1.0: must be 0 or more"),
        (["optimizer.lr=interval(2,1)"], "the second bound must be above the first"),
        (["optimizer.lr=tag(log,interval(0,1))"], "log needs bounds above 0"),
        (["optimizer.lr=tag(lgo,interval(1,2))"], "no such tag: lgo; use log or int"),
        (["optimizer.lr=interval(1)"], "optimizer.lr=interval(1): cannot be parsed"),
        (["optimizer.lr=choice(1)"], "optimizer.lr=1: has one value"),
        (["optimizer.lr=1,1"], "contains a value twice"),
        (["seed=1,2", "seed=3"], "seed is given twice"),
        (["seed=1,2", "resume=latest"], "resume=latest: a search creates its own runs"),
        (["seed=1,2", "--search", "grid", "--trials", "3"], "leave --trials out"),
        (["optimizer.lr=interval(1,2)", "--search", "grid"], "--search grid needs a list"),
        (["seed=1,2", "--scheduler", "pbt", "--search", "grid"], "--search=grid: the population"),
        (["model.n_layer=1,2", "--scheduler", "pbt"], "numbers of optimizer.* only"),
        (["optimizer=adamw,adamw2", "--scheduler", "pbt"], "no such optimizer"),
        (["optimizer.lr=1,2", "--scheduler", "pbt", "--trials", "1"], "a population needs 2"),
        (["trainer.max_steps=4,8"], "compares trials at the same steps"),
        (["seed=1,2", "trainer.eval_every=null"], "asha decides at evaluations"),
        (["tokenizer=char,gpt2"], "use --metric val_bits_per_byte"),
        (["seed=1,2", "--jobs", "0"], "--jobs=0: must be 1 or more"),
        (["seed=1,2", "--schedule", "asha"], "unrecognized arguments: --schedule"),
        (["seed"], "seed: cannot be parsed; write key=value"),
        (["seed=1,2", "--seed", "-1"], "--seed=-1: must be from 0 to 2^32 - 1"),
        (["seed=1,2", "--address", "foo"], "--address=foo: give auto, or a cluster's host:port"),
        (
            ["experiment=claims/norm", "model=rope,alibi"],
            "sweeps over norm, model.n_layer, optimizer.lr, seed, which a search ignores",
        ),
    ],
)
def test_mistakes_print_one_line(cli: Cli, arguments: list[str], message: str) -> None:
    refused = cli("tune", *SMALL[: 0 if "trainer" in arguments[-1] else 2], *arguments)
    assert refused.code == 2, refused.err
    assert message in refused.err
    assert refused.err.startswith("minigpt: ") and refused.err.count("\n") == 1
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("overrides", "scheduler", "warmup"),
    [
        (["trainer.max_steps=100", "trainer.eval_every=20"], "asha", None),  # 5 of 100 steps
        (["trainer.max_steps=100", "trainer.eval_every=5"], "asha", 5),
        (["trainer.max_steps=100", "trainer.eval_every=6"], "hyperband", None),
        (["schedule.warmup_steps=100", "trainer.eval_every=20"], "none", None),
        (["schedule.warmup_steps=100", "trainer.eval_every=20"], "pbt", 100),
        (["schedule.warmup_steps=0,30", "trainer.eval_every=20"], "asha", 30),
        (["schedule.warmup_fraction=0.5", "trainer.eval_every=20"], "asha", 1000),
    ],
)
def test_a_first_rung_within_the_warmup_is_a_warning(
    overrides: list[str], scheduler: str, warmup: int | None
) -> None:
    options = TuneOptions(scheduler=scheduler)
    configs = check_space(parse_space([*overrides, "optimizer.lr=1e-3,1e-2"]), options)
    warning = warmup_warning(configs, scheduler)
    assert (warning is None) == (warmup is None)
    if warning is not None:
        assert f"when the warm-up of {warmup} steps has not ended" in warning


def test_a_directory_with_other_files_is_rejected(cli: Cli) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.tex").touch()
    refused = cli("tune", "seed=1,2", "--dir", "mine")
    assert refused.code == 2
    assert "mine: contains other files; choose a new folder" in refused.err
    refused = cli("tune", "seed=1,2", "--dir", "mine/thesis.tex")
    assert refused.code == 2
    assert "mine/thesis.tex: contains other files; choose a new folder" in refused.err


def test_the_directory_of_a_running_search_is_rejected(cli: Cli) -> None:
    state = Path("search/ray/state")
    state.mkdir(parents=True)
    with FileLock("search/.lock"):
        Path("search/tune.json").write_text(
            '{"overrides": ["seed=1,2"], "options": {"--scheduler": "asha", "--search": "tpe", '
            '"--metric": "val_loss", "--seed": 0}}'
        )
        refused = cli("tune", "seed=1,2", "--dir", "search")
    assert refused.code == 2
    assert "search: another minigpt tune is running there; stop it first" in refused.err
    assert state.exists()


def test_configs_are_checked_and_returned() -> None:
    space = parse_space([*SMALL, "model.n_layer=1,2"])
    assert [c.model.n_layer for c in check_space(space, TuneOptions())] == [1, 2]
    with pytest.raises(UserError, match=r"model\.n_head=3: must divide"):
        check_space(parse_space([*SMALL, "model.n_head=4,3", "model.n_embd=64"]), TuneOptions())


def test_help_does_not_import_ray_or_torch() -> None:
    code = (
        "import sys; from minigpt.cli import main\n"
        "try: main(['tune', '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'ray', 'torch', 'optuna'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_missing_ray_names_the_extra(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray.tune", None)
    refused = cli("tune", "seed=1,2")
    assert refused.code == 2
    assert install("ray") in refused.err


def test_a_missing_cluster_is_reported_and_creates_no_files(cli: Cli) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"  # bound, but not listening
        refused = cli("tune", *SMALL, "optimizer.lr=1e-3,1e-2", "--address", address, "--dir", "s")
    assert refused.code == 2 and f"--address={address}: no Ray cluster answers" in refused.err
    assert refused.err.count("\n") == 1 and not Path("s").exists()
    Path("s").mkdir()
    Path("s/.lock").touch()  # left by a killed search
    again = cli("tune", *SMALL, "optimizer.lr=1e-3,1e-2", "--address", address, "--dir", "s")
    assert "no Ray cluster answers" in again.err


def test_a_broken_trial_file_prints_one_line(cli: Cli) -> None:
    Path("s/000").mkdir(parents=True)
    about = {"overrides": sorted([*SMALL, "seed=1,2"]), "options": TuneOptions().identity}
    Path("s/tune.json").write_text(json.dumps(about))
    Path("s/000/trial.json").write_text("{}")
    refused = cli("tune", *SMALL, "seed=1,2", "--dir", "s")
    assert refused.code == 2 and "000/trial.json: not written by minigpt tune" in refused.err


def test_steps_of_interrupted_trials_are_not_saved_steps() -> None:
    def record(status: str, steps: int) -> TrialRecord:
        return TrialRecord("0", 0, {}, status, steps, steps, 1.0, 2.0, {})

    saved = saving([record("finished", 10), record("stopped", 4), record("interrupted", 3)], 10)
    assert (saved.steps_trained, saved.steps_in_full) == (14, 20)
    assert saving([record("interrupted", 3), record("unfinished", 0)], 10).steps_in_full == 0
