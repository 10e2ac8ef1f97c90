"""Which options lower the loss of a training that sees a small text many times?

    python -m studies.best.best                # write results.md from results/, without training
    python -m studies.best.best --train all    # train what is missing, then write it

Each option is trained alone, then all that help together with fresh seeds. Training can be stopped;
the same command continues. Runs are in runs/best; what the page needs of them is copied to results/
(no weights). More arguments are overrides for all runs: train with others into another --out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from minigpt.errors import UserError
from minigpt.report.runs import Run, find_runs
from minigpt.report.statistics import Difference, Seeds, holm, interval, paired
from minigpt.report.tables import Cell, Column, Table, to_markdown
from studies.kept import keep, minigpt, refuse, study_options

HERE = Path(__file__).parent
RUNS = Path("runs/best")
# A fortieth of the training text, seen 24 times by 0.2M parameters: about the parameters and
# passes per token of experiment=best.
SETTING = ["experiment=cpu_budget", "model.n_embd=64", "model.dropout=0.2"]
SETTING += ["data.fraction=0.025", "data.test_fraction=0.5"]
SETTING += ["trainer.max_steps=300", "schedule.warmup_steps=15"]
SETTING += ["trainer.eval_every=50", "trainer.log_every=50", "logger=none"]
BASELINE, FRESH, TOGETHER = "baseline", "fresh_baseline", "together"
OPTIONS = {
    "epochs": "data.order=epochs",
    "ema": "optimizer.ema=0.99",
    "head_gates": "model.head_gates=true",
    "x0_values": "model.value_residual=x0",
    "weight_decay_0.8": "optimizer.weight_decay=0.8",
    "weight_decay_1.6": "optimizer.weight_decay=1.6",
}
SEEDS, FRESH_SEEDS = (1, 2, 3, 4, 5), (6, 7, 8, 9, 10)
WORTH = 0.005  # nats/token; an option does not help if its interval excludes a gain of as much
HELPS, DOES_NOT, UNDECIDED = "helps", "does not help", "undecided"
COLUMNS = [
    Column("option"),
    Column("override"),
    Column("loss", "test loss, nats/token"),
    Column("difference", sign="+"),
    Column("p", "p (Holm)", is_p=True),
    Column("verdict"),
]


@dataclass(frozen=True)
class Effect:
    """The losses of an arm by seed, and their difference from those of the baseline."""

    losses: Seeds
    difference: Difference

    @property
    def verdict(self) -> str:
        """What the difference says about the option."""
        mean = self.difference.interval
        if self.difference.significant and mean.mean < 0:
            return HELPS
        return DOES_NOT if mean.low > -WORTH else UNDECIDED


def main() -> None:
    """Train what is missing if asked to, and write the page."""
    names = [BASELINE, *OPTIONS, TOGETHER]
    options = study_options("What lowers the loss at a small size.", names, RUNS, HERE)
    results = options.results
    try:
        for name in options.train:
            if name != TOGETHER:
                arm = [OPTIONS[name]] if name in OPTIONS else []
                train(name, [*arm, *options.overrides], SEEDS, options.runs, results)
            elif together := chosen(effects(results)):
                for arm, own in ((FRESH, []), (name_of(together), overrides_of(together))):
                    train(arm, [*own, *options.overrides], FRESH_SEEDS, options.runs, results)
        text = page(results)
    except UserError as error:
        refuse(error)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.md").write_text(text, encoding="utf-8")
    print(f"written to {options.out / 'results.md'}")


# ---- training ----


def train(
    name: str, overrides: Sequence[str], seeds: Sequence[int], runs: Path, results: Path
) -> None:
    """Train an arm with each seed, or go on with it, unless the results have it.

    Raises UserError if a run did not end.
    """
    if all((results / name / f"seed={seed}" / "result.json").is_file() for seed in seeds):
        return
    folder = runs / name
    minigpt(
        *("train", "-m", *SETTING, *overrides, f"seed={','.join(map(str, seeds))}"),
        f"hydra.sweep.dir={folder}",
    )
    losses_of(folder, seeds)
    keep(folder, results / name)


# ---- judging ----


def runs_of(folder: Path) -> list[Run]:
    """Return the runs of an arm. Raises UserError if there are none."""
    if not folder.is_dir():
        raise UserError(f"{folder}: not trained; use --train")
    return find_runs([str(folder)]).runs


def losses_of(folder: Path, seeds: Sequence[int]) -> Seeds:
    """Return the test loss after the last step by seed. Raises UserError if a seed is missing."""
    runs = {run.seed: run for run in runs_of(folder)}
    losses: Seeds = {}
    for seed in seeds:
        loss = runs[seed].number("test_loss") if seed in runs and runs[seed].finished else None
        if loss is None:
            raise UserError(f"{folder}: seed {seed} has not ended; --train all continues")
        losses[seed] = loss
    return losses


def effects(results: Path) -> dict[str, Effect]:
    """Return the effect of each option alone. Their p-values are one family."""
    baseline = losses_of(results / BASELINE, SEEDS)
    return compared({name: losses_of(results / name, SEEDS) for name in OPTIONS}, baseline)


def compared(losses: Mapping[str, Seeds], baseline: Seeds) -> dict[str, Effect]:
    """Return the effects of some arms, with Holm-corrected p-values."""
    found: dict[str, Effect] = {}
    for name, of_arm in losses.items():
        difference = paired(of_arm, baseline)
        assert difference is not None
        found[name] = Effect(of_arm, difference)
    ps = holm([effect.difference.p for effect in found.values()])
    return {
        name: Effect(effect.losses, replace(effect.difference, p_holm=p))
        for (name, effect), p in zip(found.items(), ps, strict=True)
    }


def chosen(found: Mapping[str, Effect]) -> list[str]:
    """Return the options that help; of several values of one key the one with the lowest loss."""
    by_key: dict[str, str] = {}
    helping = [name for name, effect in found.items() if effect.verdict == HELPS]
    for name in sorted(helping, key=lambda name: found[name].difference.interval.mean):
        by_key.setdefault(OPTIONS[name].partition("=")[0], name)
    return [name for name in OPTIONS if name in by_key.values()]


def name_of(options: Sequence[str]) -> str:
    """Return the name of the arm that has all these options, with fresh seeds."""
    return f"fresh_{'+'.join(options)}"


def overrides_of(options: Sequence[str]) -> list[str]:
    """Return the overrides of several options."""
    return [OPTIONS[name] for name in options]


# ---- the page ----


def row(name: str, override: str, effect: Effect) -> list[Cell]:
    """Return a row of the table."""
    difference, loss = effect.difference, interval([*effect.losses.values()])
    return [name, override, loss, difference.interval, difference.p_holm, effect.verdict]


def page(results: Path) -> str:
    """Return the page in Markdown. Raises UserError if an arm is missing."""
    found = effects(results)
    baseline = interval([*losses_of(results / BASELINE, SEEDS).values()])
    rows: list[list[Cell]] = [[BASELINE, "", baseline, None, None, ""]]
    rows += [row(name, OPTIONS[name], effect) for name, effect in found.items()]
    alone = Table("alone", "Each option alone", COLUMNS, rows)
    together = chosen(found)
    lines = [introduction(results), to_markdown(alone), fitted(results), averaged(results), ""]
    if not together:
        lines.append("No option helps at this size, so the recipe is the baseline.")
        return "\n".join(lines) + "\n"
    fresh = losses_of(results / FRESH, FRESH_SEEDS)
    losses = losses_of(results / name_of(together), FRESH_SEEDS)
    (effect,) = compared({name_of(together): losses}, fresh).values()
    rows = [[BASELINE, "", interval([*fresh.values()]), None, None, ""]]
    rows.append(row(" + ".join(together), " ".join(overrides_of(together)), effect))
    lines += edges(together)
    title = f"All that help together, fresh seeds ({listed(FRESH_SEEDS)})"
    lines += [to_markdown(Table("together", title, COLUMNS, rows)), recipe(together, effect)]
    return "\n".join(lines) + "\n"


def introduction(results: Path) -> str:
    """Return what was trained, on what, and how it is judged."""
    runs = find_runs([str(results)]).runs
    about = runs_of(results / BASELINE)[0]
    hours = sum(run.number("seconds") or 0.0 for run in runs) / 3600
    facts = sorted({(r.manifest["device"], r.manifest["versions"]["torch"]) for r in runs})
    where = "; ".join(f"{device}, torch {torch}" for device, torch in facts)
    parameters, steps = about.number("parameters.total"), about.number("steps")
    tokens = about.manifest["tokens"]
    size = about.config["trainer.batch_size"] * about.config["model.block_size"]
    passes = (steps or 0) * size / tokens["train"]
    return f"""\
