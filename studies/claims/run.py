"""Train the runs for the blog posts' claims, judge the claims, and write a page.

    python studies/claims/run.py                                # 75 minutes on two CPU cores
    python studies/claims/run.py --claims norm,heads            # some; writes runs/claims/claims.md
    python studies/claims/run.py --folder runs/gpu trainer.max_steps=5000 model.n_embd=256

Run it again to train what is missing. More arguments are overrides for all runs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from argparse import Namespace
from datetime import date
from functools import partial
from pathlib import Path

from claims import CLAIMS, EXTRAPOLATING, Finding, backend, listed

from minigpt.config.groups import config_directory
from minigpt.errors import UserError, require_one_of
from minigpt.report.runs import find_runs
from minigpt.report.tables import to_markdown

RESULTS = Path(__file__).with_name("results.md")
POSITIONAL = ("inside_blocks", "positional")  # an experiment, and the folder of its runs
SWEEPS = {
    "inside_blocks": [POSITIONAL],
    "alike": [POSITIONAL],
    "parameters": [POSITIONAL],
    "beyond": [POSITIONAL],
    "learned_sinusoidal": [POSITIONAL],
    "bigram": [POSITIONAL, ("bigram", "bigram")],
    **{name: [(name, name)] for name in ("tying", "norm", "heads", "tokenizer")},
}


def main() -> None:
    """Train what is missing, print the verdicts and write the page."""
    parser = argparse.ArgumentParser(description="The blog posts' claims, tested.")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for all runs")
    parser.add_argument("--folder", type=Path, default=Path("runs/claims"))
    parser.add_argument("--claims", default=",".join(CLAIMS), help="such as norm,heads")
    parser.add_argument("--out", type=Path, help="the page (default: results.md for all claims)")
    parser.add_argument("--judge", action="store_true", help="judge existing runs without training")
    parser.add_argument("--launcher", default="processes", help="Hydra's launcher for the sweeps")
    parser.add_argument("--searches", default="1,2,3,4,5", help="seeds of the searches")
    parser.add_argument("--trials", default="8", help="trials per search")
    options = parser.parse_intermixed_args()
    names = options.claims.split(",")
    judges = CLAIMS | {"backend": partial(backend, overrides=options.overrides)}
    findings: dict[str, Finding] = {}
    try:
        for name in names:
            require_one_of("--claims", name, CLAIMS)
        if not options.judge:
            train(options, names)
        for name in names:
            findings[name] = judges[name](options.folder)
            print(f"{name}: {findings[name].verdict}. {findings[name].reason}")
    except UserError as error:
        parser.exit(2, f"{error}\n")
    out = options.out or (RESULTS if names == [*CLAIMS] else options.folder / "claims.md")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page(findings, options.folder), encoding="utf-8")
    print(f"written to {out}")


# ---- training ----


def train(options: Namespace, names: list[str]) -> None:
    """Train and evaluate the runs of the claims that are missing in the folder."""
    for experiment, folder in dict.fromkeys(s for name in names for s in SWEEPS.get(name, [])):
        command = ["train", "-m", f"experiment=claims/{experiment}", "logger=none"]
        command += [f"hydra/launcher={options.launcher}"]
        command += [f"hydra.sweep.dir={options.folder / folder}"]
        failed = minigpt([*command, *options.overrides], allowed=1)  # 1: a run diverged
        if failed:
            print(f"{experiment}: some runs failed", file=sys.stderr)
    if "beyond" in names:
        runs = [
            run
            for run in find_runs([str(options.folder / "positional")]).runs
            if run.finished and run.config["model.positional.name"] in EXTRAPOLATING
        ]
        block = runs[0].config["model.block_size"]
        lengths = ",".join(str(n * block) for n in (1, 2, 4, 8))
        paths = [str(run.path) for run in runs]
        minigpt(["eval", *paths, "--checkpoint", "last", "--lengths", lengths])
    if "early_stopping" in names:
        for seed in options.searches.split(","):
            for scheduler in ("none", "asha"):
                search(options, scheduler, seed)


def search(options: Namespace, scheduler: str, seed: str) -> None:
    """Run or resume a search, unless it has finished."""
    folder = options.folder / "early_stopping" / f"{scheduler}_{seed}"
    file = folder / "tune.json"
    if file.is_file() and json.loads(file.read_text(encoding="utf-8"))["status"] == "finished":
        return
    space = ["model=rope,alibi", "optimizer.lr=tag(log,interval(3e-4,3e-2))"]
    how = ["--search", "random", "--trials", options.trials, "--seed", seed]
    how += ["--scheduler", scheduler, "--dir", str(folder)]
    design = ["experiment=claims/early_stopping", "logger=none", *options.overrides]
    minigpt(["tune", *space, *design, *how])


def minigpt(arguments: list[str], allowed: int = 0) -> int:
    """Run a minigpt command and return its exit code; exit with it unless it is 0 or `allowed`."""
    code = subprocess.run([sys.executable, "-m", "minigpt.cli", *arguments]).returncode
    if code not in (0, allowed):
        sys.exit(code)
    return code


# ---- the page ----


def sentence(name: str) -> str:
    """Return the claim as its experiment states it."""
    file = config_directory() / "experiment" / "claims" / f"{name}.yaml"
    lines = file.read_text(encoding="utf-8").splitlines()
    return next(x for x in lines if x.startswith("# Claim: ")).removeprefix("# Claim: ")


def trained(folder: Path) -> str:
    """Return the device, torch and commit of the runs; empty if no claim needed training."""
    runs = find_runs([str(folder)]).runs if folder.is_dir() else []
    facts = [run.manifest for run in runs if run.finished]
    if not facts:
        return ""
    torch = listed(fact["versions"]["torch"] for fact in facts)
    commit = listed(str(fact["commit"])[:8] for fact in facts)
    return f"{listed(fact['device'] for fact in facts)}; torch {torch}, commit {commit}."


def page(findings: dict[str, Finding], folder: Path) -> str:
    """Return the page in Markdown."""
    lines = [
        "# The posts' claims, tested",
        "",
        f"Written by `studies/claims/run.py`, {date.today()}. {trained(folder)}".rstrip(),
        "",
        "± is half of a 95 % t-interval over seeds. Differences are paired by seed; p is that of a",
        "paired t-test, Holm-corrected within a claim. A verdict is about this size, this text and",
        "this number of steps; `undecided`: more seeds are needed. A run that diverged counts with",
        "the loss of guessing.",
        "",
        "| claim | verdict |",
        "| --- | --- |",
        *(f"| [{sentence(name)}](#{name}) | {f.verdict} |" for name, f in findings.items()),
        "",
    ]
    for name, finding in findings.items():
        lines += [f"## {name}", "", f"*{sentence(name)}*", ""]
        lines += [f"**{finding.verdict.capitalize()}.** {finding.reason}", ""]
        lines += [finding.about, ""] if finding.about else []
        lines += [to_markdown(table).replace("## ", "### ", 1) for table in finding.tables]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    main()
