"""Judge the posts' claims from the committed runs, and train those that are missing.

    python -m studies.claims.run                                  # write the page, without training
    python -m studies.claims.run --train posts/bigram,tuned/norm  # train some, then write the page
    python -m studies.claims.run --train all

Training can be stopped and continued. Runs are in runs/claims; what the page needs of a training is
copied to results/ when it has ended. To train one again, delete its folder there.
"""

from __future__ import annotations

from pathlib import Path

from minigpt.errors import UserError
from studies.claims.claims import CLAIMS
from studies.claims.evidence import Evidence, NotTrained, is_complete
from studies.claims.measured import MEASUREMENTS, measure
from studies.claims.page import Findings, draw, page
from studies.claims.readme import END, README, START, results_table
from studies.claims.trainings import TRAININGS
from studies.claims.verdicts import Finding
from studies.kept import keep, minigpt, refuse, study_options
from studies.written import with_part

HERE = Path(__file__).parent
RUNS = Path("runs/claims")
CONTEXTS = {"posts/positional", "posts/kerple"}  # evaluated at several context lengths


def main() -> None:
    """Train what is asked for, and write the page."""
    names = [*TRAININGS, *MEASUREMENTS]
    options = study_options("The blog posts' claims, tested.", names, RUNS, HERE)
    results = options.results
    try:
        for name in options.train:
            if not is_complete(results / name):
                train(name, options.runs / name, options.overrides)
                keep(options.runs / name, results / name)
        findings = judge(results)
    except UserError as error:
        refuse(error)
    options.out.mkdir(parents=True, exist_ok=True)
    draw(findings, options.out)
    (options.out / "results.md").write_text(page(findings, results), encoding="utf-8")
    print(f"written to {options.out / 'results.md'}")
    if options.out == HERE:
        table = results_table(results)
        text = with_part(README.read_text(encoding="utf-8"), START, END, table)
        README.write_text(text, encoding="utf-8")
        print(f"results table written to {README}")


def judge(results: Path) -> Findings:
    """Return the findings of all claims, and print their verdicts."""
    findings: dict[str, dict[str, Finding | str]] = {}
    for name, claim in CLAIMS.items():
        findings[name] = {}
        for setting, trainings in claim.trainings.items():
            try:
                finding: Finding | str = claim.judge(Evidence(results, setting, trainings))
            except NotTrained as error:
                finding = str(error)
            findings[name][setting] = finding
            what = finding if isinstance(finding, str) else f"{finding.verdict}. {finding.reason}"
            print(f"{name}, {setting}: {what}")
    return findings


def train(name: str, folder: Path, overrides: list[str]) -> None:
    """Run the command of a training, or go on with it. Exits with its code if it fails."""
    if name in MEASUREMENTS:
        measure(name, folder)
        return
    command = [*TRAININGS[name], "logger=none", *overrides]
    where = f"hydra.sweep.dir={folder}" if command[0] == "train" else f"--dir={folder}"
    minigpt(*command, where, allowed=1)  # 1: a run diverged
    if not is_complete(folder):
        raise UserError(f"{folder}: some runs did not end; the same command continues")
    if name in CONTEXTS:
        lengths = "32,64,128,256"
        minigpt("eval", str(folder), "--checkpoint", "last", "--contexts", lengths)


if __name__ == "__main__":
    main()
