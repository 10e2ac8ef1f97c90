"""Write results.md and its plots from findings."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from minigpt.files import read_json
from minigpt.report.tables import Cell, Column, Table, to_markdown
from minigpt.run.directory import COMPARISON
from studies.claims.claims import CLAIMS
from studies.claims.evidence import POSTS, TUNED, Evidence
from studies.claims.trainings import TRAININGS
from studies.claims.verdicts import Effect, Finding, overall

Findings = Mapping[str, Mapping[str, Finding | str]]  # by claim and setting; str: why there is none
SETTINGS = {POSTS: "(a) posts", TUNED: "(b) tuned"}
COLOURS = {POSTS: "#2f7fd6", TUNED: "#d9700f"}
LR = "optimizer.lr"
CHOSEN = [
    *(Column("training"), Column("design"), Column("lr", "learning rate")),
    *(Column("edge", "at the edge"), Column("others", "validation loss at each rate")),
]
EFFECT = [
    Column("comparison"),
    Column("difference", sign="+"),
    Column("p", "p (Holm)", is_p=True),
    Column("p_tost", "p of equivalence (Holm)", is_p=True),
    Column("sign"),
]
INTRODUCTION = """\
Written by `python -m studies.claims.run` from the runs in [results/](results/), without training.
Each claim is judged in two settings:

- **(a) posts**: the posts' own setting, as far as they give it: 4 pre-norm blocks (LayerNorm,
  GELU at 4x, biases, normal initialization, no QK-norm, no dropout), 8 heads, 64 wide, 32 tokens
  of context, AdamW at a constant learning rate of 1e-3, 5,000 steps of 2,048 tokens. Loss:
  validation, after the last step.
- **(b) tuned**: the same model, each design at its own best: `minigpt compare` searches the
  learning rate for each design alike, then trains it with fresh seeds, 500 or 1,000 steps with
  warm-up and decay, see the commands. Loss: a test split that no choice has seen.

Five seeds, unless said otherwise. Differences are paired by seed; ± is half of a 95 % t-interval;
p-values are Holm-corrected within a claim and a setting. Differences below the tolerance of 0.02
nats/token count as equal (`equivalent`: two one-sided tests). `below` and `above`: beyond the
tolerance, by a one-sided test; `slightly`: significant, but perhaps within it; `not above`: not by
more than the tolerance, by a one-sided test, which is what "no worse" needs. A claim

- **holds** if every difference supports it;
- **does not hold** if one contradicts it beyond the tolerance;
- **holds in part** if some support it, and the others are known to be too small to count;
- is **not supported** if all are known to be too small to count;
- is **undecided** otherwise: more seeds are needed.

