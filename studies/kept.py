"""What studies share: their command line, and the results of runs that are kept to be committed.

Kept are small files: no weights, and no paths of the machine.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from minigpt.config.pairs import is_below, parse_override
from minigpt.errors import UserError, require_one_of
from minigpt.files import read_json, read_json_lines, write_json
from minigpt.run.design import TEXT_PATHS

# In the order in which they are kept: a run with a result, and a group of runs with its file, is
# complete.
OF_RUN = ("config.yaml", "manifest.json", "metrics.jsonl", "eval.json", "result.json")
SAME_RESULTS = ("hydra", "logger", "trainer.threads")  # overrides that keep a study's results
OF_GROUP = ("measured.json", "sweep.json", "tune.json", "compare.json")


@dataclass(frozen=True)
class StudyOptions:
    """What the command line of a study says. `train`: names of what to train."""

    train: list[str]
    overrides: list[str]
    runs: Path
    out: Path

    @property
    def results(self) -> Path:
        """The folder with what is kept of the runs."""
        return self.out / "results"


def study_options(
    description: str,
    names: Sequence[str],
    runs: Path,
    out: Path,
    arguments: Sequence[str] | None = None,
) -> StudyOptions:
    """Parse the command line of a study. Exits with 2 if it is wrong.

    `names`: what it can train. `runs`, `out`: its own folders.
    """
    parser = argparse.ArgumentParser(description=description)
    add = parser.add_argument
    add("overrides", nargs="*", metavar="KEY=VALUE", help="for all trainings")
    add("--train", default="", metavar="NAME,...", help=f"all, or some of {', '.join(names)}")
    add("--runs", type=Path, default=runs, help="folder of the runs")
    add("--out", type=Path, default=out, help="folder of results/ and results.md")
    given = parser.parse_intermixed_args(arguments)
    defaults = {"--runs": given.runs == runs, "--out": given.out == out}
    try:
        train = [*names] if given.train == "all" else [n for n in given.train.split(",") if n]
        for name in train:
            require_one_of("--train", name, [*names, "all"])
        if given.overrides and not train:
            raise UserError(f"{' '.join(given.overrides)}: for training only; add --train")
        other = [o for o in given.overrides if not is_below(parse_override(o).key, SAME_RESULTS)]
        if other and any(defaults.values()):
            flags = " and ".join(flag for flag, is_default in defaults.items() if is_default)
            why = f"the study's own runs are without; give {flags} too"
            raise UserError(f"{' '.join(other)}: {why}")
    except UserError as error:
        refuse(error)
    return StudyOptions(train, given.overrides, given.runs, given.out)


def refuse(error: UserError) -> NoReturn:
    """Print an error in the input, and exit with 2."""
    print(error, file=sys.stderr)
    sys.exit(2)


def minigpt(*arguments: str, allowed: int = 0) -> int:
    """Run a minigpt command and return its exit code; exit with it unless it is 0 or `allowed`."""
    code = subprocess.run([sys.executable, "-m", "minigpt.cli", *arguments]).returncode
    if code not in (0, allowed):
        sys.exit(code)
    return code


def keep(folder: Path, kept: Path) -> None:
    """Copy what a report reads of the runs in a folder and below. Of metrics only evaluations."""
    files = [path for path in sorted(folder.rglob("*")) if path.name in OF_RUN]
    files.sort(key=lambda path: OF_RUN.index(path.name))
    for name in OF_GROUP:
        files += sorted(folder.rglob(name))
    for file in files:
        target = kept / file.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        _copy(file, target)


def _copy(file: Path, target: Path) -> None:
    if file.name == "manifest.json":
        manifest = read_json(file)
        resolved = {k: v for k, v in manifest.get("resolved", {}).items() if k not in TEXT_PATHS}
        write_json(target, manifest | {"resolved": resolved})
    elif file.name == "metrics.jsonl":
        lines = [line for line in read_json_lines(file) if "val_loss" in line]
        target.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    elif file.name == "config.yaml":
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        values = [line for line in lines if not line.startswith("#")]  # comments have the folder
        target.write_text("".join(values), encoding="utf-8")
    else:
        shutil.copy(file, target)
