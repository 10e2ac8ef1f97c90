"""Do positional schemes keep their rank when attention looks both ways?

    python -m studies.objectives.objectives                # write results.md from results/
    python -m studies.objectives.objectives --train all    # train what is missing, then write it

Five schemes with each objective and five seeds. Training can be stopped; the same command
continues. Runs are in runs/objectives; what the page needs of them is copied to results/ (no
weights). More arguments are overrides for all runs: train with others into another --out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

from minigpt.errors import UserError
from minigpt.report.runs import Run, find_runs
from minigpt.report.statistics import Difference, Seeds, holm, interval, paired
from minigpt.report.tables import Cell, Column, Table, to_markdown
from studies.kept import keep, minigpt, refuse, study_options

HERE = Path(__file__).parent
RUNS = Path("runs/objectives")
SETTING = ["experiment=seed_blog", "trainer.max_steps=2000", "trainer.eval_every=500"]
SETTING += ["trainer.log_every=100", "trainer.sample_every=null", "trainer.threads=1"]
SETTING += ["trainer.checkpoint_every=1000", "logger=none"]
OBJECTIVES = ("causal", "prefix", "masked", "denoise")
SCHEMES = ("learned", "sinusoidal", "t5", "rope", "alibi")
SEEDS = (1, 2, 3, 4, 5)
LOSS, CONTINUATION = "val_loss", "val_continuation_bits_per_byte"
Pair = tuple[str, str]


@dataclass(frozen=True)
class Results:
    """The runs of one objective, by scheme and seed."""

    objective: str
    runs: dict[str, dict[int, Run]]

    def seeds(self, scheme: str, key: str = LOSS) -> Seeds:
        """Return a number of result.json by seed. Raises UserError if a run has none."""
        numbers: Seeds = {}
        for seed in SEEDS:
            run = self.runs.get(scheme, {}).get(seed)
            value = run.number(key) if run is not None and run.finished else None
            if value is None:
                what = f"{self.objective}, {scheme}, seed {seed}"
                raise UserError(f"{what}: has not ended; --train all continues")
            numbers[seed] = value
        return numbers

    def mean(self, scheme: str) -> float:
        """Return the mean loss of a scheme."""
        return interval([*self.seeds(scheme).values()]).mean

    @property
    def ranked(self) -> list[str]:
        """The schemes, that with the lowest mean loss first."""
        return sorted(SCHEMES, key=self.mean)

    def differences(self) -> dict[Pair, Difference]:
        """Return the paired differences of all pairs of schemes, Holm-corrected."""
        pairs = [*combinations(SCHEMES, 2)]
        return corrected(
            {(one, other): paired(self.seeds(one), self.seeds(other)) for one, other in pairs}
        )


def corrected(differences: Mapping[Pair, Difference | None]) -> dict[Pair, Difference]:
    """Return differences with p-values that are Holm-corrected over all of them."""
    known = {pair: difference for pair, difference in differences.items() if difference is not None}
    assert len(known) == len(differences), "every arm has the same seeds"
    ps = holm([difference.p for difference in known.values()])
    pairs = zip(known.items(), ps, strict=True)
    return {pair: replace(difference, p_holm=p) for (pair, difference), p in pairs}


def main() -> None:
    """Train what is missing if asked to, and write the page."""
    about = "Do positional schemes keep their rank when attention looks both ways?"
    options = study_options(about, OBJECTIVES, RUNS, HERE)
    try:
        for name in options.train:
            train(name, options.overrides, options.runs / name, options.results / name)
        text = page(options.results)
    except UserError as error:
        refuse(error)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.md").write_text(text, encoding="utf-8")
    print(f"written to {options.out / 'results.md'}")


def train(objective: str, overrides: list[str], runs: Path, results: Path) -> None:
    """Train all schemes with an objective, or go on with it, unless the results have them."""
    if (results / "sweep.json").is_file():
        return
    minigpt(
        *("train", "-m", *SETTING, *overrides, f"objective={objective}"),
        *(f"model={','.join(SCHEMES)}", f"seed={','.join(map(str, SEEDS))}"),
        f"hydra.sweep.dir={runs}",
    )
    found = results_of(objective, runs)
    for scheme in SCHEMES:
        found.seeds(scheme)
    keep(runs, results)


def results_of(objective: str, folder: Path) -> Results:
    """Return the runs of an objective in a folder. Raises UserError if there are none."""
    if not folder.is_dir():
        raise UserError(f"{folder}: not trained; use --train")
    by_scheme: dict[str, dict[int, Run]] = {}
    for run in find_runs([str(folder)]).runs:
        if run.seed is not None:
            by_scheme.setdefault(run.config["model.positional.name"], {})[run.seed] = run
    return Results(objective, by_scheme)


# ---- the page ----

RANKS = [Column("scheme"), *(Column(name, f"rank, {name}", 0) for name in OBJECTIVES)]
LOSSES = [
    Column("scheme"),
    Column("parameters", "parameters", 0),
    Column("loss", "val loss, nats/token"),
    Column("difference", "difference from the first", sign="+"),
    Column("p", "p (Holm)", is_p=True),
]
CONTINUED = [
    Column("scheme"),
    Column("causal", "causal, bits/byte"),
    Column("prefix", "prefix, bits/byte"),
    Column("difference", sign="+"),
    Column("p", "p (Holm)", is_p=True),
]


def page(results: Path) -> str:
    """Return the page in Markdown. Raises UserError if a run is missing."""
    found = {name: results_of(name, results / name) for name in OBJECTIVES}
    ranks: list[list[Cell]] = [
        [scheme, *(of.ranked.index(scheme) + 1 for of in found.values())] for scheme in SCHEMES
    ]
    lines = [introduction(results, found), to_markdown(Table("ranks", "Ranks", RANKS, ranks))]
    lines += ["", *changes(found), ""]
    for of in found.values():
        lines += [to_markdown(losses(of)), ""]
    lines += [to_markdown(continued(found)), ""]
    return "\n".join(lines)


def introduction(results: Path, found: Mapping[str, Results]) -> str:
    """Return what was trained, and how it is judged."""
    runs = find_runs([str(results)]).runs
    hours = sum(run.number("seconds") or 0.0 for run in runs) / 3600
    facts = sorted({(r.manifest["device"], r.manifest["versions"]["torch"]) for r in runs})
    where = "; ".join(f"{device}, torch {torch}" for device, torch in facts)
    about = found["causal"].runs[SCHEMES[0]][SEEDS[0]]
    steps = about.number("steps") or 0
    meanings = [
        f"- **{name}**: {of.runs[SCHEMES[0]][SEEDS[0]].result['loss_of']}"
        for name, of in found.items()
    ]
    return f"""\