Verdicts are about this size, this text and these lengths of training. In (b) each trial of the
search has one seed, and only the learning rate is searched: a noisy search may choose a rate that
is not the best one, and the tables show which it chose.
"""


def page(findings: Findings, results: Path) -> str:
    """Return the page in Markdown."""
    lines = ["# The posts' claims, tested", "", INTRODUCTION, "| claim | (a) posts | (b) tuned |"]
    lines.append("| --- | --- | --- |")
    for name, by_setting in findings.items():
        verdicts = [_verdict(name, setting, by_setting) for setting in SETTINGS]
        lines.append(f"| [{CLAIMS[name].sentence}](#{name}) | {' | '.join(verdicts)} |")
    lines.append("")
    for name, by_setting in findings.items():
        lines += _section(name, by_setting, results)
    return "\n".join(lines).rstrip() + "\n"


def _verdict(name: str, setting: str, by_setting: Mapping[str, Finding | str]) -> str:
    if setting not in CLAIMS[name].trainings:
        return "does not apply"
    finding = by_setting[setting]
    return finding.verdict if isinstance(finding, Finding) else "not trained yet"


def _section(name: str, by_setting: Mapping[str, Finding | str], results: Path) -> list[str]:
    claim = CLAIMS[name]
    known = {s: f for s, f in by_setting.items() if isinstance(f, Finding)}
    lines = [f"## {name}", "", f"*{claim.sentence}*", "", f"Tested: {claim.tested}", ""]
    if len(known) > 1:
        verdicts = {SETTINGS[setting][:3]: finding.verdict for setting, finding in known.items()}
        lines += [f"**In all: {overall(verdicts)}.**", ""]
    if any(finding.effects for finding in known.values()):
        lines += [f"![Differences]({_plot_path(name)})", ""]
    for setting, finding in by_setting.items():
        lines += [f"### {SETTINGS[setting]}", ""]
        if isinstance(finding, str):
            lines += [f"{finding}.", ""]
            continue
        lines += [f"**{finding.verdict.capitalize()}.** {finding.reason}", ""]
        tables = [*finding.tables, *([effect_table(finding)] if finding.effects else [])]
        lines += [to_markdown(table).replace("## ", "#### ", 1) for table in tables]
        evidence = Evidence(results, setting, claim.trainings[setting])
        if setting == TUNED and (rows := chosen(evidence)):
            table = Table("chosen", "Chosen by the search", CHOSEN, rows)
            lines.append(to_markdown(table).replace("## ", "#### ", 1))
        lines += _commands(evidence)
    return lines


def chosen(evidence: Evidence) -> list[list[Cell]]:
    """Return a row for each design of the comparisons: its learning rate, and the next ones."""
    rows: list[list[Cell]] = []
    for name, folder in zip(evidence.names, evidence.folders, strict=True):
        if not (folder / COMPARISON).is_file():
            continue
        for design in read_json(folder / COMPARISON)["designs"]:
            losses = {t["values"][LR]: t["val_loss"] for t in design["trials"]}
            rate = design["chosen"][LR]
            ends = {min(losses): "lowest", max(losses): "highest"}
            others = "; ".join(f"{r:g}: {loss:.3f}" for r, loss in sorted(losses.items()))
            rows.append([name, design["label"], f"{rate:g}", ends.get(rate, "no"), others])
    return rows


def provenance(evidence: Evidence) -> str:
    """Return device, precision, threads, torch and commits of the runs."""
    manifests = [run.manifest for run in evidence.runs]
    commits = Counter(str(m.get("commit", "unknown")) for m in manifests)
    code = ", ".join(
        f"{commit[:8]}{'+' * commit.endswith('+changes')} ({n})" for commit, n in commits.items()
    )
    devices = ", ".join(sorted({str(m.get("device")) for m in manifests}))
    torch = ", ".join(sorted({m["versions"]["torch"] for m in manifests if "versions" in m}))
    return f"{devices}; torch {torch}; commit (runs): {code}."


def _commands(evidence: Evidence) -> list[str]:
    """Return the commands of the trainings, and the time they took."""
    commands = [
        f"    minigpt {shlex.join(TRAININGS[name])}" for name in evidence.names if name in TRAININGS
    ]
    if not commands:
        return []
    hours = evidence.hours
    time = f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.0f} minutes"
    return [f"{time} of training, on one core each:", "", *commands, "", provenance(evidence), ""]


def effect_table(finding: Finding) -> Table:
    """Return the table of a finding's differences."""
    rows = [[e.name, e.interval, e.p, e.p_tost, e.described_sign] for e in finding.effects]
    return Table("effects", f"Differences, {finding.unit}", EFFECT, rows)


# ---- plots ----


def _plot_path(name: str) -> str:
    return f"plots/{name}.svg"


def draw(findings: Findings, folder: Path) -> None:
    """Draw the differences of each claim with their intervals, both settings side by side."""
    for name, by_setting in findings.items():
        known = {s: f for s, f in by_setting.items() if isinstance(f, Finding) and f.effects}
        if known:
            path = folder / _plot_path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            _draw_claim(known, path)


def _draw_claim(known: Mapping[str, Finding], path: Path) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    n_rows = max(len(finding.effects) for finding in known.values())
    with rc_context({"svg.hashsalt": path.stem, "svg.fonttype": "none"}):
        figure = Figure(figsize=(4.5 * len(known) + 1.5, 1.2 + 0.24 * n_rows), layout="constrained")
        axes = figure.subplots(1, len(known), squeeze=False)[0]
        for ax, (setting, finding) in zip(axes, known.items(), strict=True):
            ax.axvspan(-finding.tolerance, finding.tolerance, color="0.9")
            ax.axvline(0, color="0.6", linewidth=1)
            places = range(len(finding.effects))[::-1]
            for place, effect in zip(places, finding.effects, strict=True):
                _draw_effect(ax, place, effect, COLOURS[setting])
            ax.set_yticks([*places], [effect.name for effect in finding.effects], fontsize=8)
            ax.set(title=SETTINGS[setting], xlabel=f"difference, {finding.unit}")
            ax.grid(axis="x", alpha=0.3)
        figure.savefig(path, metadata={"Date": None, "Creator": None})


def _draw_effect(ax: object, place: int, effect: Effect, colour: str) -> None:
    mean = effect.interval
    ax.errorbar(  # type: ignore[attr-defined]
        mean.mean, place, xerr=mean.half or 0, fmt="o", color=colour, markersize=4, capsize=2
    )