# What lowers the loss when a small text is seen many times

Written by `python -m studies.best.best` from the runs in [results/](results/), without training.
{len(runs)} runs, {hours:.1f} hours ({where}).

    {" ".join(word for word in about.manifest["command"] if not word.startswith("seed="))}

{parameters:,.0f} parameters, {steps:,.0f} steps,
{passes:.1f} passes over {tokens["train"]:,} training tokens. The loss is that of the test text
({tokens["test"]:,} tokens, one full pass, the weights after the last step), which decides
nothing during training. Differences are from the baseline, paired by seed (seeds
{listed(SEEDS)}); ± is half of a 95 % t-interval. An option helps if its loss is significantly
lower (paired t-test, Holm-corrected over the options); it does not help if the interval
excludes a gain of {WORTH} nats/token; else more seeds are needed.
"""


def fitted(results: Path) -> str:
    """Return a sentence on how far the baseline is trained: whether it overfits."""
    runs = runs_of(results / BASELINE)
    train, val, best = (
        interval([run.number(key) or 0.0 for run in runs])
        for key in ("train_loss", "val_loss", "best_val_loss")
    )
    return (
        f"The baseline's training loss is {train.mean:.3f}, its validation loss {val.mean:.3f} "
        f"after the last step, and {best.mean:.3f} at the best.\n"
    )


def averaged(results: Path) -> str:
    """Return a sentence on the weights that the losses of `ema` are of."""
    runs = runs_of(results / "ema")
    n = sum(run.result.get("weights") == "ema" for run in runs)
    return (
        f"`ema`: the loss of the weights or of their average, whichever has the lower validation "
        f"loss; of the average in {n} of {len(runs)} runs."
    )


def edges(together: Sequence[str]) -> list[str]:
    """Return a sentence if the chosen value of an option is the last of several that were tried."""
    options = {name: override.partition("=")[0] for name, override in OPTIONS.items()}
    last = {key: name for name, key in options.items() if [*options.values()].count(key) > 1}
    names = [name for name in together if name in last.values()]
    text = "the largest value tried, so a larger one may be better still"
    return [f"{', '.join(f'`{name}`' for name in names)}: {text}.", ""] if names else []


def recipe(together: Sequence[str], effect: Effect) -> str:
    """Return the recipe for 10.8M parameters that follows."""
    words = {HELPS: "confirm it", DOES_NOT: "do not confirm it", UNDECIDED: "do not decide"}
    overrides = " ".join(overrides_of(together))
    return f"""\
## The recipe for 10.8M parameters

    minigpt train experiment=best {overrides}

The fresh seeds {words[effect.verdict]} at the small size. At 10.8M parameters it is not measured
here; this trains it with five seeds on one GPU:

    python studies/loss_targets/loss_targets.py best {overrides}"""


def listed(seeds: Sequence[int]) -> str:
    """Return seeds as text."""
    return f"{seeds[0]} to {seeds[-1]}"


if __name__ == "__main__":
    main()