# Positional schemes with attention in one direction and in both

Written by `python -m studies.objectives.objectives` from the runs in [results/](results/), without
training. {len(runs)} runs, {hours:.1f} hours ({where}).

    minigpt train -m {" ".join(SETTING)} \\
      objective={",".join(OBJECTIVES)} \\
      model={",".join(SCHEMES)} seed={",".join(map(str, SEEDS))}

{steps:,.0f} steps with one learning rate for all. Losses are of the validation text, after the last
step:

{chr(10).join(meanings)}

They are losses of different tokens, so schemes are compared within an objective: paired by seed
(paired t-test, Holm-corrected over the {len(SCHEMES) * (len(SCHEMES) - 1) // 2} pairs of schemes).
± is half of a 95 % t-interval over {len(SEEDS)} seeds.
"""


def changes(found: Mapping[str, Results]) -> list[str]:
    """Return what differs from the order with the causal objective, pair by pair."""
    causal, *others = found.values()
    expected = causal.differences()
    lines: list[str] = []
    for other in others:
        actual = other.differences()
        pairs = [(pair, expected[pair], actual[pair]) for pair in actual]
        reversed_pairs = [
            text_of(pair, now)
            for pair, before, now in pairs
            if before.significant
            and now.significant
            and before.interval.mean * now.interval.mean < 0
        ]
        lost = [
            text_of(pair, before)
            for pair, before, now in pairs
            if before.significant and not now.significant
        ]
        gained = [
            text_of(pair, now)
            for pair, before, now in pairs
            if now.significant and not before.significant
        ]
        lines += [
            f"**{other.objective}**, compared with causal:",
            "",
            f"- order reversed, significant in both: {listed(reversed_pairs)}",
            f"- significant with causal alone: {listed(lost)}",
            f"- significant with {other.objective} alone: {listed(gained)}",
            "",
        ]
    return lines


def text_of(pair: Pair, difference: Difference) -> str:
    """Return which scheme of a pair has the lower loss."""
    better, worse = pair if difference.interval.mean < 0 else pair[::-1]
    return f"{better} below {worse}"


def listed(texts: list[str]) -> str:
    """Return texts in one line."""
    return "; ".join(texts) or "none"


def losses(of: Results) -> Table:
    """Return the table of one objective, ranked."""
    first, *rest = of.ranked
    differences = of.differences()
    rows: list[list[Cell]] = []
    for scheme in (first, *rest):
        parameters = of.runs[scheme][SEEDS[0]].number("parameters.total")
        row: list[Cell] = [scheme, parameters, interval([*of.seeds(scheme).values()])]
        difference = paired(of.seeds(scheme), of.seeds(first)) if scheme != first else None
        pair = (scheme, first) if (scheme, first) in differences else (first, scheme)
        p = None if difference is None else differences[pair].p_holm
        rows.append([*row, None if difference is None else difference.interval, p])
    loss_of = of.runs[first][SEEDS[0]].result["loss_of"]
    return Table(of.objective, f"{of.objective}: losses of {loss_of}", LOSSES, rows)


def continued(found: Mapping[str, Results]) -> Table:
    """Return the table of what causal and prefix models have in common."""
    causal, prefix = found["causal"], found["prefix"]
    differences = corrected(
        {
            (scheme, ""): paired(
                prefix.seeds(scheme, CONTINUATION), causal.seeds(scheme, CONTINUATION)
            )
            for scheme in SCHEMES
        }
    )
    rows: list[list[Cell]] = []
    for scheme in SCHEMES:
        values = [interval([*of.seeds(scheme, CONTINUATION).values()]) for of in (causal, prefix)]
        difference = differences[scheme, ""]
        rows.append([scheme, *values, difference.interval, difference.p_holm])
    title = "The second half of each window, which both predict"
    return Table("continued", title, CONTINUED, rows)


if __name__ == "__main__":
    main()
