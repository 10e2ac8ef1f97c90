"""The journey: what each step of docs/journey changes, and what it gives.

    python -m studies.journey.journey                # write the pages from results/
    python -m studies.journey.journey --train all    # train what is missing, then write them

Training can be stopped; the same command continues. Runs are in runs/journey; what the pages need
of them is copied to results/ (no weights). More arguments are overrides for all runs: train with
others into another --out, which then has the pages.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

from minigpt.errors import UserError
from minigpt.files import write_text
from minigpt.report.runs import Run, find_runs
from studies.journey.pages import PAGES, write_pages
from studies.journey.steps import steps
from studies.kept import StudyOptions, keep, minigpt, refuse, study_options

HERE, RUNS = Path(__file__).parent, Path("runs/journey")
ABOUT = "The journey: what each step of docs/journey changes, and what it gives."
ROPE, PROMPT = "{runs}/13_rope", "--prompt ROMEO: --max-new-tokens 20"
CACHED = "experiment=journey/13_rope,journey/17_multi_query model.block_size=512"
# Commands whose output is on a page, by page. {runs}: the folder of the runs.
PRINTED = {
    "22_cache": [f"bench decode {CACHED} --prompt 256 --tokens 256"],
    "23_beams": [f"sample {ROPE} {PROMPT} --beams {n} --json" for n in (1, 5)],
    "24_drafts": ["sample {runs}/06_flash_attention --draft {runs}/01_bigram"],
    "25_quantisation": [f"eval {ROPE} --quantize int8"],
}
WITH_STDERR = {"24_drafts"}  # stdout is the text, stderr how fast it was


def main() -> None:
    """Train what is missing if asked to, and write the pages."""
    options = study_options(ABOUT, ["steps"], RUNS, HERE)
    target = PAGES if options.out == HERE else options.out
    try:
        if options.train:
            train(options)
        runs = runs_of(options.results)
    except UserError as error:
        refuse(error)
    write_pages(target, runs, options.results / "printed")
    print(f"{len(runs)} of {len(steps())} steps are trained; pages written to {target}")


def train(options: StudyOptions) -> None:
    """Train all steps as one sweep, or go on with it; compare them, and keep what pages show."""
    sweep = ["experiment=glob(journey/*)", *options.overrides, f"hydra.sweep.dir={options.runs}"]
    minigpt("train", "-m", *sweep)
    keep(options.runs, options.results)
    minigpt("report", str(options.runs))
    for page, commands in PRINTED.items():
        texts = [
            output(command.format(runs=shlex.quote(str(options.runs))), page in WITH_STDERR)
            for command in commands
        ]
        write_text(options.results / f"printed/{page}.txt", "\n".join(texts))


def output(command: str, with_stderr: bool = False) -> str:
    """Return a minigpt command and its output, with what it said beside it if asked to.

    Raises UserError if it fails.
    """
    words = [sys.executable, "-m", "minigpt.cli", *shlex.split(command)]
    stderr = subprocess.PIPE if with_stderr else None
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=stderr, encoding="utf-8")
    said = done.stderr or ""
    if done.returncode:
        why = f"ended with exit code {done.returncode}"
        raise UserError(": ".join(filter(None, [f"minigpt {command}", why, said.strip()])))
    return f"$ minigpt {command}\n{done.stdout}{said}"


def runs_of(results: Path) -> dict[str, Run]:
    """Return the newest finished run of each step."""
    found = find_runs([str(results)]).runs if results.is_dir() else []
    found = sorted((run for run in found if run.finished), key=lambda run: run.started)
    by_name = {run.config.get("model.name"): run for run in found}
    return {name: by_name[name] for name in steps() if name in by_name}


if __name__ == "__main__":
    main()
